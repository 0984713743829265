#!/usr/bin/python
# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
DOCUMENTATION = r"""
module: speed_limit_rule
short_description: Limit the bandwidth of a group of processes
version_added: 0.1.0
description:
  - Limits what the processes of a rule send, together, with a token bucket on the cgroup egress hook of the kernel.
  - Processes stay in their services, with all limits that hold there. Each is kept in a leaf, a cgroup
    C(speed_limiter.<rule>) that is made below its own. Or cgroups (services, slices, users, containers) are limited in
    place, by their paths, over restarts. Connections that are open already are limited too.
  - Where the kernel allows no leaf, as in threaded cgroups, a process is moved into the rule's own cgroup. A warning
    and the diff then name the rules and limits that no longer hold for it.
  - On a host where the program is not loaded yet, it is loaded, and built first if it must be.
author:
  - Speed Limiter contributors (@speed-limiter)
extends_documentation_fragment:
  - speed_limiter.ebpf.common
  - speed_limiter.ebpf.common.idempotent
options:
  name:
    description:
      - Name of the rule. It begins with a letter, a digit or C(_), has at most 128 of those and of C(.), C(@), C(:),
        C(-), and is
        not a name that the kernel gives to a file in a cgroup, like V(memory.max).
      - Without it, the rule of a single process is called V(pid-<pid>), and belongs to that very process.
    type: str
  state:
    description:
      - V(present) makes the rule, or changes what is given of it, and adds processes and cgroups. Nothing is silently
        taken out.
      - V(absent) with processes takes them out, back to their own cgroups; with O(cgroup_paths), O(units), O(users) or
        O(containers), these are no longer limited; with none of them, the rule goes, and all its processes go back.
        O(rate) and O(bucket) are ignored.
    type: str
    choices: [present, absent]
    default: present
  rate:
    description:
      - What the rule may send. An integer is bytes per second; V(k), V(m), V(g) are powers of 1024 bytes per second, as
        in V(5m);
        V(kbit), V(mbit), V(gbit) are powers of 1000 bits per second, as in V(100mbit).
      - From 8000 (64 kbit/s) to 12500000000 (100 Gbit/s). Forms like V(5mb) or V(5mbps) are ambiguous and refused.
      - Needed only where the rule does not exist yet.
    type: str
  bucket:
    description:
      - How many bytes may be sent at once after a pause. An integer, or a number with V(k), V(m) or V(g), powers of
        1024.
      - Given a O(rate) without a bucket, the bucket is what the rate sends in one second. Given neither, neither
        changes.
    type: str
  pids:
    description:
      - Processes to take into the rule. Excludes O(processes).
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
      - Neither this nor O(processes) ever takes process 1, kernel threads, or the task's own process and its ancestors.
    type: bool
    default: true
  cgroup_paths:
    description:
      - Cgroups to limit in place, with all that runs in them and below them, as paths that begin with a slash, as
        C(/proc/PID/cgroup) shows them, or below the mount point of cgroup2. No process is moved. O(name) is needed.
      - Each name of a path may have one star, which stands for any text, also none, as V(/system.slice/web-*.service).
      - They are found by their names and need not exist. What is made later, or made again by a restart, is limited
        from its first packet on.
      - Where several paths match a cgroup, the most specific one holds. From the top down, a name before a star, and a
        longer text before a shorter one. The rules of the cgroups above hold too, at most four in all.
      - A path directly below C(speed_limiter) selects the rule of that name instead.
    type: list
    elements: str
    aliases: [cgroup_path]
  units:
    description:
      - Units of systemd to limit in place, stopped ones too, and again after each restart. No process is moved.
        Services, sockets, slices, scopes, mounts and swaps; a name without a suffix is a service, as for C(systemctl).
      - V(a@b.service) is one instance, V(a@.service) stands for all instances of a template, also those that are
        started later. A slice is limited with all that is in it. Escapes are written as C(systemctl) shows them
        (C(\x2d)).
      - With a service go the C(.socket) units that start it, since the sockets that systemd has opened belong to them.
      - They are looked up with C(systemctl). A unit that systemd does not know is an error. Units of a user's own
        systemd (C(systemctl --user)) are not found; limit them by O(users), or by their path.
    type: list
    elements: str
    aliases: [unit]
  users:
    description:
      - Users to limit in place, by name or number, whether they are logged in or not. All that runs in a user's
        sessions and under the user's own systemd shares the rule's rate, at each login anew. Needs systemd with logind,
        which makes the cgroup, C(/user.slice/user-UID.slice).
      - Services and cron jobs that run as the user are elsewhere; limit them by O(units).
      - A name that the host does not know is an error. A number is taken as it is.
    type: list
    elements: str
    aliases: [user]
  containers:
    description:
      - Containers to limit in place, by name or id. They must run. Docker, Podman, containerd and CRI-O (by C(crictl)),
        LXC and systemd-nspawn are asked, those of them that have a command on the host. A name that two containers have
        is an error.
      - A container of LXC or systemd-nspawn is limited again when it is started again. Any other gets a new cgroup when
        it is made anew, and is then unlimited; a warning says so. Start it with C(--cgroup-parent=NAME.slice), and
        limit that slice with O(units).
    type: list
    elements: str
    aliases: [container]
  each:
    description:
      - Every cgroup that a path matches gets a budget of its own, with the rate and the bucket of the rule, instead of
        one for all of them together. So each user or each container can have the same limit.
      - Refused where users could make such cgroups themselves, and as many budgets as they want.
      - Processes always share one budget, so this is refused for a rule that has no cgroup in place.
      - Without this option a rule keeps what it has; a new one has one budget for all.
    type: bool
  everything:
    description:
      - Confirms that O(cgroup_paths), O(units), O(users) or O(containers) may name what holds the connection by which
        the task came, or others like it, as V(/), V(/system.slice), V(/user.slice), the service of sshd, or the session
        that the task runs in. Without it that is refused, since it is often a template that came out empty.
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
        made anew has another path and is not limited, unless what is limited is a cgroup parent of its own.
      - A process does not survive a reboot, so V(true) excludes O(pids) and O(processes); processes that are in the
        rule already are not stored.
      - V(false) removes what is stored. Without this option a rule stays as persistent as it is, and what is stored
        follows what the task changes.
      - A rule that is removed is not stored any more either.
    type: bool
seealso:
  - module: speed_limiter.ebpf.speed_limit_rules
    description: Many rules in one task, and optionally no others.
  - module: speed_limiter.ebpf.speed_limit_info
    description: What is limited on a host, by which rule, and what the host lacks.
"""

EXAMPLES = r"""
- name: Let all backups of a host share 160 Mbit/s
  speed_limiter.ebpf.speed_limit_rule:
    name: backup
    rate: 160mbit
    processes:
      name: restic

- name: Limit a service, whenever it runs, and how often it is restarted
  speed_limiter.ebpf.speed_limit_rule:
    name: downloads
    rate: 50mbit
    units: nginx

- name: Limit all that two users send, together, at each of their logins
  speed_limiter.ebpf.speed_limit_rule:
    name: guests
    rate: 20mbit
    users: [alice, bob]

- name: Limit two services together, over restarts
  speed_limiter.ebpf.speed_limit_rule:
    name: mirror
    rate: 20m
    bucket: 4m
    cgroup_paths: [/system.slice/rsyncd.service, /system.slice/mirror-*.service]
  register: mirror

- name: Limit every user to 50 Mbit/s, also those who log in later, and after each reboot
  speed_limiter.ebpf.speed_limit_rule:
    name: users
    rate: 50mbit
    cgroup_paths: [/user.slice/user-*.slice]
    each: true
    everything: true
    persistent: true

- name: Stop the play where the rule is there and does not limit
  ansible.builtin.assert:
    that: mirror.unenforced == []
    fail_msg: "{{ mirror.unenforced | join('; ') }}"

- name: Limit one process to 5 MiB/s, on the connections that it has open too
  speed_limiter.ebpf.speed_limit_rule:
    pids: 1234
    rate: 5m

- name: The same for two slices (speed_limit_rules takes a list of them in one task)
  speed_limiter.ebpf.speed_limit_rule:
    name: "{{ item }}"
    rate: 10m
    cgroup_paths: ["/{{ item }}.slice"]
  loop: [sync, reports]

- name: Limit what another host of the play sends
  speed_limiter.ebpf.speed_limit_rule:
    name: mirror
    rate: "{{ mirror.rule.rate }}"
    cgroup_paths: [/mirror.slice]
  delegate_to: mirror.example.com

- name: Move another process into the rule that was set last
  speed_limiter.ebpf.speed_limit_rule:
    last: true
    pids: 9999

- name: Let a process go, back to where it came from
  speed_limiter.ebpf.speed_limit_rule:
    pids: 1234
    state: absent

- name: Remove a rule
  speed_limiter.ebpf.speed_limit_rule:
    name: backup
    state: absent
"""

RETURN = r"""
rule:
  description: The rule as it is, or in check mode as it would be. Null where there is none.
  type: dict
  returned: success
  contains:
    name:
      description: Name of the rule.
      type: str
      returned: success
      sample: backup
    rate:
      description: Bytes per second.
      type: int
      returned: success
      sample: 20971520
    bucket:
      description: Bytes.
      type: int
      returned: success
      sample: 20971520
    cgroup_path:
      description: Absolute path of the rule's own cgroup.
      type: str
      returned: success
      sample: /sys/fs/cgroup/speed_limiter/backup
    cgroup_id:
      description: Id of the rule's own cgroup, which is the rule's key in the maps. Null in check mode for a rule that
        does not exist yet.
      type: int
      returned: success
      sample: 4217
    members:
      description: Absolute paths of the cgroups whose sockets are charged to the rule, its own first, then those that
        it limits in place, which may have stars, then its leaves that processes are in.
      type: list
      elements: str
      returned: success
      sample: [/sys/fs/cgroup/speed_limiter/backup]
    each:
      description: Whether every cgroup that it limits in place has a budget of its own.
      type: bool
      returned: success
      sample: false
    budgets:
      description:
        - With O(each), how many cgroups have a budget of their own now, and how many packets had to share the rule's,
          because there was no room for another budget. Room is for 65536 cgroups that send within 20 seconds, or longer
          where buckets take longer to be full again. Null without O(each).
        - RV(rule.counters) have what all of them have counted, also for cgroups that are gone.
      type: dict
      returned: success
      sample: {active: 12, shared_packets: 0}
      contains:
        active:
          description: Cgroups that have a budget of their own. Those that are gone keep theirs until others need it.
          type: int
          returned: success
          sample: 12
        shared_packets:
          description: Packets that shared the rule's budget since the rule was made.
          type: int
          returned: success
          sample: 0
    waiting:
      description: Those of RV(rule.members) that name no cgroup now. They are limited as soon as they exist.
      type: list
      elements: str
      returned: success
      sample: []
    pids:
      description: The processes that the rule took, and their children. Those of cgroups that are limited in place are
        not listed.
      type: list
      elements: int
      returned: success
      sample: [1234]
    persistent:
      description: Whether the rule is stored for the next boot.
      type: bool
      returned: success
      sample: false
    counters:
      description:
        - What the rule passed, dropped and marked since it was made, in IP packets and IP bytes on the wire.
        - C(drops) has the dropped packets by reason, C(notices) those that passed with a congestion notice.
        - V(empty), the bucket has no tokens for what cannot be told a rate (UDP, QUIC, raw sockets).
        - V(tcp_reserve), nor beside TCP, to which a part of the bucket is left.
        - V(debt), TCP owes all that it may.
        - V(admission), the first data of a connection, while those that have begun need the tokens.
        - V(ahead), TCP is further ahead of its rate than pacing leaves it.
        - V(lump), one packet lasts longer than 100 milliseconds at its connection's share.
        - V(low), the bucket runs low for TCP that is not paced.
        - V(unknown), counted by a version that kept no reasons.
        - C(delayed_packets) passed and waited in the queue of their device, C(mean_delay_us) microseconds each (null
          where none did), as O(speed_limiter.ebpf.speed_limit_program#module:departure) allows.
      type: dict
      returned: success
      sample:
        packets: 1200
        bytes: 1750000
        dropped_packets: 3
        dropped_bytes: 4500
        congestion_marks: 12
        delayed_packets: 40
        mean_delay_us: 12000
        drops: {unknown: 0, empty: 3, tcp_reserve: 0, debt: 0, admission: 0, ahead: 0, lump: 0}
        notices: {unknown: 0, ahead: 12, lump: 0, low: 0}
previous:
  description: The rule as it was before, in the same form. Null where there was none.
  type: dict
  returned: success
matched:
  description: The processes that O(pids) or O(processes) matched.
  type: list
  elements: int
  returned: success
  sample: [1234]
matched_units:
  description: The cgroups that the processes of RV(matched) are in, to see whose they are.
  type: list
  elements: dict
  returned: success
  contains:
    unit:
      description: The unit of systemd that it belongs to, or null.
      type: str
      returned: success
      sample: nginx.service
    cgroup:
      description: The cgroup, without leaves of rules.
      type: str
      returned: success
      sample: /system.slice/nginx.service
    pids:
      description: The processes.
      type: list
      elements: int
      returned: success
      sample: [1234]
skipped_processes:
  description: Processes that were matched, or are descendants, and are never taken.
  type: list
  elements: dict
  returned: success
  contains:
    pid:
      description: The process.
      type: int
      returned: success
    reason:
      description: Why it is not taken.
      type: str
      returned: success
      sample: this task or an ancestor of it
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
    - Why the rule limits less than it says, or nothing, on this host, though all was made as wanted; each is
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
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.modules.rule import main as go_on

    go_on()


if __name__ == "__main__":
    main()
