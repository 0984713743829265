# SPDX-License-Identifier: GPL-3.0-or-later
"""The project's kernel tests. Found: how many there were, passed, were skipped, and the names of those that failed."""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree
from typing import Any

from ansible_collections.speed_limiter.ebpf.tests.vm.steps.step import Step, Wrong, main, running


def work(step: Step) -> None:
    report = step.directory / "junit.xml"
    report.unlink(missing_ok=True)
    plugins = ["-p", "no:cacheprovider", "-p", "pytest_timeout"]
    command = [sys.executable, "-m", "pytest", *plugins, "-v", "--tb=short", f"--junitxml={report}"]
    command += step.options["pytest"]
    shared = step.options["shared_object"]
    # Compiling takes a guest a minute; a full run does it all the same.
    ours = {"LIMITER_OBJECT": shared} if step.options["quick"] and os.path.exists(shared) else {}
    # hypothesis, which these tests do without, takes a guest ten seconds to import.
    plain = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with running(command, {**os.environ, **ours, **plain}) as process:
        assert process.stdout
        for line in process.stdout:
            print(line.rstrip(), flush=True)
    if report.exists():
        step.found.update(counted(xml.etree.ElementTree.parse(report).getroot()))
    if process.returncode or not step.found.get("passed"):
        failed = step.found.get("failed", [])
        raise Wrong(f"{len(failed)} tests failed, pytest ended with {process.returncode}: {', '.join(failed)}")


def counted(root: xml.etree.ElementTree.Element) -> dict[str, Any]:
    failed, skipped, tests = [], {}, 0
    for case in root.iter("testcase"):
        tests += 1
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        kinds = {child.tag: child.get("message", "") for child in case}
        if kinds.keys() & {"failure", "error"}:
            failed.append(name)
        elif "skipped" in kinds:
            skipped[name] = kinds["skipped"]
    passed = tests - len(failed) - len(skipped)
    return {"tests": tests, "passed": passed, "skipped": skipped, "failed": failed}


main("tests", work)
