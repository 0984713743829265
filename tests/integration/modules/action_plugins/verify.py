# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold for every module and every step that was run four times: check, real, real again, check again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ansible.plugins.action import ActionBase

Facts = dict[str, Any]

# Of the run, not of the answer.
_ASIDE = ("invocation", "failed", "failed_when_result", "deprecations", "exception", "changed", "diff")


class ActionModule(ActionBase):
    """Arguments: ``results`` (four), ``states`` (five: before the first and after each), ``changes`` (whether the first
    real run changes something), ``repeats`` (and so does each later one), ``fails`` (regular expression of the error),
    ``real_warns`` (regular expression of what check mode can't foretell).
    """

    def run(self, tmp: None = None, task_vars: Facts | None = None) -> Facts:
        super().run(tmp, task_vars)
        wrong = list(problems(**{key: plain(value) for key, value in self._task.args.items()}))
        return {"changed": False, "failed": bool(wrong), "msg": "\n".join(wrong) or "as it should be"}


def plain(value: Any) -> Any:
    """Without the types that Ansible gives to values, which have equalities of their own."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, str) else value


def problems(
    results: list[Facts], states: list[Facts], changes: bool, repeats: bool, fails: str, real_warns: str
) -> Iterator[str]:
    check, real, again, check_again = results
    before, after_check, after, after_again, after_check_again = states
    if real_warns:
        warnings = real["warnings"]
        real["warnings"] = [warning for warning in warnings if not re.search(real_warns, warning)]
        if warnings == real["warnings"]:
            yield f"no warning matches {real_warns!r}: {warnings}"
    yield from differences("check mode changed the host", before, after_check)
    yield from differences("check mode changed the host, afterwards", after_again, after_check_again)
    if fails:
        for run, result in zip(("check", "real", "real again", "check again"), results):
            if not re.search(fails, result.get("msg", "")):
                yield f"{run}: should have failed with {fails!r}: {result}"
        if len({(result.get("msg"), result.get("kind")) for result in results}) != 1:
            yield f"the errors differ: {[result.get('msg') for result in results]}"
        yield from differences("what failed changed the host", settled(before), settled(after))
        yield from differences("what failed again changed the host", settled(after), settled(after_again))
        return
    changed = [result["changed"] for result in results]
    if changed != [changes, changes, repeats, repeats]:
        yield f"changed is {changed} in check, real, real again, check again"
    if not repeats:
        yield from differences("the second real run changed the host", settled(after), settled(after_again))
    if not changes:
        yield from differences("not changed, but the host was", settled(before), settled(after))
    for what, foretold, done in (("first", check, real), ("second", check_again, again)):
        if foretold.get("diff") != done.get("diff"):
            yield f"{what} runs: check mode's diff is not the real one: {foretold.get('diff')} {done.get('diff')}"
        diff = done.get("diff", {"before": changed, "after": not changed})
        if done["changed"] and not repeats and diff["before"] == diff["after"]:
            yield f"{what} runs: changed, but the diff is empty"
        if not done["changed"] and "diff" in done and diff["before"] != diff["after"]:
            yield f"{what} runs: not changed, but there is a diff: {diff}"
        yield from differences(f"{what} runs: check mode does not foretell", answer(done), answer(foretold, done))
    yield from untrue(real, before, after)
    yield from untrue(again, after, after_again)


def differences(what: str, one: Facts, other: Facts) -> Iterator[str]:
    for key in sorted({*one, *other}):
        if one.get(key) != other.get(key):
            yield f"{what}: {key} was {one.get(key)}, is {other.get(key)}"


def settled(state: Facts) -> Facts:
    """Without the generation of members: every real run counts it up, since an earlier one may have been killed before
    it did.
    """
    return {key: value for key, value in state.items() if key != "generation"}


def answer(result: Facts, real: Facts | None = None) -> Facts:
    """What a module returned, without counters, which run on; ids that check mode can't know are the real run's."""
    known = {key: value for key, value in result.items() if key not in _ASIDE}
    known["warnings"] = known.get("warnings", [])
    if isinstance(known.get("skipped_processes"), list):  # every task has processes of its own
        known["skipped_processes"] = sorted(skipped["reason"] for skipped in known["skipped_processes"])
    for path, rule in rules_in(known):
        rule["counters"] = sorted(rule["counters"] or ())
        if real is not None and rule["cgroup_id"] is None:
            rule["cgroup_id"] = dict(rules_in(real)).get(path, {}).get("cgroup_id")
    return known


def rules_in(result: Facts) -> Iterator[tuple[str, Facts]]:
    """Every rule that a module returned, and where."""
    found = {place: result.get(place) for place in ("rule", "rules", "previous")}
    found["removed"] = result.get("removed", {}).get("rules")
    for place, rules in found.items():
        for rule in [rules] if isinstance(rules, dict) else rules or []:
            yield f"{place} {rule['name']}", rule


def untrue(result: Facts, before: Facts, after: Facts) -> Iterator[str]:
    """Returned rules must be what the kernel has; null is what could not be looked at."""
    for path, rule in rules_in(result):
        kernel = (before if path.startswith(("previous", "removed")) else after)["rules"].get(rule["name"], {})
        said = {
            "id": rule["cgroup_id"],
            "rate": rule["rate"],
            "bucket": rule["bucket"],
            "members": rule["members"] and sorted(rule["members"]),
            "pids": rule["pids"],
        }
        known = {key: value for key, value in said.items() if value is not None}
        if known != {key: kernel.get(key) for key in known}:
            yield f"returned {path}: {said}, but the kernel has {kernel}"
        if not rule["cgroup_path"].endswith(f"/speed_limiter/{rule['name']}"):
            yield f"returned {path}: cgroup_path is {rule['cgroup_path']}"
