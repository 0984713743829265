#!/usr/bin/python
# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
DOCUMENTATION = r"""
module: speed_limit_info
short_description: Show the limits of a host, and what they need
version_added: 0.1.0
description:
  - Shows the rules with their counters, the processes in them, the program, every BPF program that runs on the same
    hook, ours or not, and
    what the host lacks.
  - Changes nothing and mounts nothing. What could not be looked at is null, and RV(unseen) says why.
  - Fails where the rule O(name), the process O(pid) or the cgroup O(cgroup_path) does not exist. Fails as another user
    than root, unless O(gather) is V(host) alone.
author:
  - Speed Limiter contributors (@speed-limiter)
extends_documentation_fragment:
  - speed_limiter.ebpf.common
attributes:
  check_mode:
    support: full
    details:
      - This module does not modify state.
  diff_mode:
    support: N/A
    details:
      - This module does not modify state.
  idempotent:
    support: full
    details:
      - This module does not modify state.
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no
      change.
options:
  gather:
    description:
      - What to look at. V(host) is the kernel, cgroup2, BTF, libbpf, clang, and what is missing; V(hook) every BPF
        program that runs for a
        packet that leaves the cgroup of O(name), O(pid) or O(cgroup_path), by default the root; V(boot) what is stored
        for the next boot.
      - V(use) is what the rules do in the second that follows, with their connections. It takes that second, so only
        who asks for it gets it, or who names O(pid) and leaves O(gather) out.
    type: list
    elements: str
    choices: [host, program, rules, processes, hook, boot, use]
    default: [host, program, rules, processes, hook, boot]
  name:
    description: Only this rule, its processes and its hook.
    type: str
  pid:
    description:
      - Only what limits this process. With the default of O(gather), V(use) is gathered too, and RV(why) says what the
        limiter does to it.
    type: int
  cgroup_path:
    description:
      - Only what limits this cgroup, or a process in it or below it that a rule took by its pid. Given as an absolute
        path or as C(/proc/PID/cgroup) shows it.
    type: str
  connections:
    description: How many connections of each rule RV(use) has, and how many cgroups that have the rate for themselves.
    type: int
    default: 10
seealso:
  - module: speed_limiter.ebpf.speed_limit_rule
    description: One rule, with all that can be selected.
  - module: speed_limiter.ebpf.speed_limit_rules
    description: Many rules in one task, and optionally no others.
  - module: speed_limiter.ebpf.speed_limit_program
    description: The program that enforces the rules.
  - module: speed_limiter.ebpf.speed_limit_trace
    description: What becomes of packets, and why.
"""

EXAMPLES = r"""
- name: Everything
  speed_limiter.ebpf.speed_limit_info:

- name: What limits this process
  speed_limiter.ebpf.speed_limit_info:
    pid: 1234
    gather: [rules, hook]

- name: Look whether this host can take rules
  speed_limiter.ebpf.speed_limit_info:
    gather: [host]
  register: seen

- name: Stop where something is missing
  ansible.builtin.assert:
    that: seen.host.missing == []
    fail_msg: "{{ seen.host.missing | join(' ') }}"

- name: Is this process slow because of the limiter
  speed_limiter.ebpf.speed_limit_info:
    pid: 1234
    gather: [use]
  register: asked

- name: Show the answer
  ansible.builtin.debug:
    msg: "{{ asked.why.text }}"

- name: Which rule is it, and whose connections
  speed_limiter.ebpf.speed_limit_info:
    gather: [use]
    connections: 3
  register: busy

- name: Show the rules that drop, and why
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.counters.drops }}"
  loop: "{{ busy.use | selectattr('counters.dropped_packets') }}"
  loop_control:
    label: "{{ item.name }}"

- name: Look at the rules of another host
  speed_limiter.ebpf.speed_limit_info:
    gather: [rules]
  delegate_to: backup.example.com
  register: there

- name: Show the rules that hold their senders back
  ansible.builtin.debug:
    msg: "{{ there.rules | selectattr('use.binds') | map(attribute='name') }}"
  when: there.unseen == []
"""

RETURN = r"""
host:
  description: The kernel and the libraries that a limit needs.
  type: dict
  returned: when O(gather) has V(host)
  contains:
    kernel:
      description: Release of the running kernel.
      type: str
      returned: success
      sample: 6.1.0-28-amd64
    architecture:
      description: Architecture of the running kernel.
      type: str
      returned: success
      sample: x86_64
    cgroup2:
      description: Where cgroup2 is mounted.
      type: str
      returned: success
      sample: /sys/fs/cgroup
    btf:
      description: Whether the kernel describes its types.
      type: bool
      returned: success
    lockdown:
      description: V(none), V(integrity) or V(confidentiality); null where the kernel has no lockdown or does not tell.
      type: str
      returned: success
      sample: none
    bpffs:
      description: Whether bpffs is mounted.
      type: bool
      returned: success
    sockets:
      description:
        - Whether a socket that is opened now belongs to the cgroup of its process, without which no rule limits it.
          V(lost) on a kernel before 5.15 on which a program has used net_cls or net_prio of cgroup v1 since it booted,
          V(suspected) where that is likely, V(unknown) where it can't be tried. Else V(kept).
      type: str
      returned: success
      sample: kept
    libbpf:
      description: Version of libbpf.
      type: str
      returned: success
      sample: "1.1"
    clang:
      description: Version of clang, which only building needs.
      type: str
      returned: success
      sample: Debian clang version 14.0.6
    interpreter:
      description: The Python that ran the module.
      type: str
      returned: success
      sample: /usr/bin/python3
    missing:
      description: What is missing, or keeps rules from limiting; each with what helps.
      type: list
      elements: str
      returned: success
program:
  description: The program that is attached. Null where none is, or where RV(unseen) says why it is not known.
  type: dict
  returned: when O(gather) has V(program)
  contains:
    identity:
      description: What it was built from, or the hash of the object file.
      type: str
      returned: success
    cgroup:
      description: The cgroup that it is attached to.
      type: str
      returned: success
    program_id:
      description: The kernel's id of the program.
      type: int
      returned: success
    link_id:
      description: The kernel's id of the link.
      type: int
      returned: success
    trace:
      description: V(running) while M(speed_limiter.ebpf.speed_limit_trace) looks, and another program decides in the
        place of the one that was loaded. V(left) where it was killed, until the next task that changes something puts
        that one back. Else null.
      type: str
      returned: success
    pacing:
      description: Whether TCP connections are paced at their fair share of their rule.
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
      description:
        - Whether packets that a limit has no room for wait where their device has the queueing discipline C(fq). What
          waited is in RV(rules[].counters).
      type: dict
      returned: success
      sample: {state: "on", reason: null, devices: [eth0]}
      contains:
        state:
          description: V(on), V(off) where it is switched off, or V(refused) by the kernel.
          type: str
          returned: success
          sample: "on"
        reason:
          description: Why not, in words. Null where they may.
          type: str
          returned: success
          sample: "departure times are switched off: speed_limit_program with departure=auto switches them on"
        devices:
          description:
            - Devices of the task's network namespace that hold packets, as C(fq) is at their root, or below each queue
              of C(mq) or C(mqprio). On others such packets are dropped. Null where the kernel does not tell.
          type: list
          elements: str
          returned: success
          sample: [eth0]
    in_place:
      description: How cgroups that are limited in place are found.
      type: dict
      returned: success
      sample: {found_by: name, reason: null}
      contains:
        found_by:
          description:
            - V(name), so those that are made anew are limited from their first packet on. V(id) where the kernel does
              not let the program see names, as in C(lockdown=confidentiality). Then each rule task has those limited
              that are there.
          type: str
          returned: success
          sample: name
        reason:
          description: Why not by name, in words; or null.
          type: str
          returned: success
          sample: null
boot:
  description: What is stored for the next boot, and what is wrong with it. Null where it could not be looked at.
  type: dict
  returned: when O(gather) has V(boot)
  contains:
    version:
      description:
        - The version of the command C(limiter) that is installed on the host, which applies what is stored. Null where
          there is none.
      type: str
      returned: success
      sample: 0.1.0
    unit:
      description:
        - The state of the unit that applies what is stored, V(speed_limiter.service), as systemd calls it. V(active)
          after a boot that applied all; V(inactive) where nothing was stored then, or the host has not booted since.
        - V(absent) where there is none. Null where systemd does not run.
      type: str
      returned: success
      sample: active
    enabled:
      description: Whether the unit is started at the next boot. Null where systemd does not run.
      type: bool
      returned: success
      sample: true
    stored:
      description: Names of the rules that are stored.
      type: list
      elements: str
      returned: success
      sample: [mirror]
    problems:
      description:
        - A sentence for each file that is refused, is not applied, or is not as the rule is; for a unit that has
          failed, or is not enabled though rules are stored; where RV(boot.version) is not that of the module; and
          where stored rules limit in place, and RV(program.in_place.found_by) is V(id).
      type: list
      elements: str
      returned: success
      sample: ["/etc/speed_limiter/rules.d/mirror.json: it is no JSON: Expecting value: line 1 column 1 (char 0)"]
unseen:
  description:
    - Why RV(program), RV(rules), RV(processes) or RV(hook) is null although it was asked for, or values of a rule are.
      Without the maps, as without libbpf or without the right to use BPF, only name, cgroup and pids of a rule are
      known. Empty where all could be looked at. Each is a warning, too, or is in RV(host.missing).
  type: list
  elements: str
  returned: success
  sample: []
rules:
  description:
    - The rules, each in the form of RV(speed_limiter.ebpf.speed_limit_rule#module:rule) with RV(rules[].pacing),
      RV(rules[].use) and RV(rules[].unlimited). Null where they could not be looked at.
  type: list
  elements: dict
  returned: when O(gather) has V(rules)
  contains:
    name:
      description: Name of the rule. Keys that are not listed here are those of M(speed_limiter.ebpf.speed_limit_rule).
      type: str
      returned: success
      sample: backup
    persistent:
      description: Whether the rule is stored for the next boot.
      type: bool
      returned: success
      sample: true
    counters:
      description:
        - What the rule passed, dropped and marked since it was made, in IP packets and IP bytes on the wire. The
          reasons are those of M(speed_limiter.ebpf.speed_limit_rule).
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
    pacing:
      description:
        - How the rule limits, and what its connections do. The figures are of the last epoch, 10 milliseconds or
          up to 4 seconds at low rates, and 0 or null where no TCP connection has sent for four epochs and a second.
        - With O(speed_limiter.ebpf.speed_limit_rule#module:each), numbers of connections are those of all cgroups, and
          RV(rules[].pacing.fair_share) is that of the cgroup in which it is least.
      type: dict
      returned: success
      sample:
        mode: paced
        reason: null
        active_connections: 5
        unpaced_connections: 0
        waiting_connections: 4
        fair_share: 2621440
        longest_round_trip_us: 850
      contains:
        mode:
          description:
            - V(paced) where TCP connections send at their fair share by themselves, and the token bucket guards it and
              limits all else; V(token_bucket) where it alone limits; V(none) where nothing does, or nothing of
              what is opened from now on.
          type: str
          returned: success
          sample: paced
        reason:
          description: Why the rule is not in the mode V(paced), or why some of its connections are not; or null.
          type: str
          returned: success
          sample: "pacing is switched off: speed_limit_program with pacing=true switches it on"
        active_connections:
          description: TCP connections that sent data.
          type: int
          returned: success
          sample: 5
        unpaced_connections:
          description: Of these, those that do not pace themselves. The token bucket limits them.
          type: int
          returned: success
          sample: 0
        waiting_connections:
          description:
            - Of the active ones, those that nothing but this rule's limit holds back. RV(rules[].use.waiting_elsewhere)
              are those that another rule holds back.
          type: int
          returned: success
          sample: 4
        fair_share:
          description: What one connection may send now, in bytes per second. Null while it is not known.
          type: int
          returned: success
          sample: 2621440
        longest_round_trip_us:
          description: The longest round trip lately, in microseconds. Null while it is not known.
          type: int
          returned: success
          sample: 850
    use:
      description:
        - How much of the limit is used, and whether it is this rule that holds its senders back. Measured whether TCP
          is paced or not. One look is enough, since the program measures all the time.
      type: dict
      returned: success
      sample: {rate: 2613115, utilization: 0.997, binds: true, binds_seconds: 312.4, waiting_elsewhere: 0, reason: null}
      contains:
        rate:
          description:
            - What has passed in the last second, in IP bytes on the wire. 0 where nothing has passed for two seconds.
            - With O(speed_limiter.ebpf.speed_limit_rule#module:each), of all cgroups together.
          type: int
          returned: success
          sample: 2613115
        utilization:
          description:
            - RV(rules[].use.rate) as a part of the rule's rate. More than 1 while the bucket is being spent. Null where
              the rule is unfinished.
            - With O(speed_limiter.ebpf.speed_limit_rule#module:each), it is that of the cgroup that uses most of its
              own limit.
          type: float
          returned: success
          sample: 0.997
        binds:
          description:
            - Whether this rule holds back what is sent. Either TCP connections wait for it, as many as
              RV(rules[].pacing.waiting_connections); or within the last second it dropped packets, gave them a
              congestion notice, or let them wait in their device's queue.
            - Of several rules that hold for a connection that sends all it can, it is true for the one that limits it.
          type: bool
          returned: success
          sample: true
        binds_seconds:
          description:
            - For how long it has done so without a break longer than a second and four epochs. Null where it does not,
              and where an earlier version of this collection counts.
          type: float
          returned: success
          sample: 312.4
        waiting_elsewhere:
          description:
            - TCP connections that would send more and that another rule holds back, one above or below this one.
              Counted as RV(rules[].pacing.waiting_connections), in the last epoch.
          type: int
          returned: success
          sample: 0
        reason:
          description:
            - Why less than 95 percent of the limit is used, although connections wait for it or for another rule; or
              null.
          type: str
          returned: success
          sample: "another rule that holds for the same connections is tighter: its use.binds is true"
    unlimited:
      description:
        - What the rule is to limit and does not, or may not, and why. Open sockets of the processes in it; and where
          RV(program.in_place.found_by) is V(id), that cgroups which are made later are not limited, and which were.
        - Empty where there is none. Null where the maps could not be looked at.
      type: list
      elements: str
      returned: success
      sample: ["3 connections that process 812 (nginx, user 33) has not accepted yet"]
use:
  description:
    - What each rule did between two looks that are a second apart, or a little more where a look takes longer than
      that; rates are those of the time in between. Rules that were removed or made in that time are left out. Null
      where they could not be looked at.
  type: list
  elements: dict
  returned: when O(gather) has V(use)
  contains:
    name:
      description: Name of the rule.
      type: str
      returned: success
      sample: backup
    limit:
      description: The rule's rate, in bytes per second. Null where the rule is unfinished.
      type: int
      returned: success
      sample: 2621440
    rate:
      description: What passed, in IP bytes on the wire per second.
      type: int
      returned: success
      sample: 2613115
    utilization:
      description: As RV(rules[].use.utilization), of this second.
      type: float
      returned: success
      sample: 0.997
    binds:
      description: As RV(rules[].use.binds); also true where the rule dropped packets in this second.
      type: bool
      returned: success
      sample: true
    binds_seconds:
      description: As RV(rules[].use.binds_seconds).
      type: float
      returned: success
      sample: 312.4
    binding_rule:
      description:
        - The rule that holds the senders back. It is this one, or the one that most of its waiting connections wait
          for. Null where none does.
      type: str
      returned: success
      sample: backup
    waiting_elsewhere:
      description: As RV(rules[].use.waiting_elsewhere).
      type: int
      returned: success
      sample: 0
    reason:
      description: As RV(rules[].use.reason).
      type: str
      returned: success
      sample: "another rule that holds for the same connections is tighter: its use.binds is true"
    seconds:
      description: How long it was really looked at.
      type: float
      returned: success
      sample: 1.003
    counters:
      description: What was counted in this time, as RV(rules[].counters).
      type: dict
      returned: success
    mode:
      description: As RV(rules[].pacing.mode).
      type: str
      returned: success
      sample: paced
    active_connections:
      description: As RV(rules[].pacing.active_connections).
      type: int
      returned: success
      sample: 5
    waiting_connections:
      description: As RV(rules[].pacing.waiting_connections).
      type: int
      returned: success
      sample: 4
    unpaced_connections:
      description: As RV(rules[].pacing.unpaced_connections), which counts active ones only.
      type: int
      returned: success
      sample: 0
    open_connections:
      description:
        - TCP connections of all network namespaces that the rule holds for, active or not. Null where they could not be
          looked at.
      type: int
      returned: success
      sample: 7
    unpaced:
      description:
        - Which of RV(use[].open_connections) do not pace themselves, each with RV(ignore:reason), why they do not, and
          RV(ignore:connections), how many these are.
      type: list
      elements: dict
      returned: success
      sample: [{reason: they have sent nothing since the rule holds for them, connections: 1}]
    connections:
      description:
        - The fastest connections, at most O(connections). Where there are very many, those that wait are looked at
          first, then those with the largest shares. Null where they could not be looked at.
      type: list
      elements: dict
      returned: success
      contains:
        address:
          description: The other end.
          type: str
          returned: success
          sample: 192.0.2.7
        port:
          description: Its port.
          type: int
          returned: success
          sample: 443
        local_address:
          description: This end.
          type: str
          returned: success
          sample: 192.0.2.1
        local_port:
          description: Its port.
          type: int
          returned: success
          sample: 51234
        pid:
          description: A process that has the connection. Null where none was found, as before it is accepted.
          type: int
          returned: success
          sample: 812
        command:
          description: Its command line, or null.
          type: str
          returned: success
          sample: restic backup /home
        rate:
          description:
            - What TCP sent, in IP bytes per second; also what was dropped. Null where it is not known, as where the
              connection is new, or somebody keeps its socket locked.
          type: int
          returned: success
          sample: 655360
        share:
          description: What it may send now, in bytes per second. Null while it is not known.
          type: int
          returned: success
          sample: 655360
        round_trip_us:
          description: Its round trip, in microseconds. Null while it is not known.
          type: int
          returned: success
          sample: 850
        waits:
          description: Whether it would send more than it may.
          type: bool
          returned: success
          sample: true
        binding_rule:
          description: The rule that it waits for, or null.
          type: str
          returned: success
          sample: backup
        paced:
          description: Whether it paces itself. If it does not, RV(use[].unpaced) has the reason.
          type: bool
          returned: success
          sample: true
    budgets:
      description:
        - With O(speed_limiter.ebpf.speed_limit_rule#module:each), the cgroups that use most of their own limit, at most
          O(connections), with RV(ignore:cgroup), RV(ignore:rate), RV(ignore:utilization), RV(ignore:binds) and
          RV(ignore:waiting_connections). Else null.
      type: list
      elements: dict
      returned: success
      sample: []
why:
  description:
    - What the limiter does to the process O(pid). It says what was seen in a second of looking, no more. Null where it
      could not be looked at.
  type: dict
  returned: when O(gather) has V(use), and O(pid) is given
  contains:
    text:
      description: All of it as one paragraph, as C(limiter why) prints it.
      type: str
      returned: success
      sample: >-
        Process 812 (restic backup /home) is in /system.slice/backup.service. One rule holds for what it sends: backup
        (21 Mbit/s, 100 % used). backup holds it back now: 4 of its 5 connections wait for it. Together they send
        20.9 Mbit/s. It has held somebody back for 5 min without a break. Without backup, no rule would hold it back,
        but only the path and the other side; its TCP windows allow 129 Mbit/s now.
    pid:
      description: The process.
      type: int
      returned: success
      sample: 812
    command:
      description: Its command line.
      type: str
      returned: success
      sample: restic backup /home
    cgroup:
      description: The cgroup that it is in; with V(..) if that is outside of this cgroup namespace, as in a container.
      type: str
      returned: success
      sample: /system.slice/backup.service
    rules:
      description:
        - The rules that hold for what it sends, those for its cgroup first, from the outermost on; then those for
          sockets that it brought along from other cgroups. RV(use) has their figures.
      type: list
      elements: str
      returned: success
      sample: [backup]
    binding_rule:
      description:
        - The rule that holds it back, for which most of its connections wait. Where it has none that sends, a rule that
          drops packets. Null where none does.
      type: str
      returned: success
      sample: backup
    connections:
      description: Its TCP connections under these rules, at most 1000. Null where they could not be looked at.
      type: int
      returned: success
      sample: 5
    waiting_connections:
      description: Of these, those that wait for RV(why.binding_rule).
      type: int
      returned: success
      sample: 4
    rate:
      description: What its connections send together, in IP bytes per second.
      type: int
      returned: success
      sample: 2613115
    held_seconds:
      description:
        - For how long RV(why.binding_rule) has held somebody back, as its C(binds_seconds) in RV(use). Null without
          such a rule, and where that is not known.
      type: float
      returned: success
      sample: 312.4
    without:
      description: What it would get without RV(why.binding_rule). Null without such a rule.
      type: dict
      returned: success
      contains:
        rule:
          description: The rule that would hold it back next, or null.
          type: str
          returned: success
          sample: null
        rate:
          description: What that one leaves it, beside what others send now, in bytes per second. Or null.
          type: int
          returned: success
          sample: null
        windows:
          description:
            - What TCP's congestion windows of the waiting connections allow at this moment, in bytes per second. Null
              where no connection waits.
          type: int
          returned: success
          sample: 16125000
processes:
  description: The processes that rules took, and their children, or the one that O(pid) names. Null where there is no
    cgroup2.
  type: list
  elements: dict
  returned: when O(gather) has V(processes)
  contains:
    pid:
      description: The process.
      type: int
      returned: success
    command:
      description: Its command line.
      type: str
      returned: success
    cgroup:
      description: The cgroup that it is in.
      type: str
      returned: success
    rule:
      description: The rule that took it, or null.
      type: str
      returned: success
hook:
  description: The BPF programs that run for a packet that leaves the cgroup. Null where they could not be looked at.
  type: list
  elements: dict
  returned: when O(gather) has V(hook)
  contains:
    id:
      description: The kernel's id of the program.
      type: int
      returned: success
    name:
      description: Its name.
      type: str
      returned: success
    cgroup:
      description: The cgroup that it is attached to.
      type: str
      returned: success
    attach_flags:
      description: How it was attached. V(multi) lets others run beside it; V(none) and V(override) do not.
      type: str
      returned: success
      sample: multi
    ours:
      description: Whether this collection loaded it.
      type: bool
      returned: success
"""

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.respawn import leave_old_python


def main() -> None:
    """The rest is imported only now: an old Python can read this file, and not the rest."""
    leave_old_python()
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.modules.info import main as go_on

    go_on()


if __name__ == "__main__":
    main()
