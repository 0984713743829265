# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place that touches AnsibleModule: arguments in, one try, exit_json or fail_json out."""

from __future__ import annotations

import errno
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.respawn import has_respawned, probe_interpreters_for_module, respawn_module

from ..core.errors import LimiterError
from ..host.interpreter import importable
from ..host.root import check_root
from .argspec import Spec

Result = dict[str, t.Any]

# Where distributions put the interpreter that their python3-cffi-backend and python3-psutil belong to.
_INTERPRETERS = ["/usr/bin/python3", "/usr/libexec/platform-python", "/usr/bin/python3.11", "/usr/bin/python3.12"]


def run(work: t.Callable[[AnsibleModule], Result], spec: Spec, root: bool = True) -> None:
    """Run a module: ``work`` gets the AnsibleModule and returns the result; a LimiterError fails the task.

    ``root``: it fails at once as another user.
    """
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    try:
        if root:
            check_root()
        _respawn(_needs(module.params))
        result = work(module)
    except LimiterError as error:
        module.fail_json(msg=str(error), kind=error.kind)
    except OSError as error:
        what = error.filename or "a file of the host"
        why = f"{errno.errorcode.get(error.errno or 0, 'OSError')} ({error.strerror})"
        module.fail_json(msg=f"{what} could not be used: {why}. What was done is undone.", kind="os_error")
    for warning in result.pop("warnings", ()):
        module.warn(warning)
    module.exit_json(**result)


def diff_of(before: str, after: str) -> Result:
    return {"before": before, "after": after, "before_header": "before", "after_header": "after"}


def _needs(options: t.Mapping[str, t.Any]) -> list[str]:
    """The imports without which the module is better run by the distribution's interpreter."""
    selects = options.get("processes") or any(rule.get("processes") for rule in options.get("rules") or ())
    return ["_cffi_backend", "psutil"] if selects else ["_cffi_backend"]


def _respawn(needs: t.Sequence[str]) -> None:
    """Go on in an interpreter that has all that is needed; else in one that has at least the first, without which
    nothing works, so that the error names what is really missing.
    """
    if has_respawned():
        return
    for wanted in dict.fromkeys((tuple(needs), tuple(needs[:1]))):
        if all(importable(name) for name in wanted):
            return
        for interpreter in _INTERPRETERS:
            if all(probe_interpreters_for_module([interpreter], name) for name in wanted):
                respawn_module(interpreter)
