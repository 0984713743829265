# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place that touches AnsibleModule: arguments in, one try, exit_json or fail_json out."""

from __future__ import annotations

import errno
import re
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.respawn import has_respawned
from ansible.module_utils.errors import MutuallyExclusiveError, RequiredOneOfError

from ..core.errors import LimiterError
from ..host.interpreter import importable
from ..host.root import check_root
from .argspec import Spec
from .call import Result
from .respawn import elsewhere, respawn

Options = t.Mapping[str, t.Any]

_INFINITE = re.compile("[+-]?inf(inity)?", re.IGNORECASE)

DECLARED = (MutuallyExclusiveError, RequiredOneOfError)


class _Module(AnsibleModule):  # type: ignore[misc]  # ansible-core has no types
    """An option that is null is not given; and where options exclude each other, our words say so."""

    params: Options

    def __init__(self, parse: t.Callable[[Options], object] | None, **specification: t.Any) -> None:
        self._parse, self._spec = parse, specification["argument_spec"]
        super().__init__(supports_check_mode=True, **specification)

    def _load_params(self) -> None:
        super()._load_params()
        self.params = given(self.params, self._spec)

    def fail_json(self, msg: str, **result: t.Any) -> None:
        errors = self.validation_result.errors.errors
        if errors and self._parse and all(isinstance(error, DECLARED) for error in errors):
            try:
                self._parse(self.params)
            except LimiterError as error:
                msg, result = str(error), {"kind": error.kind}
        super().fail_json(msg=msg, **result)


def given(options: t.Any, spec: Spec) -> t.Any:
    """Options as Ansible can check them: without those that are null, and with text for what its check makes tracebacks
    of: what is no dictionary where one is wanted (``processes: no``), and what is no finite number (``.inf``).
    """
    if not isinstance(options, dict):
        return options
    found = {name: _without_null(value) for name, value in options.items() if value is not None}
    for name, about in spec.items():
        if name not in found:
            continue
        value, inner = found[name], about.get("options")
        if "int" in (about.get("type"), about.get("elements")):
            found[name] = [_finite(entry) for entry in value] if isinstance(value, list) else _finite(value)
        elif inner and about.get("type") == "dict":
            found[name] = given(value, inner) if isinstance(value, dict) else str(value)
        elif inner and isinstance(value, list):
            found[name] = [given(entry, inner) for entry in value]
    return found


def _without_null(value: t.Any) -> t.Any:
    if isinstance(value, dict):
        return {key: _without_null(entry) for key, entry in value.items() if entry is not None}
    return [_without_null(entry) for entry in value] if isinstance(value, list) else value


def _finite(value: t.Any) -> t.Any:
    if not isinstance(value, (int, float, str)):
        return repr(value)
    return f"{value} (infinite)" if _INFINITE.fullmatch(str(value).strip()) else value


def run(
    work: t.Callable[[AnsibleModule], Result],
    spec: Spec,
    root: bool = True,
    parse: t.Callable[[Options], object] | None = None,
    needs: t.Sequence[str] = (),
    **checks: t.Any,
) -> None:
    """Run a module: ``work`` gets the AnsibleModule and returns the result; a LimiterError fails the task.

    ``root``: it fails at once as another user. ``checks``: what is declared of the options, as ``mutually_exclusive``;
    ``parse`` raises the LimiterError whose words are better than Ansible's. ``needs``: imports that are wanted whatever
    the options are, the first of which nothing works without.
    """
    module = _Module(parse, argument_spec=spec, **checks)
    hint = ""
    try:
        if root:
            check_root()
        hint = _find_interpreter(needs or _needs(module.params))
        result = work(module)
    except LimiterError as error:
        hint = f" {hint}" if hint and error.kind == "missing_dependency" else ""
        module.fail_json(msg=f"{error}{hint}", kind=error.kind)
    except OSError as error:
        what = error.filename or "a file of the host"
        why = f"{errno.errorcode.get(error.errno or 0, 'OSError')} ({error.strerror})"
        module.fail_json(msg=f"{what} could not be used: {why}. What was done is undone.", kind="os_error")
    for warning in [*result.pop("warnings", ()), *([hint] if hint else [])]:
        module.warn(warning)
    module.exit_json(**result)


def _needs(options: t.Mapping[str, t.Any]) -> list[str]:
    """The imports without which the module is better run by the distribution's interpreter."""
    selects = options.get("processes") or any(rule.get("processes") for rule in options.get("rules") or ())
    return ["_cffi_backend", "psutil"] if selects else ["_cffi_backend"]


def _find_interpreter(needs: t.Sequence[str]) -> str:
    """Go on in an interpreter that has all that is needed; else in one that has at least the first, without which
    nothing works, so that the error names what is really missing.

    Returns what belongs to such an error where there is one, and the module cannot go on in it.
    """
    if has_respawned():
        return ""
    for wanted in dict.fromkeys((tuple(needs), tuple(needs[:1]))):
        if all(importable(name) for name in wanted):
            return ""
        interpreter = elsewhere(wanted)
        if interpreter is not None:
            respawn(interpreter)
            return (
                f"{interpreter} has what is missing here: set ansible_python_interpreter to it, since this task could "
                "not go on in it by itself."
            )
    return ""
