# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection's modules, run in a process that sees the host, or is seen by the kernel, in another way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# A virtual machine of virtme-ng's is gone after the tests, and its kernel with it.
MAY_BE_SPOILED = "virtme" in Path("/proc/cmdline").read_text()

_CALL = """
import errno, sys
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
try:
    print(limiter.{call})
except LimiterError as error:
    sys.exit(f"{{error.kind}}: {{error}}")
except OSError as error:  # as front/task.py tells it
    sys.exit(f"os_error: {{error.filename}} could not be used: {{errno.errorcode[error.errno]}}")
"""


def in_container(mount: str, cgroup: Path, *also: str) -> list[str]:
    """Runs what follows with this cgroup as its root, a /run/speed_limiter of its own, and what ``also`` mounts."""
    mounts = [
        f"umount -l {mount}",
        f"mount -t cgroup2 cgroup2 {mount}",
        "mount -t tmpfs -o mode=0755 tmpfs /run/speed_limiter",
        *also,
    ]
    join = ["sh", "-ec", f'echo $$ >{cgroup}/cgroup.procs; exec "$0" "$@"']
    own = ["unshare", "--mount", "--cgroup", "--propagation", "private"]
    return [*join, *own, "sh", "-ec", f'{"; ".join(mounts)}; exec "$0" "$@"']


def run(prefix: list[str], call: str) -> tuple[int, str]:
    """Runs ``limiter.<call>`` behind a command that ends with running its arguments; exit code and what it printed,
    an error as ``kind: text``.
    """
    done = subprocess.run(
        [*prefix, sys.executable, "-c", _CALL.format(call=call)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


def said(prefix: list[str], call: str) -> str:
    """What a module that succeeds returned, as text."""
    code, text = run(prefix, call)
    assert code == 0, text
    return text


def error_of(prefix: list[str], call: str) -> str:
    """The error of a module that fails, as ``kind: text``."""
    code, text = run(prefix, call)
    assert code != 0, text
    return text
