# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where containers are, by what the runtimes' commands printed about some that really ran, shortened.

Docker 28.2.2 (daemon 26.1.5), Podman 5.4.2, LXC 6.0.4, machinectl 257. What crictl prints is from the issues of
containerd/cri and from its protocol buffers: it was not at hand.
"""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import containers as core
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Process
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import tools
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import processes
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.containers import Containers

WEB = "276f6e22f824fde6ce9072509f1989e8ec3152c3747e25a38342b7cd2c8af001"
DOWN = "e01ab0a35052c505ce2195e0d820a23fd737d1e2cc28473a4b64c7deebe96453"
PODMANS_WEB = "c4de01f14cf8aadf60bac23481df0a55157009b89576573cfba7eb7a22bc9e09"
OWN = "b977c67b5320c5043486b37ba6fe8bd86272bef9bf5cecff036444f56292ab95"
PODS = "98ad5842a62844f62d4468c52dbfcc081a08ba25c95c842a967de7058f60dd24"
PODS_TOO = "0f8c455422a0546eb425a4fa305d5b7a0072109dff38fb94213a468ec27e680e"

DOCKER = f"""[
    {{
        "Id": "{WEB}",
        "Created": "2026-11-27T13:13:50.671412345Z",
        "Path": "/bin/sleep",
        "State": {{
            "Status": "running",
            "Running": true,
            "Pid": 434
        }},
        "Name": "/web",
        "HostConfig": {{
            "CgroupnsMode": "private",
            "CgroupParent": ""
        }}
    }},
    {{
        "Id": "{DOWN}",
        "State": {{
            "Status": "exited",
            "Running": false,
            "Pid": 0
        }},
        "Name": "/down"
    }}
]
"""
PODMAN = f"""[
     {{
          "Id": "{PODMANS_WEB}",
          "State": {{
               "OciVersion": "1.2.0",
               "Status": "running",
               "Running": true,
               "Pid": 158,
               "CgroupPath": "/machine.slice/libpod-{PODMANS_WEB}.scope"
          }},
          "Name": "web"
     }},
     {{
          "Id": "{OWN}",
          "State": {{
               "Status": "running",
               "Running": true,
               "Pid": 191
          }},
          "Name": "own",
          "HostConfig": {{
               "CgroupParent": "own.slice"
          }}
     }}
]
"""
CRICTL_PS = f"""{{
  "containers": [
    {{
      "id": "{PODS}",
      "podSandboxId": "7d1b3f0f1c5b5d1b8f5e5f5f",
      "metadata": {{
        "name": "nginx",
        "attempt": 0
      }},
      "state": "CONTAINER_RUNNING",
      "labels": {{
        "io.kubernetes.container.name": "nginx",
        "io.kubernetes.pod.name": "shop-1",
        "io.kubernetes.pod.namespace": "default"
      }}
    }},
    {{
      "id": "{PODS_TOO}",
      "metadata": {{
        "name": "nginx",
        "attempt": 1
      }},
      "state": "CONTAINER_RUNNING"
    }}
  ]
}}
"""
CRICTL_INSPECT = """{
  "status": {
    "id": "%s",
    "metadata": {
      "attempt": 0,
      "name": "nginx"
    },
    "state": "CONTAINER_RUNNING",
    "labels": {
      "io.kubernetes.pod.name": "%s",
      "io.kubernetes.pod.namespace": "default"
    }
  },
  "info": {
    "pid": %d,
    "runtimeType": "io.containerd.runc.v2"
  }
}
"""
MACHINECTL = r"""Unit=machine-my\x2dbox.scope
Leader=380
Class=container
"""
KUBEPODS = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod6ffc887b.slice"
CGROUPS = {
    434: f"/system.slice/docker-{WEB}.scope/init.scope",
    158: f"/machine.slice/libpod-{PODMANS_WEB}.scope/container",
    191: f"/own.slice/libpod-{OWN}.scope",
    500: f"{KUBEPODS}/cri-containerd-{PODS}.scope",
    501: f"{KUBEPODS}/cri-containerd-{PODS_TOO}.scope",
    359: "/lxc.payload.c1",
    380: r"/machine.slice/machine-my\x2dbox.scope/payload",
}

Answers = dict[str, t.Callable[..., "tuple[int, str, str]"]]


def docker(*names: str) -> tuple[int, str, str]:
    found = DOCKER if {"web", "down", WEB, WEB[:12]} & set(names) else "[]\n"
    return 1, found, "".join(f"Error response from daemon: No such container: {name}\n" for name in names)


def podman(*names: str) -> tuple[int, str, str]:
    return 125, PODMAN, "".join(f"Error: no such container {name}\n" for name in names)


def crictl(*words: str) -> tuple[int, str, str]:
    if words == ("ps", "--output", "json"):
        return 0, CRICTL_PS, ""
    assert words[0] == "inspect"
    return 0, CRICTL_INSPECT % ((PODS, "shop-1", 500) if words[1] == PODS else (PODS_TOO, "shop-2", 501)), ""


def lxc(*words: str) -> tuple[int, str, str]:
    assert words[0] == "--name" and words[2:] == ("--pid", "--no-humanize")
    return {"c1": (0, "359\n", ""), "c2": (0, "", "")}.get(words[1], (1, "", f"{words[1]} doesn't exist\n"))


def machinectl(*words: str) -> tuple[int, str, str]:
    assert words[0] == "show" and words[-2] == "--"
    if words[-1] == "guest":
        return 0, MACHINECTL.replace("Class=container", "Class=vm"), ""
    if words[-1] == "my-box":
        return 0, MACHINECTL, ""
    return 1, "", f"Could not get path to machine: No machine '{words[-1]}' known\n"


@pytest.fixture
def runtimes(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """The commands that are installed; more can be, and less."""
    answers: Answers = {}

    def ask(arguments: t.Sequence[str], seconds: float) -> tuple[int, str, str]:
        words = list(arguments[1:])
        if words[:3] == ["container", "inspect", "--"]:
            words = words[3:]
        return answers[arguments[0].rpartition("/")[2]](*words)

    def read(pid: int) -> Process | None:
        return Process(pid, 0, CGROUPS[pid]) if pid in CGROUPS else None

    monkeypatch.setattr(tools, "find", lambda name: f"/bin/{name}" if name in answers else None)
    monkeypatch.setattr(tools, "ask", ask)
    monkeypatch.setattr(processes, "read", read)
    monkeypatch.setattr(Cgroups, "find", lambda: Cgroups("/none"))
    monkeypatch.setattr(Cgroups, "is_roots", lambda self, cgroup: not cgroup.startswith("/users"))
    return answers


ALL: Answers = {"docker": docker, "podman": podman, "crictl": crictl, "lxc-info": lxc, "machinectl": machinectl}


def test_a_container_is_found_by_name_and_by_id(runtimes: Answers) -> None:
    runtimes.update(docker=docker)
    for name in ("web", WEB, WEB[:12]):
        place, warnings = Containers([name], tools.Patience()).cgroup("rules[0]: ", name)
        assert place == f"/system.slice/docker-{WEB}.scope"
        assert warnings == [
            f"rules[0]: containers: {name} is limited as {place}: a container that is made anew (Docker) has another "
            "cgroup, and no limit. Start it with --cgroup-parent=NAME.slice, and limit the unit NAME.slice"
        ]


@pytest.mark.parametrize(
    ("name", "place", "advice"),
    [
        ("own", f"/own.slice/libpod-{OWN}.scope", "It was started in own.slice: limit that unit instead"),
        (PODMANS_WEB, f"/machine.slice/libpod-{PODMANS_WEB}.scope", "--cgroup-parent=NAME.slice"),
        (PODS, f"{KUBEPODS}/cri-containerd-{PODS}.scope", "Limit its pod by cgroup_paths"),
        ("c1", "/lxc.payload.c1", None),
        ("my-box", r"/machine.slice/machine-my\x2dbox.scope", None),
    ],
)
def test_each_runtime_is_asked(runtimes: Answers, name: str, place: str, advice: str | None) -> None:
    runtimes.update(ALL)
    found, warnings = Containers([name, "other"], tools.Patience()).cgroup("", name)
    assert found == place
    assert [advice in warning for warning in warnings if advice] == [True] * bool(advice)
    assert bool(warnings) == bool(advice)


def test_a_name_in_two_runtimes_or_pods_is_an_error_that_names_both(runtimes: Answers) -> None:
    runtimes.update(ALL)
    for name, both in (
        ("web", f"Docker: web {WEB[:12]}; Podman: web {PODMANS_WEB[:12]}"),
        ("nginx", f"CRI: default/shop-1/nginx {PODS[:12]}; CRI: default/shop-2/nginx {PODS_TOO[:12]}"),
    ):
        with pytest.raises(LimiterError) as error:
            Containers([name], tools.Patience()).cgroup("", name)
        assert error.value.kind == "ambiguous_container" and both in str(error.value)


def test_one_container_that_two_commands_show_is_one(runtimes: Answers) -> None:
    runtimes.update(docker=podman, podman=podman)
    assert Containers(["web"], tools.Patience()).cgroup("", "web")[0] == f"/machine.slice/libpod-{PODMANS_WEB}.scope"


@pytest.mark.parametrize(("name", "runtime"), [("down", "Docker"), ("c2", "LXC")])
def test_a_stopped_one_has_no_cgroup(runtimes: Answers, name: str, runtime: str) -> None:
    runtimes.update(ALL)
    with pytest.raises(LimiterError) as error:
        Containers([name], tools.Patience()).cgroup("", name)
    assert error.value.kind == "container_not_running"
    assert f"containers: {name} does not run ({runtime})" in str(error.value)


def test_one_that_has_ended_or_is_elsewhere_is_refused(runtimes: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes.update(docker=docker)
    monkeypatch.setattr(processes, "read", lambda pid: None)
    with pytest.raises(LimiterError, match="web does not run"):
        Containers(["web"], tools.Patience()).cgroup("", "web")
    for cgroup, shown in (
        ("/", "is in /, where others may be"),
        ("/system.slice/docker.service", "is in /system.slice/docker.service, where"),
        (f"/../docker-{WEB}.scope", "is in /.."),
        (f"/system.slice/docker-{DOWN}.scope", "where others may be"),
        (f"/sys*/docker-{WEB}.scope", "where others may be"),
    ):
        process = Process(434, 0, cgroup)
        monkeypatch.setattr(processes, "read", lambda pid, process=process: process)
        with pytest.raises(LimiterError) as error:
            Containers(["web"], tools.Patience()).cgroup("", "web")
        assert error.value.kind == "shared_cgroup" and shown in str(error.value)


def test_a_virtual_machine_is_none(runtimes: Answers) -> None:
    runtimes.update(ALL)
    with pytest.raises(LimiterError) as error:
        Containers(["guest"], tools.Patience()).cgroup("", "guest")
    assert error.value.kind == "virtual_machine"


def test_an_unknown_one_is_an_error_that_says_who_was_asked(runtimes: Answers) -> None:
    runtimes.update({**ALL, "docker": lambda *names: (1, "[]\n", "Cannot connect to the Docker daemon\n")})
    with pytest.raises(LimiterError) as error:
        Containers(["web", "none"], tools.Patience()).cgroup("", "none")
    assert error.value.kind == "unknown_container"
    assert (
        "containers: none is not known on this host: docker: Cannot connect to the Docker daemon; podman: Error: no "
        "such container none; crictl: it has none; lxc-info: none doesn't exist; machinectl: Could not get path to "
        "machine: No machine 'none' known"
    ) in str(error.value)


def test_no_runtime_at_all(runtimes: Answers) -> None:
    with pytest.raises(LimiterError, match="no command of a runtime is installed .docker, podman, crictl"):
        Containers(["web"], tools.Patience()).cgroup("", "web")


def test_one_runtime_that_hangs_does_not_hide_another(runtimes: Answers) -> None:
    def hangs(*_names: str) -> tuple[int, str, str]:
        raise LimiterError("no_answer", "docker does not answer", "it was ended after 20 seconds")

    runtimes.update({**ALL, "docker": hangs})
    place, warnings = Containers(["c1"], tools.Patience()).cgroup("", "c1")
    assert place == "/lxc.payload.c1"
    assert warnings == [
        "containers: docker does not answer: it was ended after 20 seconds; its containers are not known"
    ]
    with pytest.raises(LimiterError, match="docker: it was ended after 20 seconds; podman: "):
        Containers(["none"], tools.Patience()).cgroup("", "none")


def test_a_user_who_answers_for_a_container_of_lxc_is_not_believed(
    runtimes: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket's name is free while it does not run."""
    runtimes.update({"lxc-info": lambda *words: (0, "359\n", "")})
    monkeypatch.setitem(CGROUPS, 359, "/users/delegated/lxc.payload.web")
    theirs = "a user answers for it, by process 359 in /users/delegated/lxc.payload.web: /users/delegated is not root's"
    with pytest.raises(LimiterError, match=f"containers: web does not run .LXC.: {theirs}"):
        Containers(["web"], tools.Patience()).cgroup("", "web")
    runtimes.update(docker=docker)
    place, warnings = Containers(["web"], tools.Patience()).cgroup("", "web")
    assert place == f"/system.slice/docker-{WEB}.scope"
    assert any(theirs in warning for warning in warnings)


def test_who_answers_slowly_for_one_name_hides_no_other(runtimes: Answers) -> None:
    def slow(*words: str) -> tuple[int, str, str]:
        if words[1] == "web":
            raise LimiterError("no_answer", "lxc-info does not answer", "it was ended after 2 seconds")
        return lxc(*words)

    runtimes.update({"docker": docker, "lxc-info": slow, "machinectl": machinectl})
    found = Containers(["web", "c1", "my-box"], tools.Patience())
    for name in ("c1", "my-box"):
        assert found.cgroup("", name)[1] == []
    place, warnings = found.cgroup("", "web")
    assert place == f"/system.slice/docker-{WEB}.scope"
    assert any("lxc-info does not answer" in warning for warning in warnings)


def test_nothing_is_asked_for_no_containers(runtimes: Answers) -> None:
    runtimes.update(docker=lambda *names: pytest.fail("asked"))
    Containers([], tools.Patience())


@pytest.mark.parametrize("output", ["", "nonsense", "[1]", "{}", '[{"Id": "x", "Name": "/web"}]', '[{"Id": 5}]'])
def test_what_no_runtime_prints_is_no_container(output: str) -> None:
    assert core.of_docker("Docker", ["web"], output) == {}
    assert core.of_crictl(output) == []
    assert core.listed_by_crictl(["web"], output) == {}
    assert core.of_machinectl("web", output) is None


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "../a", "a;id", "$(id)", "a\n", "a" * 300, "*"])
def test_a_name_that_no_runtime_has_is_refused(name: str) -> None:
    with pytest.raises(LimiterError) as error:
        core.check_name("rules[0]: ", name)
    assert error.value.kind == "bad_container" and str(error.value).startswith("rules[0]: containers: ")
    assert ("it is empty. Leave the option out" in str(error.value)) == (name == "")


def test_words_of_a_name_reach_no_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command gets exactly the name."""
    seen, fake = tmp_path / "seen", tmp_path / "docker"
    fake.write_text(f'#!/bin/sh\nprintf "%s|" "$@" >{seen}\n')
    fake.chmod(0o755)
    monkeypatch.setattr(tools, "find", lambda name: str(fake) if name == "docker" else None)
    Containers(["$(id);x"], tools.Patience())
    assert seen.read_text() == "container|inspect|--|$(id);x|"
