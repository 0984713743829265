# SPDX-License-Identifier: GPL-3.0-or-later
"""What was found, as a table on the terminal and as docs/kernels.md, which is made of docs/kernels/*.json alone."""

from __future__ import annotations

import collections
import functools
import json
import subprocess
import time
from typing import Any

from ..support import records
from .distance import aims
from .distance import report as distance
from .machine import CHECKOUT
from .world import bounds
from .world import report as world

STORED = CHECKOUT / "docs/kernels"
PAGE = CHECKOUT / "docs/kernels.md"
# Of the steps that have cells: what none may do.
VIOLATED = {"distance": aims.violated, "world": bounds.violated}

Results = dict[str, dict[str, Any]]


def passed(results: Results, steps: list[str]) -> bool:
    """Whether every step on every kernel was run and was as it should be."""
    return all(not why(result, step) for result in results.values() for step in steps)


def why(result: dict[str, Any], step: str) -> str | None:
    """Why a step failed; a step that was not run has failed."""
    if result["wrong"]:
        return str(result["wrong"])
    found = result["steps"].get(step)
    return "it was not run" if found is None else found.get("wrong")


def table(results: Results, steps: list[str]) -> str:
    """Kernel x step, and below it a line for each failure."""
    rows = [["kernel", "release", *steps]]
    rows += [
        [name, result.get("release", "-"), *(cell(result, step) for step in steps)] for name, result in results.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["", *("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)]
    failures = {
        f"{name}: {why(result, step)}" for name, result in results.items() for step in steps if why(result, step)
    }
    return "\n".join([*lines, *(f"FAILED {failure}" for failure in sorted(failures))])


def cell(result: dict[str, Any], step: str) -> str:
    """One step on one kernel, in a few words."""
    if why(result, step):
        return "FAILED"
    found = result["steps"][step]
    counts = f"{found['passed']} of {found['tests']}" if step == "tests" else "passed"
    return f"{counts}, {found['seconds']} s"


# ---- docs/kernels.md


def store(results: Results) -> None:
    """Keeps what was found, each step with when and of which commit; what was not run now stays as it was."""
    STORED.mkdir(exist_ok=True)
    run = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit()}
    for name, result in results.items():
        if result["wrong"]:
            continue  # it could not be fetched, which says nothing of the kernel
        path = STORED / f"{name}.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"steps": {}}
        kept.update(release=result["release"], package=result["package"])
        for step, found in result["steps"].items():
            stamp = {**run, "release": result["release"]}
            if found.get("wrong"):
                # Where the checkout is, is nobody's business.
                found = {**found, "wrong": found["wrong"].replace(f"{CHECKOUT}/", "")}
            earlier = kept["steps"].get(step, {}).get("cells", [])
            kept["steps"][step] = {**found, **stamp}
            # Also where the step left no result.
            now = [{**cell, **stamp} for cell in found.get("cells", [])]
            if cells := merged(earlier, now):
                kept["steps"][step].update(cells=cells, wrong=_wrong(step, found.get("wrong"), cells, now))
        path.write_text(records.dumps(kept) + "\n", encoding="utf-8")


def merged(earlier: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells, of which those that were measured now take the place of the same ones."""
    now = {(cell["place"], cell["shaper"]): cell for cell in found}
    before = {(cell["place"], cell["shaper"]): cell for cell in earlier}
    return list({**before, **now}.values())


def _wrong(step: str, said: str | None, cells: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    """Why the step failed; what an earlier run measured has not become right by not being measured again."""
    kept = [cell for cell in cells if cell not in now]
    wrong = [f"{cell['place']} {cell['shaper']}: {why}" for cell in kept if (why := VIOLATED[step](cell))]
    return "; ".join([*([said] if said else []), *wrong])


@functools.cache
def commit() -> str:
    """What is tested: the commit, and whether files but texts differ from it. A run asks when it begins, and its guests
    have the files of then.
    """
    git = ["git", "-c", "safe.directory=*", "-C", str(CHECKOUT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    status = [*git, "status", "--porcelain", "--", ".", ":!docs", ":!*.md"]
    changed = subprocess.run(status, capture_output=True, text=True, check=False)
    return (head.stdout.strip() or "unknown") + (" with changes" if changed.stdout or changed.returncode else "")


def write() -> None:
    """docs/kernels.md, from all that is kept."""
    kept = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in STORED.glob("*.json")}
    ordered = dict(sorted(kept.items(), key=lambda pair: [int(part) for part in pair[1]["release"].split(".")[:2]]))
    PAGE.write_text(page(ordered), encoding="utf-8")


def page(kept: dict[str, Any]) -> str:
    """The whole page. ``kept``: what `store` wrote, by the kernel's name."""
    parts = [HEAD, "## Steps\n", markdown(steps_table(kept)), *failures(kept), "## Programs\n", PROGRAMS]
    for origin in dict.fromkeys(origin for one in kept.values() for origin in objects(one)):
        parts += [f"The object {origin if origin != 'built here' else 'that each kernel built for itself'}:\n"]
        parts += [markdown(programs_table(kept, origin))]
    parts += ["## Tests that a kernel cannot run\n", *skipped(kept)]
    for step, section in (("world", world.section), ("distance", distance.section)):
        if measured := {name: one["steps"][step] for name, one in kept.items() if step in one["steps"]}:
            parts.append(section(measured))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


HEAD = """<!-- SPDX-License-Identifier: GPL-3.0-or-later -->
<!-- Generated by `make test-kernels` from docs/kernels/*.json; `tests/vm/run --report-only` writes it again. -->
# On which kernels it was tried, and what came of it

What an older kernel lacks, the collection does without:

| before Linux | what is different |
| --- | --- |
| 6.12 | connections that are older than their rule are not paced: the token bucket alone limits them |
| 6.1 | when a rule goes, connections are released within two round trips of their own instead of at once |
| 5.15 | who uses net_cls or net_prio of cgroup v1 ends all limits of new connections; every task [says so][lost] |

[lost]: limits.md#new-connections-are-not-limited

`make test-kernels` boots kernels of Debian's suites in virtual machines (virtme-ng and QEMU, two processors; what is
below was measured without KVM) on the userland of the machine that it runs on, and runs in each:

- *object*: the role `setup` builds the object there, and it loads; so does the same file that it built on the oldest
  kernel.
- *playbook*: the role and a rules task on localhost, beside a process that sends: check mode foretells and touches
  nothing, the rule limits, a second run changes nothing, and a purge leaves nothing.
- *tests*: all of `tests/kernel`.
- *soak*: random rule tasks, kills, reloads, forks, cgroups that come and go, and traffic, for an hour; after each step
  maps, cgroups and pins must agree, nothing may have passed unlimited, and counters may not have gone back.
- *distance*: TCP over netem, from 5 to 200 ms away. A cell is one limit, number of connections, round trip and
  congestion control, under one shaper.
- *world*: requests, pages and connections that come and go, a cell of each kind.
"""

PROGRAMS = """Instructions that the verifier walked (the kernel gives up at 1,000,000), bytes of the program as the
kernel keeps it, and bytes of machine code. *Not here*: the kernel refuses it, and the collection does without. *Not
measured*: the commit that was tried there, in the table above, had no such program.
"""


def markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]) + "\n"


def steps_table(kept: dict[str, Any]) -> list[list[str]]:
    names = list(dict.fromkeys(step for one in kept.values() for step in one["steps"]))
    rows = [["kernel", "package", *names]]
    for name, one in kept.items():
        row = [f"{name}: {one['release']}", one["package"]]
        for step in names:
            found = one["steps"].get(step)
            row.append(f"{said(step, found)}; {of_what(one, found)}" if found else "not run yet")
        rows.append(row)
    return rows


def of_what(one: dict[str, Any], found: dict[str, Any]) -> str:
    """When, of which commit, and of which release where that is not the newest that was tried. Cells have their own."""
    parts = found.get("cells", [found])
    dates = sorted({part["date"] for part in parts})
    commits = [part["commit"] for part in parts]
    older = [f"on {part['release']}" for part in parts if part["release"] != one["release"]]
    counted = [*_counted(commits, len(parts)), *_counted(older, len(parts))]
    return ", ".join([" to ".join(dict.fromkeys([dates[0], dates[-1]])), *counted])


def _counted(values: list[str], of: int) -> list[str]:
    """Each value, and how many have it where not all do."""
    return [value if number == of else f"{number} {value}" for value, number in collections.Counter(values).items()]


def said(step: str, found: dict[str, Any]) -> str:
    if found.get("wrong"):
        return "**failed**"
    if step == "tests":
        return f"{found['passed']} passed, {len(found['skipped'])} not for this kernel"
    if step == "soak":
        return f"{found['soaked']} steps in {found['minutes']} minutes, 0 violations"
    if "planned" in found:
        return f"{len(found['cells'])} of {found['planned']} cells"
    return "passed"


def failures(kept: dict[str, Any]) -> list[str]:
    return [
        f"- {name}, {step}: {found['wrong']}"
        for name, one in kept.items()
        for step, found in one["steps"].items()
        if found.get("wrong")
    ]


def objects(one: dict[str, Any]) -> list[str]:
    """The origins of the objects that a kernel was given."""
    return [key for key, value in one["steps"].get("object", {}).items() if isinstance(value, dict)]


def programs_table(kept: dict[str, Any], origin: str) -> list[list[str]]:
    columns = {name: one["steps"].get("object", {}).get(origin) for name, one in kept.items()}
    columns = {name: programs for name, programs in columns.items() if programs}
    names = list(dict.fromkeys(program for programs in columns.values() for program in programs))
    rows = [["program", *columns]]
    for program in names:
        row = [f"`{program}`"]
        for programs in columns.values():
            one = programs.get(program, {})
            # Of an earlier commit, there may have been no such program.
            refused = "not here" if one is None else "not measured"
            row.append(f"{one['instructions']:,}; {one['xlated']:,} B; {one['jited']:,} B" if one else refused)
        rows.append(row)
    return rows


def skipped(kept: dict[str, Any]) -> list[str]:
    """How many, by their reason."""
    lines = []
    for name, one in kept.items():
        reasons: dict[str, int] = {}
        for reason in one["steps"].get("tests", {}).get("skipped", {}).values():
            reasons[reason] = reasons.get(reason, 0) + 1
        lines += [f"- {name}: {number}: {reason}" for reason, number in sorted(reasons.items())]
    return lines or ["None."]
