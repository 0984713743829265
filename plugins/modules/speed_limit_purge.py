#!/usr/bin/python
# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
DOCUMENTATION = r"""
module: speed_limit_purge
short_description: Remove what this collection has made on a host
version_added: 0.1.0
description:
  - Removes rules, and on request the program and its maps. Processes go back to their own cgroups.
  - The built object and its source stay in C(/usr/lib/speed_limiter) and C(/usr/share/speed_limiter), and bpffs stays
    mounted; the
    role P(speed_limiter.ebpf.setup#role) removes the files.
  - Touches nothing that this collection did not make, and returns exactly what it removed.
author:
  - Speed Limiter contributors (@speed-limiter)
extends_documentation_fragment:
  - speed_limiter.ebpf.common
  - speed_limiter.ebpf.common.idempotent
options:
  scope:
    description:
      - V(stale) removes what was left behind, which is rules V(pid-<pid>) whose process has ended and left no
        descendant in it, rules that a killed
        task left half made, leaves that no process is in, and entries of cgroups that are gone.
      - V(rules) removes all rules, too, with what is stored of them for the next boot.
      - V(all) also unloads the program and removes its maps, the cgroup C(speed_limiter) and what was remembered about
        processes.
    type: str
    choices: [stale, rules, all]
    default: rules
seealso:
  - module: speed_limiter.ebpf.speed_limit_rule
    description: One rule, with all that can be selected.
  - module: speed_limiter.ebpf.speed_limit_program
    description: The program that enforces the rules.
"""

EXAMPLES = r"""
- name: Show what would go
  speed_limiter.ebpf.speed_limit_purge:
    scope: all
  check_mode: true
  diff: true

- name: Remove all rules
  speed_limiter.ebpf.speed_limit_purge:
  register: purge

- name: Show how much each of them has passed
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.counters.bytes }} bytes"
  loop: "{{ purge.removed.rules }}"
  loop_control:
    label: "{{ item.name }}"

- name: Remove all rules and the program
  speed_limiter.ebpf.speed_limit_purge:
    scope: all
"""

RETURN = r"""
removed:
  description: What was removed, or in check mode would be.
  type: dict
  returned: success
  contains:
    rules:
      description: Rules as they were, each in the form of RV(speed_limiter.ebpf.speed_limit_rule#module:rule).
      type: list
      elements: dict
      returned: success
      sample:
        - name: backup
          rate: 20971520
          bucket: 20971520
          cgroup_path: /sys/fs/cgroup/speed_limiter/backup
          cgroup_id: 4217
          members: [/sys/fs/cgroup/speed_limiter/backup]
          pids: [1234]
          counters: {packets: 1200, bytes: 1750000, dropped_packets: 3, dropped_bytes: 4500, congestion_marks: 12}
    pids:
      description: Processes that went back to the cgroups that they came from.
      type: list
      elements: int
      returned: success
      sample: [1234]
    stale_rules:
      description: Ids of rules whose cgroup was gone already, taken out of the maps.
      type: list
      elements: int
      returned: success
    stale_members:
      description: Ids of members that are gone, such as leaves of services that have stopped, taken out of the map.
      type: list
      elements: int
      returned: success
    stale_leaves:
      description: Leaves that no process is in any more, or whose rule is gone; with V(all) also those that are no
        members.
      type: list
      elements: str
      returned: success
      sample: [/sys/fs/cgroup/system.slice/a.service/speed_limiter.backup]
    program:
      description: The program that was unloaded, or null.
      type: str
      returned: success
    pins:
      description: Names of pinned maps and links.
      type: list
      elements: str
      returned: success
    stored:
      description: Files of stored rules, also of those that were not loaded.
      type: list
      elements: str
      returned: success
      sample: [/etc/speed_limiter/rules.d/backup.json]
    paths:
      description: Directories and files.
      type: list
      elements: str
      returned: success
"""

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.respawn import leave_old_python


def main() -> None:
    """The rest is imported only now: an old Python can read this file, and not the rest."""
    leave_old_python()
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.modules.purge import main as go_on

    go_on()


if __name__ == "__main__":
    main()
