# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Python runs a module: the one that Ansible found, or another one of the host that has what is needed.

A Python that is too old for this collection reads the modules and this file. So both keep to what Python 3.6 can read,
and import nothing else of the collection before `leave_old_python`.
"""

import os
import sys
import threading
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.respawn import has_respawned, probe_interpreters_for_module, respawn_module

OLDEST = (3, 9)
_SINCE_OLDEST = "graphlib"  # the standard library has it since then
# Where distributions put the interpreter that their python3-cffi-backend and python3-psutil belong to, and newer ones.
_INTERPRETERS = ("/usr/bin/python3", "/usr/libexec/platform-python") + tuple(
    f"/usr/bin/python3.{minor}" for minor in (11, 12, 9, 10, 13, 14)
)


def elsewhere(needs: t.Sequence[str]) -> t.Optional[str]:
    """An interpreter of this host that is new enough and can import all of these."""
    for interpreter in _INTERPRETERS:
        if all(probe_interpreters_for_module([interpreter], name) for name in (*needs, _SINCE_OLDEST)):
            return interpreter
    return None


def respawn(interpreter: str) -> None:
    """The module goes on in another interpreter, and this one ends; returns where that cannot be done."""
    pipe = os.pipe

    def first() -> "tuple[int, int]":
        os.pipe = pipe
        return _roomy_pipe()

    os.pipe = first
    try:
        respawn_module(interpreter)
    except AttributeError:  # Mitogen starts modules in a way that leaves nothing by which they could be started again
        pass
    finally:
        os.pipe = pipe


def _roomy_pipe() -> "tuple[int, int]":
    """A pipe that takes all that is written before anything is read.

    Ansible's function writes the module's options into one before it starts who reads them, and the kernel's has room
    for 64 KiB: a thousand rules.
    """
    source, written = os.pipe()
    read, target = os.pipe()

    def pass_on() -> None:
        with open(source, "rb") as options:
            everything = options.read()
        with open(target, "wb") as rest:
            rest.write(everything)

    threading.Thread(target=pass_on, daemon=True).start()  # daemon: who was to read may have ended before
    return read, written


def leave_old_python() -> None:
    """Goes on in another interpreter where this one is too old, and fails where that cannot be done."""
    if sys.version_info >= OLDEST:
        return
    better = None
    if not has_respawned():
        better = elsewhere(["_cffi_backend", "psutil"]) or elsewhere(["_cffi_backend"]) or elsewhere([])
        if better is not None:
            respawn(better)
    version = ".".join(str(part) for part in sys.version_info[:3])
    remedy = f"Set ansible_python_interpreter to {better}" if better else "Install one, with cffi"
    _Refusal(argument_spec={}, supports_check_mode=True).fail_json(
        kind="old_python",
        msg=f"Python 3.9 or newer is needed on this host, and {sys.executable} is {version}. {remedy}.",
    )


class _Refusal(AnsibleModule):  # type: ignore[misc]  # ansible-core has no types
    """Whatever the options are."""

    params: t.Mapping[str, t.Any]

    def _load_params(self) -> None:
        super()._load_params()
        self.params = {name: value for name, value in self.params.items() if name.startswith("_ansible_")}
