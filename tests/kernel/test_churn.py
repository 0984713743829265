# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that come and go leave the others what they do not use."""

from __future__ import annotations

import pytest
from net import LONG, PORT, Pair
from parts import BULK, USED, assert_parts
from scene import RATE, Scene, pause
from slow import PATIENCE

SERVER_PORT = 5001
SLOWER = RATE // 5  # at which some dozens of packets a second are not nothing


@pytest.mark.parametrize(
    ("size", "rate", "per_second", "least"),
    [
        pytest.param(0, RATE, 100, BULK, marks=pytest.mark.every_kernel, id="that send nothing"),
        pytest.param(2000, RATE, 200, BULK - 0.05, id="that send two segments"),
    ],
)
def test_what_new_connections_leave_a_bulk_one_gets(
    scene: Scene, size: int, rate: int, per_second: int, least: float
) -> None:
    cgroup, pair = scene.limited(rate, bucket=str(rate // 10)), scene.pair
    bulk = pair.send_tcp(cgroup=cgroup)
    pair.traffic("churn", Pair.address, PORT, LONG, per_second // PATIENCE, size, cgroup=cgroup)
    pause(0.7)
    assert_parts(pair, rate, (bulk, least))


@pytest.mark.parametrize("per_second", [10, 50])
def test_what_small_answers_on_new_connections_leave_a_bulk_one_gets(scene: Scene, per_second: int) -> None:
    cgroup, pair = scene.limited(SLOWER, bucket=str(SLOWER // 10)), scene.pair
    bulk = pair.send_tcp(cgroup=cgroup)
    pair.traffic("answer", Pair.sender_address, SERVER_PORT, cgroup=cgroup)
    asking = ("churn", Pair.sender_address, SERVER_PORT, LONG, per_second // PATIENCE, 0, 100)
    pair.traffic(*asking, namespace=pair.receiver)
    pause(0.7)
    assert_parts(pair, SLOWER, (bulk, BULK))


def test_handshakes_from_outside_leave_a_download_the_rest(scene: Scene) -> None:
    cgroup, pair = scene.limited(SLOWER, bucket=str(SLOWER // 10)), scene.pair
    download = pair.traffic("serve", Pair.sender_address, 5002, LONG, cgroup=cgroup)
    pair.traffic("fetch", Pair.sender_address, 5002, LONG, namespace=pair.receiver)
    pair.traffic("receive", Pair.sender_address, SERVER_PORT, cgroup=cgroup)
    handshakes = ("churn", Pair.sender_address, SERVER_PORT, LONG, 200 // PATIENCE, 0)
    pair.traffic(*handshakes, namespace=pair.receiver)
    pause(0.7)
    assert_parts(pair, SLOWER, (download, BULK - 0.05), used=USED)
