# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers that really run, of Docker, Podman, LXC and systemd-nspawn. The command `limiter` limits them, on a host
with systemd 257 and without Ansible.

The host's userland is made by `tests/userlands/bootstrap containers`, once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.net import PORT, Pair
from ansible_collections.speed_limiter.ebpf.tests.support.scene import MBIT, assert_held, share_of
from ansible_collections.speed_limiter.ebpf.tests.support.systemd import CHECKOUT, Host, booted

USERLAND = CHECKOUT / ".userlands/containers"
RATE = 20 * MBIT
LIMITER = (
    f"import sys; sys.path.insert(0, '{CHECKOUT}/plugins/module_utils'); "
    "from _limiter.front.cli.main import main; sys.exit(main())"
)
SEND = f"while :; do nc {Pair.address} {PORT} </dev/zero; done"
# Storage that needs no kernel module, and an image that is one program.
SET_UP = f"""
mkdir -p /etc/containers
for name in bin etc proc sys dev tmp usr root; do mkdir -p /root/img/$name; done
echo '[storage]
driver = "vfs"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"' >/etc/containers/storage.conf
echo '{{"default": [{{"type": "insecureAcceptAnything"}}]}}' >/etc/containers/policy.json
cp /bin/busybox /root/img/bin
for name in sh nc; do ln -s busybox /root/img/bin/$name; done
touch /root/img/etc/os-release
printf '#!/bin/sh\\n{SEND}\\n' >/root/img/bin/flood
chmod 755 /root/img/bin/flood
tar -C /root/img -c . | podman import - localhost/box
mkdir -p /var/lib/lxc/box /var/lib/machines
cp -a /root/img /var/lib/lxc/box/rootfs
cp -a /root/img /var/lib/machines/box
echo 'lxc.rootfs.path = dir:/var/lib/lxc/box/rootfs
lxc.uts.name = box
lxc.net.0.type = none
lxc.init.cmd = /bin/flood
lxc.apparmor.profile = unconfined' >/var/lib/lxc/box/config
systemd-run --unit=dockerd --property=Delegate=yes dockerd --storage-driver=vfs --iptables=false --bridge=none
until docker info; do sleep 0.2; done
tar -C /root/img -c . | docker import - localhost/box
"""
NSPAWN = "systemd-run --collect --unit=nspawn-box systemd-nspawn -q -D /var/lib/machines/box -M box /bin/flood"


class Runtime(NamedTuple):
    start: str
    restart: str
    remove: str


PODMAN = "podman --runtime=runc run -d --pids-limit=0 --network=host --name box"
RUNTIMES = {
    "docker": Runtime(
        "docker run -d --network=host --name box localhost/box flood", "docker restart -t 0 box", "docker rm -f box"
    ),
    "podman": Runtime(f"{PODMAN} localhost/box flood", "podman restart -t 0 box", "podman rm -f -t 0 box"),
    "lxc": Runtime("lxc-start box", "lxc-stop -k box; lxc-start box", "lxc-stop -k box"),
    "nspawn": Runtime(NSPAWN, f"systemctl stop nspawn-box; {NSPAWN}", "systemctl stop nspawn-box"),
}


@pytest.fixture(scope="module")
def host(network: Pair, limiter_object: str) -> Iterator[Host]:
    if not USERLAND.is_dir():
        pytest.skip("tests/userlands/bootstrap containers makes what this needs")
    with booted(network.sender, str(USERLAND)) as it:
        it.run("bash", "-ec", SET_UP)
        shutil.copyfile(limiter_object, it.path("/root/limiter.bpf.o"))
        limiter(it, "reload", "-o", "/root/limiter.bpf.o")
        yield it


def limiter(host: Host, *words: str, fails: bool = False) -> str:
    return host.run("python3", "-c", LIMITER, *words, fails=fails)


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest, host: Host, network: Pair) -> Iterator[Runtime]:
    """It runs a container that sends all it can."""
    it = RUNTIMES[request.param]
    host.run("sh", "-ec", it.start)
    yield it
    host.run("sh", "-ec", it.remove, fails=None)
    limiter(host, "purge")


def test_a_container_is_limited_and_again_when_it_restarts(host: Host, network: Pair, runtime: Runtime) -> None:
    until(lambda: share_of(network, RATE, 0.2) > 2)
    said = limiter(host, "set", "--name", "box", "-r", str(RATE), "-b", str(RATE // 10), "--container", "box")
    assert ("made anew" in said) == (runtime in (RUNTIMES["docker"], RUNTIMES["podman"]))
    assert_held(network, RATE)
    host.run("sh", "-ec", runtime.restart)
    until(lambda: share_of(network, RATE, 0.2) > 0.5)
    assert_held(network, RATE)


@pytest.mark.parametrize("runtime", ["docker", "podman"], indirect=True)
def test_one_that_is_made_anew_is_limited_by_its_cgroup_parent(host: Host, network: Pair, runtime: Runtime) -> None:
    anew = runtime.start.replace("--name", "--cgroup-parent=shop.slice --name")
    limiter(host, "set", "--name", "shop", "-r", str(RATE), "-b", str(RATE // 10), "--unit", "shop.slice")
    for _time in range(2):
        host.run("sh", "-ec", f"{runtime.remove}; {anew}")
        until(lambda: share_of(network, RATE, 0.2) > 0.5)
        assert_held(network, RATE)


@pytest.mark.parametrize("runtime", ["docker"], indirect=True)
def test_a_name_of_two_runtimes_is_refused(host: Host, runtime: Runtime) -> None:
    host.run("sh", "-ec", RUNTIMES["podman"].start)
    try:
        said = limiter(host, "set", "--name", "box", "-r", "1m", "--container", "box", fails=True)
        assert "box is the name of several containers: Docker: box " in said and "; Podman: box " in said
    finally:
        host.run("sh", "-ec", RUNTIMES["podman"].remove)
