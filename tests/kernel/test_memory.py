# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's memory and its lock, in the sandbox's own /run."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Memory, Origin
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import lock, memory
from ansible_collections.speed_limiter.ebpf.tests.support.children import child, refused

FULL = Memory(
    origins={7: Origin(123, "/system.slice/a b"), 8: Origin(2**40, "/\udcff\u00fc")},
    automatic={"pid-7": 123},
    homes={"pid-7": "/system.slice/a b"},
    last="backup",
    in_transit=(7, 8),
)
HOLD = (
    "import sys\n"
    "from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.lock import host_lock\n"
    "with host_lock(0, sys.argv[1]):\n"
    "    print('ready', flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "speed_limiter"


@pytest.fixture
def broken(directory: Path) -> Iterator[Path]:
    memory.write(FULL, str(directory))
    yield directory / "state.json"


def test_what_is_written_is_read(directory: Path) -> None:
    memory.write(FULL, str(directory))
    assert memory.read(str(directory)) == (FULL, [])
    memory.write(FULL._replace(last=None, origins={}), str(directory))
    assert memory.read(str(directory)) == (FULL._replace(last=None, origins={}), [])
    assert directory.stat().st_mode & 0o7777 == 0o700
    assert [path.name for path in directory.iterdir()] == ["state.json"]


def test_reading_touches_nothing(directory: Path) -> None:
    assert memory.read(str(directory)) == (memory.EMPTY, [])
    assert not directory.exists()


def test_what_another_boot_wrote_is_forgotten(directory: Path) -> None:
    memory.write(FULL, str(directory))
    file = directory / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "boot_id": "another"}))
    assert memory.read(str(directory)) == (memory.EMPTY, [])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "\0" * 100, "[" * 100000])
def test_a_broken_file_stops_nobody_and_is_kept(broken: Path, text: str) -> None:
    broken.write_text(text)
    read, warnings = memory.read(str(broken.parent))
    assert read == memory.EMPTY
    assert len(warnings) == 1
    assert str(broken) in warnings[0]
    assert broken.read_text() == text
    memory.write(FULL, str(broken.parent))
    assert memory.read(str(broken.parent)) == (FULL, [])
    assert (broken.parent / "state.json.broken").read_text() == text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("origins", {"7": 1}),
        ("origins", {"x": [1, "/"]}),
        ("origins", {"7": ["1", "/"]}),
        ("automatic", {"pid-7": "123"}),
        ("homes", ["/"]),
        ("last", 5),
        ("unsettled", ["7"]),
    ],
)
def test_one_value_of_a_wrong_kind_breaks_the_file(broken: Path, key: str, value: object) -> None:
    broken.write_text(json.dumps({**json.loads(broken.read_text()), key: value}))
    read, warnings = memory.read(str(broken.parent))
    assert read == memory.EMPTY
    assert "is broken" in warnings[0]


def test_a_killed_write_leaves_what_was_and_stops_nobody(directory: Path) -> None:
    memory.write(FULL, str(directory))
    (directory / "state.json.new").write_text("{")
    assert memory.read(str(directory)) == (FULL, [])
    memory.write(FULL._replace(last="other"), str(directory))
    assert memory.read(str(directory)) == (FULL._replace(last="other"), [])


def test_a_symbolic_link_as_state_is_not_followed(broken: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    broken.unlink()
    broken.symlink_to(victim)
    (broken.parent / "state.json.new").symlink_to(victim)
    assert memory.read(str(broken.parent))[0] == memory.EMPTY
    with refused("unusable_state_directory"):
        memory.write(FULL, str(broken.parent))
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("kind", ["link", "file", "group", "other", "owner"])
def test_an_unsafe_directory_is_refused(directory: Path, tmp_path: Path, kind: str) -> None:
    if kind == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        directory.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        directory.touch()
    else:
        directory.mkdir(mode=0o700)
        if kind == "owner":
            os.chown(directory, 12345, 0)
        else:
            directory.chmod(0o720 if kind == "group" else 0o702)
    for refusing in (
        lambda: memory.read(str(directory)),
        lambda: memory.write(FULL, str(directory)),
        lambda: memory.remove(str(directory)),
        lambda: lock.host_lock(0, str(directory)).__enter__(),
    ):
        with refused("unsafe_state_directory") as caught:
            refusing()
        assert str(directory) in str(caught[0])


def test_everything_of_ours_is_removed_and_nothing_else(directory: Path) -> None:
    memory.remove(str(directory))
    memory.write(FULL, str(directory))
    (directory / "foreign").touch()
    memory.remove(str(directory))
    assert [path.name for path in directory.iterdir()] == ["foreign"]
    (directory / "foreign").unlink()
    memory.remove(str(directory))
    assert not directory.exists()


# ---- the lock


def test_a_second_writer_is_told_who_holds_the_lock(directory: Path) -> None:
    with child(HOLD, str(directory)) as holder:
        with refused("locked") as caught, lock.host_lock(0, str(directory)):
            pytest.fail("two hold the lock")
        assert f"process {holder.pid} " in str(caught[0])
        assert "python" in str(caught[0])


def test_a_waiting_writer_gets_the_lock_when_it_is_free(directory: Path) -> None:
    with child(HOLD, str(directory)) as holder:
        timer = threading.Timer(0.2, holder.process.stdin.close)
        timer.start()
        with lock.host_lock(20, str(directory)):
            assert holder.process.wait(timeout=20) == 0
        timer.join()


def test_a_killed_holder_leaves_nothing_locked(directory: Path) -> None:
    with child(HOLD, str(directory)) as holder:
        os.kill(holder.pid, signal.SIGKILL)
        holder.process.wait()
        with lock.host_lock(0, str(directory)):
            assert (directory / "lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_is_free_after_an_error_too(directory: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock.host_lock(0, str(directory)):
        raise ZeroDivisionError
    with lock.host_lock(0, str(directory)):
        pass


def test_a_lock_whose_file_was_removed_meanwhile_is_not_held(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited while another run forgot everything must not hold a lock that nobody else sees."""
    real = lock._open
    opened_before = [real(str(directory))]
    memory.remove(str(directory))
    monkeypatch.setattr(lock, "_open", lambda path: opened_before.pop() if opened_before else real(path))
    with lock.host_lock(5, str(directory)):
        assert not opened_before
        with refused("locked"), lock.host_lock(0, str(directory)):
            pytest.fail("two hold the lock")
