#!/usr/bin/python
# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
DOCUMENTATION = r"""
module: speed_limit_program
short_description: Load, upgrade, move or unload the program that limits bandwidth
version_added: 0.1.0
description:
  - Builds the BPF object on the host where its source, the compiler, the kernel's BTF or the architecture changed, and
    loads it where
    another program runs, or none.
  - The running program is replaced in one step of the kernel. Rules, tokens and counters stay, and no packet is
    unlimited meanwhile.
author:
  - Speed Limiter contributors (@speed-limiter)
extends_documentation_fragment:
  - speed_limiter.ebpf.common
attributes:
  idempotent:
    support: partial
    details:
      - O(state=reloaded) loads the program again each time.
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no
      change.
options:
  state:
    description:
      - V(present) builds and loads only what differs.
      - V(reloaded) loads the program again in any case.
      - V(absent) unloads it. While there are rules, a warning names those that are no longer enforced, and their maps
        stay, so that loading
        the program enforces them again.
    type: str
    choices: [present, absent, reloaded]
    default: present
  object:
    description:
      - An object file on the managed node that was built elsewhere. No compiler is needed then.
    type: path
  cgroup_path:
    description:
      - The cgroup that the program is attached to, as an absolute path or as C(/proc/PID/cgroup) shows it; rules limit
        what is below it.
      - The program is attached to a new place before it leaves the old one.
    type: str
    default: /
  pacing:
    description:
      - Whether TCP connections are paced at their fair share of the rule, which needs no queue and drops nothing.
        Without it, and for all that is not TCP, the token bucket alone limits.
      - Where the kernel refuses it, a warning says why, and the token bucket alone limits. It is tried again when
        something differs, and with O(state=reloaded).
      - When it is switched off, connections get back the rate that they had of their own. A rule that finds no program,
        after a reboot say, loads it with the defaults, so run this module first where they are not wanted.
    type: bool
    default: true
  departure:
    description:
      - Whether packets that the limit has no room for wait, where their device has the queueing discipline C(fq), until
        the limit has room. Datagrams wait for 50 ms at most, TCP for less than its shortest timer.
      - With V(off), and on every other device, they are dropped. Queueing disciplines are never changed.
      - It is switched without loading the program again.
    type: str
    choices: [auto, "off"]
    default: auto
seealso:
  - module: speed_limiter.ebpf.speed_limit_info
    description: What is limited on a host, by which rule, and what the host lacks.
  - module: speed_limiter.ebpf.speed_limit_purge
    description: Takes back what this collection has made.
"""

EXAMPLES = r"""
- name: Build the program if it must be, and load it
  speed_limiter.ebpf.speed_limit_program:
  register: loaded

- name: Tell where TCP is not paced, and why
  ansible.builtin.debug:
    msg: "{{ loaded.program.pacing.reason }}"
  when: loaded.program.pacing.state != 'on'

- name: Load an object that was built on another host
  speed_limiter.ebpf.speed_limit_program:
    object: /usr/lib/speed_limiter/limiter.bpf.o

- name: Limit by dropping alone
  speed_limiter.ebpf.speed_limit_program:
    pacing: false

- name: Drop what a limit has no room for, on devices with fq, too
  speed_limiter.ebpf.speed_limit_program:
    departure: "off"

- name: Unload the program
  speed_limiter.ebpf.speed_limit_program:
    state: absent
"""

RETURN = r"""
program:
  description: The program that is loaded, or would be. Null where none is.
  type: dict
  returned: success
  contains:
    identity:
      description: What the program was built from, or the hash of the object file.
      type: str
      returned: success
      sample: source:0a1b2c3d4e5f
    cgroup:
      description: The cgroup that it is attached to.
      type: str
      returned: success
      sample: /
    pacing:
      description:
        - Whether TCP connections are paced at their fair share of their rule.
        - In check mode what can be known of it without attaching.
      type: dict
      returned: success
      sample: {state: "on", reason: null, open_connections: true, open_connections_reason: null}
      contains:
        state:
          description: V(on), V(off) where it is switched off, or V(refused) by the kernel.
          type: str
          returned: success
          sample: "on"
        reason:
          description: Why not, in words. Null where they are.
          type: str
          returned: success
          sample: "pacing is switched off: speed_limit_program with pacing=true switches it on"
        open_connections:
          description:
            - Whether connections that are open follow each change of a rule at once, which needs Linux 6.1. Elsewhere
              they are released within two round trips of their own.
          type: bool
          returned: success
          sample: true
        open_connections_reason:
          description: Which of them do not follow at once, and why, where connections are paced; or null.
          type: str
          returned: success
          sample: "the kernel refuses settle_sockets: the warning of speed_limit_program with state=reloaded says why"
    departure:
      description: O(departure) as it is then.
      type: str
      returned: success
      sample: auto
actions:
  description: What was done, or would be.
  type: list
  elements: str
  returned: success
  sample: ["built /usr/lib/speed_limiter/limiter.bpf.o", "loaded /usr/lib/speed_limiter/limiter.bpf.o, attached to /"]
unenforced_rules:
  description: Rules that are no longer enforced after O(state=absent).
  type: list
  elements: str
  returned: success
  sample: [backup]
"""

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.respawn import leave_old_python


def main() -> None:
    """The rest is imported only now: an old Python can read this file, and not the rest."""
    leave_old_python()
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.modules.program import main as go_on

    go_on()


if __name__ == "__main__":
    main()
