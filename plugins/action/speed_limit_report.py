# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of the playbook `report`, written on the controller from what it has registered of the hosts."""

from __future__ import annotations

import contextlib
import datetime
import os
import tempfile
import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report import page, text
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report.fleet import FAILURES, Fleet
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report.hosts import Answers, Host, read

FORMS: dict[str, t.Callable[[Fleet], str]] = {"text": text.render, "json": page.as_json, "html": page.render}


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core has no types
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True  # it reports, whatever the hosts may not change
    _supports_async = False

    def run(self, tmp: object = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        variables = task_vars or {}
        super().run(tmp, variables)
        _result, options = self.validate_argument_spec(
            argument_spec={
                **{form: {"type": "str"} for form in FORMS},
                "fail": {"type": "list", "elements": "str", "choices": list(FAILURES), "default": []},
            }
        )
        hosts = [self._host(name, variables["hostvars"]) for name in variables["ansible_play_hosts_all"]]
        now = datetime.datetime.now(datetime.timezone.utc)
        fleet = Fleet(hosts, now.strftime("%Y-%m-%dT%H:%M:%SZ"))
        files = {form: os.path.abspath(os.path.expanduser(options[form])) for form in FORMS if options[form]}
        shown = text.render(fleet)
        for form, path in files.items():
            content = shown if form == "text" else FORMS[form](fleet)
            try:
                _write(path, content)
            except OSError as error:
                why = f"the report {path} cannot be written: {error.strerror}."
                told = f"{why} Give a path in a directory that exists."
                return {"changed": False, "failed": True, "kind": "cannot_write", "msg": told}
        return {
            "changed": False,
            "summary": fleet.summary(),
            "files": files,
            "lines": shown.splitlines()[:24],
            "failure": fleet.why_failed(options["fail"]),
        }

    def _host(self, name: str, hostvars: t.Any) -> Host:
        # As it was registered: nothing that a host has sent is taken for a template.
        raw = hostvars.raw_get(name)
        answers = Answers(*(raw.get(f"speed_limiter_{key}") for key in ("seen", "compared", "named")))
        host = read(name, answers)
        if host.state != "unreachable":
            return host
        address = name
        # Only here, since it takes long: the inventory may well have a template for it.
        with contextlib.suppress(Exception):
            address = hostvars[name].get("ansible_host", name)
        return read(name, answers._replace(address=address))


def _write(path: str, content: str) -> None:
    """Whoever reads the file meanwhile, or after a kill, has the former one or the whole new one."""
    # A name that nobody knows before, so that nobody can have put a link there.
    fd, unfinished = tempfile.mkstemp(dir=os.path.dirname(path), prefix=f".{os.path.basename(path)}.")
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise
