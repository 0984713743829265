# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet that is not there: what its hosts would answer to the playbook `report`, always the same for one number.

tests/support/fleet.py HOSTS INVENTORY      writes an inventory whose hosts have these answers as their variables
"""

from __future__ import annotations

import json
import random
import sys
import typing as t
from pathlib import Path

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.rates import show_rate

Answer = dict[str, t.Any]

RULES = {
    "backup": 20_971_520,
    "mirror": 2_500_000,
    "logs": 1_250_000,
    "sync": 12_500_000,
    "builds": 62_500_000,
    "users": 2_500_000,
}
EACH = {"users": 12}  # rules of which each cgroup has the rate for itself, and how many send
KERNELS = ("6.1.0-28-amd64", "6.12.41+deb13-amd64", "5.10.0-33-amd64")
NOT_PACED = "pacing is switched off: speed_limit_program with pacing=true switches it on"
LOST = (
    "new connections are not limited: after a program has used net_cls or net_prio of cgroup v1, a kernel before 5.15 "
    "(5.10.0-33-amd64) takes all new sockets for the root cgroup's. Boot again, or run a newer kernel."
)
# Names that a page or a terminal must not obey.
HOSTILE = (
    "<script>alert('name')</script>",
    "</script><img src=x onerror=alert(1)>",
    "{{ lookup('pipe', 'touch /tmp/obeyed') }}",
    "-->&lt;&amp;<!--\u2028\u2029",
    "green\x1b[32m\u202egnp.exe",
)


def line(name: str, rate: int | None, processes: int = 2) -> str:
    if rate is None:
        return f"{name}: absent"
    return f"{name}: {show_rate(rate)}, bucket {rate} B, {processes} processes"


def rule(name: str, rate: int, dice: random.Random, paced: bool) -> Answer:
    part = min(1.0, dice.betavariate(0.6, 0.9))
    packets = int(part * 4_000_000)
    dropped = int(packets * dice.choice((0, 0, 0, 0.0002, 0.004)))
    return {
        "name": name,
        "rate": rate,
        "bucket": rate,
        "each": name in EACH,
        "cgroup_path": f"/sys/fs/cgroup/speed_limiter/{name}",
        "cgroup_id": 4217,
        "members": [f"/sys/fs/cgroup/speed_limiter/{name}"],
        "pids": [1234, 1235],
        "persistent": True,
        "counters": {
            "packets": packets,
            "bytes": packets * 1400,
            "dropped_packets": dropped,
            "dropped_bytes": dropped * 1400,
            "congestion_marks": 12,
            "drops": {"unknown": 0, "empty": dropped},
            "notices": {"ahead": 12},
        },
        "pacing": {
            "mode": "paced" if paced else "token_bucket",
            "reason": None if paced else NOT_PACED,
            "active_connections": 4,
            "unpaced_connections": 0,
            "waiting_connections": 3,
            "fair_share": rate // 4,
            "longest_round_trip_us": 850,
        },
        "use": {
            "rate": int(part * rate * EACH.get(name, 1)),
            "utilization": round(part, 3),
            "binds": part > 0.95,
            "waiting_elsewhere": 0,
            "reason": None,
        },
    }


def host(name: str, number: int, dice: random.Random) -> Answer:
    """The variables that the playbook registers for a host; 3 in 100 are not as wanted, one in each way."""
    names = dice.sample(sorted(RULES), dice.randint(2, 5))
    kernel = dice.choices(KERNELS, (70, 25, 5))[0]
    rules = [rule(found, RULES[found], dice, paced=number % 97 != 3) for found in names]
    seen: Answer = {
        "changed": False,
        "unseen": [],
        "boot": {"problems": []},
        "host": {"kernel": kernel, "missing": []},
        "rules": rules,
    }
    compared: Answer = {
        "changed": False,
        "failed": False,
        "rules": [],
        "previous": [],
        "program_actions": [],
        "unenforced": [],
        "diff": {"before": "", "after": ""},
    }
    first, rate = names[0], RULES[names[0]]
    way = number % 200
    if way in (5, 6, 7):
        seen["rules"][0]["rate"] = 1_073_741_824
        seen["rules"][0]["use"]["utilization"] = round(seen["rules"][0]["use"]["utilization"] * rate / 1_073_741_824, 3)
        compared.update(rules=[{"name": first}], previous=[{"name": first}], changed=True)
        compared["diff"] = {"before": line(first, 1_073_741_824) + "\n", "after": line(first, rate) + "\n"}
    elif way == 8:
        seen["rules"] = []
        compared.update(
            rules=[{"name": found} for found in names], program_actions=["loaded limiter.bpf.o"], changed=True
        )
        compared["diff"] = {
            "before": "program: not loaded\n" + "".join(f"{line(found, None)}\n" for found in sorted(names)),
            "after": "program: loaded\n" + "".join(f"{line(found, RULES[found], 0)}\n" for found in sorted(names)),
        }
    elif way == 9:
        compared["unenforced"] = [LOST]
        seen["host"]["kernel"] = KERNELS[2]
    elif way == 10:
        compared = {"failed": True, "kind": "no_btf", "msg": "the kernel (4.19.0) does not describe its types"}
        seen.update(
            rules=[], host={"kernel": "4.19.0-27-amd64", "missing": ["/sys/kernel/btf/vmlinux does not exist."]}
        )
    elif way == 11:
        compared = {"failed": True, "kind": "bad_rate", "msg": "rules[0]: rate: '5mb' is not a rate: a number, or 5m"}
    elif way == 12:
        lost = f"Failed to connect to the host via ssh: ssh: connect to host {name} port 22: No route to host"
        return {"speed_limiter_seen": {"unreachable": True, "msg": lost}, "speed_limiter_named": names}
    elif way == 13:
        seen["rules"].append({**rule("test-of-tuesday", 1_250_000, dice, paced=True), "persistent": False})
    return {"speed_limiter_seen": seen, "speed_limiter_compared": compared, "speed_limiter_named": names}


def answers(number: int, hostile: bool = True) -> dict[str, Answer]:
    """The hosts of a fleet by their names; of the last ones, no name and no message is harmless."""
    dice = random.Random(number)
    kinds = ("db", "web", "cache", "build", "mail")
    fleet = {f"{kinds[index % 5]}-{index:05}.example.org": index for index in range(number - len(HOSTILE) * hostile)}
    found = {name: host(name, index, dice) for name, index in fleet.items()}
    for name in HOSTILE if hostile else ():
        found[name] = host(name, 0, dice)
        found[name]["speed_limiter_compared"] = {"failed": True, "msg": f"{name}\nsaid the host"}
        found[name]["speed_limiter_seen"]["rules"][0]["name"] = name
    return found


def main() -> None:
    inventory = {"all": {"hosts": answers(int(sys.argv[1]), hostile=False)}}
    Path(sys.argv[2]).write_text(json.dumps(inventory), encoding="utf-8")


if __name__ == "__main__":
    main()
