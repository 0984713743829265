#!/usr/bin/python
# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
DOCUMENTATION = r"""
module: speed_limit_rules
short_description: Limit the bandwidth of many groups of processes in one task
version_added: 0.1.0
description:
  - The same as M(speed_limiter.ebpf.speed_limit_rule) for a list of rules; a thousand rules take part of a second.
  - Everything is validated before anything is touched, and a failure half way is undone.
author:
  - Speed Limiter contributors (@speed-limiter)
extends_documentation_fragment:
  - speed_limiter.ebpf.common
  - speed_limiter.ebpf.common.idempotent
options:
  rules:
    description:
      - The rules. Errors name the index in this list; a rule that is given twice is an error.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - Name of the rule. It begins with a letter, a digit or C(_), has at most 128 of those and of C(.), C(@),
            C(:), C(-), and is
            not a name that the kernel gives to a file in a cgroup, like V(memory.max).
          - Without it, the rule of a single process is called V(pid-<pid>), and belongs to that very process.
        type: str
      state:
        description:
          - V(present) makes the rule, or changes what is given of it, and adds processes. What it limits in place is
            what O(rules[].cgroup_paths), O(rules[].units), O(rules[].users) and O(rules[].containers) name, and nothing
            else. What is no longer named is taken out.
          - V(absent) with processes takes them out, back to their own cgroups; with O(rules[].cgroup_paths),
            O(rules[].units), O(rules[].users) or O(rules[].containers), these are no longer limited; with none of them,
            the rule goes, and all its processes go back. O(rules[].rate) and O(rules[].bucket) are ignored.
        type: str
        choices: [present, absent]
        default: present
      rate:
        description:
          - What the rule may send. An integer is bytes per second; V(k), V(m), V(g) are powers of 1024 bytes per
            second, as in V(5m);
            V(kbit), V(mbit), V(gbit) are powers of 1000 bits per second, as in V(100mbit).
          - From 8000 (64 kbit/s) to 12500000000 (100 Gbit/s). Forms like V(5mb) or V(5mbps) are ambiguous and refused.
          - Needed only where the rule does not exist yet.
        type: str
      bucket:
        description:
          - How many bytes may be sent at once after a pause. An integer, or a number with V(k), V(m) or V(g), powers of
            1024.
          - Given a O(rules[].rate) without a bucket, the bucket is what the rate sends in one second. Given neither,
            neither changes.
        type: str
      pids:
        description:
          - Processes to take into the rule. Excludes O(rules[].processes).
        type: list
        elements: int
        aliases: [pid]
      processes:
        description:
          - Selects processes; all keys that are given must hold. Needs psutil on the managed node.
        type: dict
        suboptions:
          name:
            description: Name of the process.
            type: str
          exe:
            description: Full path of its executable.
            type: str
          cmdline:
            description:
              - A regular expression that is searched in its arguments, joined by spaces, of which it sees 128 KiB.
              - It may take five seconds for all processes. Those that it was too slow for, and those that keep whoever
                reads their arguments waiting, are in RV(skipped_processes) and RV(unenforced).
            type: str
          user:
            description: Its user, by name or number. A name that the host does not know is an error.
            type: str
      children:
        description:
          - Also takes the running descendants of the processes. What they start later is limited in any case.
          - Neither this nor O(rules[].processes) ever takes process 1, kernel threads, or the task's own process and
            its ancestors.
        type: bool
        default: true
      cgroup_paths:
        description:
          - Cgroups to limit in place, with all that runs in them and below them, as paths that begin with a slash, as
            C(/proc/PID/cgroup) shows them, or below the mount point of cgroup2. No process is moved. O(rules[].name) is
            needed.
          - Each name of a path may have one star, which stands for any text, also none, as
            V(/system.slice/web-*.service).
          - They are found by their names and need not exist. What is made later, or made again by a restart, is limited
            from its first packet on.
          - Where several paths match a cgroup, the most specific one holds. From the top down, a name before a star,
            and a longer text before a shorter one. The rules of the cgroups above hold too, at most four in all.
          - A path directly below C(speed_limiter) selects the rule of that name instead.
        type: list
        elements: str
        aliases: [cgroup_path]
      units:
        description:
          - Units of systemd to limit in place, stopped ones too, and again after each restart. No process is moved.
            Services, sockets, slices, scopes, mounts and swaps; a name without a suffix is a service, as for
            C(systemctl).
          - V(a@b.service) is one instance, V(a@.service) stands for all instances of a template, also those that are
            started later. A slice is limited with all that is in it. Escapes are written as C(systemctl) shows them
            (C(\x2d)).
          - With a service go the C(.socket) units that start it, since the sockets that systemd has opened belong to
            them.
          - They are looked up with C(systemctl). A unit that systemd does not know is an error. Units of a user's own
            systemd (C(systemctl --user)) are not found; limit them by O(rules[].users), or by their path.
        type: list
        elements: str
        aliases: [unit]
      users:
        description:
          - Users to limit in place, by name or number, whether they are logged in or not. All that runs in a user's
            sessions and under the user's own systemd shares the rule's rate, at each login anew. Needs systemd with
            logind, which makes the cgroup, C(/user.slice/user-UID.slice).
          - Services and cron jobs that run as the user are elsewhere; limit them by O(rules[].units).
          - A name that the host does not know is an error. A number is taken as it is.
        type: list
        elements: str
        aliases: [user]
      containers:
        description:
          - Containers to limit in place, by name or id. They must run. Docker, Podman, containerd and CRI-O (by
            C(crictl)), LXC and systemd-nspawn are asked, those of them that have a command on the host. A name that two
            containers have is an error.
          - A container of LXC or systemd-nspawn is limited again when it is started again. Any other gets a new cgroup
            when it is made anew, and is then unlimited; a warning says so. Start it with C(--cgroup-parent=NAME.slice),
            and limit that slice with O(rules[].units).
        type: list
        elements: str
        aliases: [container]
      each:
        description:
          - Every cgroup that a path matches gets a budget of its own, with the rate and the bucket of the rule, instead
            of one for all of them together. So each user or each container can have the same limit.
          - Refused where users could make such cgroups themselves, and as many budgets as they want.
          - Processes always share one budget, so this is refused for a rule that has no cgroup in place.
          - Without this option there is one budget for all.
        type: bool
      everything:
        description:
          - Confirms that O(rules[].cgroup_paths), O(rules[].units), O(rules[].users) or O(rules[].containers) may name
            what holds the connection by which the task came, or others like it, as V(/), V(/system.slice),
            V(/user.slice), the service of sshd, or the session that the task runs in. Without it that is refused, since
            it is often a template that came out empty.
        type: bool
        default: false
      cgroup_id:
        description:
          - Selects an existing rule by the id of its cgroup.
        type: int
        aliases: [cgid]
      last:
        description:
          - Selects the rule that was last really changed on this host.
        type: bool
      persistent:
        description:
          - V(true) stores the rule in C(/etc/speed_limiter/rules.d), and a host that was prepared by the role
            P(speed_limiter.ebpf.setup#role) applies it when it boots, before its network is up.
          - What is limited in place is stored by the paths that it has now, a user with his number. A container that is
            made anew has another one, unless it has a cgroup parent of its own.
          - A process does not survive a reboot, so V(true) excludes O(rules[].pids) and O(rules[].processes); processes
            that are in the rule already are not stored.
          - V(false) removes what is stored. Without this option a rule stays as persistent as it is, and what is stored
            follows what the task changes.
          - A rule that is removed is not stored any more either.
        type: bool
  purge:
    description:
      - Removes the rules that are not in O(rules). Rules that belong to one process (V(pid-1234)) are spared and
        returned in RV(kept).
    type: bool
    default: false
seealso:
  - module: speed_limiter.ebpf.speed_limit_rule
    description: One rule, with all that can be selected.
  - module: speed_limiter.ebpf.speed_limit_info
    description: What is limited on a host, by which rule, and what the host lacks.
"""

EXAMPLES = r"""
- name: These rules and no others
  speed_limiter.ebpf.speed_limit_rules:
    purge: true
    rules:
      - name: backup
        rate: 160mbit
        processes:
          name: restic
      - name: mirror
        rate: 20m
        cgroup_paths: [/mirror.slice]
  register: limits

- name: A service, all instances of a template, and a container
  speed_limiter.ebpf.speed_limit_rules:
    rules:
      - {name: downloads, rate: 50mbit, units: nginx}
      - {name: workers, rate: 200mbit, units: ["worker@.service"]}
      - {name: builds, rate: 100mbit, containers: [build-1]}

- name: Show what was changed, and how it was before
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ before.rate | default('new') }} -> {{ item.rate }}"
  loop: "{{ limits.rules }}"
  loop_control:
    label: "{{ item.name }}"
  vars:
    before: "{{ limits.previous | selectattr('name', 'eq', item.name) | first | default({}) }}"

- name: The same rate for a list of slices
  speed_limiter.ebpf.speed_limit_rules:
    rules: "{{ slices | map('combine', {'rate': '50mbit'}) }}"
  vars:
    slices:
      - {name: shop, cgroup_paths: [/shop.slice]}
      - {name: mail, cgroup_paths: [/mail.slice]}
"""

RETURN = r"""
summary:
  description: How many rules were made, changed, removed, and were as wanted.
  type: dict
  returned: success
  sample: {created: 1, changed: 0, removed: 0, unchanged: 41}
rules:
  description:
    - The rules that were made or changed, as they are, or in check mode would be. Each has the form of
      RV(speed_limiter.ebpf.speed_limit_rule#module:rule).
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
      counters: {packets: 0, bytes: 0, dropped_packets: 0, dropped_bytes: 0, congestion_marks: 0}
previous:
  description: The rules that were changed or removed, as they were, in the same form.
  type: list
  elements: dict
  returned: success
  sample: []
kept:
  description: Rules that O(purge) spared.
  type: list
  elements: str
  returned: success
  sample: [pid-1234]
matched:
  description: The processes that each rule's selection matched, by the rule's name; only rules that select.
  type: dict
  returned: success
  sample: {backup: [1234, 1235]}
matched_units:
  description: The cgroups that they are in, in the form of
    RV(speed_limiter.ebpf.speed_limit_rule#module:matched_units), by the rule's name.
  type: dict
  returned: success
  sample:
    backup: [{unit: backup.service, cgroup: /system.slice/backup.service, pids: [1234, 1235]}]
skipped_processes:
  description: Processes that are never taken, by the rule's name; only where there are any.
  type: dict
  returned: success
program_actions:
  description:
    - What was done on this host to have the program loaded, or in check mode would be. Empty where it was loaded
      already.
  type: list
  elements: str
  returned: success
  sample: ["loaded /usr/lib/speed_limiter/limiter.bpf.o, attached to /"]
unenforced:
  description:
    - Why rules limit less than they say, or nothing, on this host, though all was made as wanted; each is
      a warning, too. Empty where nothing speaks against it.
  type: list
  elements: str
  returned: success
  sample: []
"""

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.respawn import leave_old_python


def main() -> None:
    """The rest is imported only now: an old Python can read this file, and not the rest."""
    leave_old_python()
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.modules.rules import main as go_on

    go_on()


if __name__ == "__main__":
    main()
