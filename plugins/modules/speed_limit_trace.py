#!/usr/bin/python
# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
DOCUMENTATION = r"""
module: speed_limit_trace
short_description: Show what becomes of packets, and why
version_added: 0.1.0
description:
  - Looks at packets for some seconds. For each it returns which BPF programs of its cgroup saw it, ours or not, and
    what was decided, by which rule and for which reason.
  - While the trace lasts, a program that decides in the same way and tells about it has the place of the one that
    limits. Rules hold without a gap, and other tasks go on. Before and after a trace the program costs nothing more.
  - Whoever reads too slowly holds nobody up. What could not be told is counted in RV(lost).
  - A trace ends before its time, with a warning, if a task loads or unloads the program, or removes O(rule). If the
    task is killed, its program is silent once O(duration) is over, and the next task that changes something puts the
    former program back.
  - All options that choose packets must fit. Without any of them every packet of the host is told.
author:
  - Speed Limiter contributors (@speed-limiter)
extends_documentation_fragment:
  - speed_limiter.ebpf.common
attributes:
  check_mode:
    support: full
    details:
      - In check mode nothing is traced; what would be refused is refused.
    description: Can run in check mode and return the changed status prediction without modifying the target.
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
  duration:
    description:
      - The trace ends after so many seconds, from 0.1 to 3600.
    type: float
    default: 5.0
  max_events:
    description:
      - The trace ends after so many packets, from 1 to 10000.
    type: int
    default: 100
  rule:
    description:
      - Only packets that this rule holds for. It excludes O(direction=in).
    type: str
  cgroup_paths:
    description:
      - Only packets of sockets in these cgroups or below them. Stars are allowed, and nothing need be there yet.
    type: list
    elements: str
    aliases: [cgroup_path]
  units:
    description:
      - Only packets of these units of systemd, running or not.
    type: list
    elements: str
    aliases: [unit]
  users:
    description:
      - Only packets of these users' sessions, by name or number.
    type: list
    elements: str
    aliases: [user]
  containers:
    description:
      - Only packets of these containers, which must run.
    type: list
    elements: str
    aliases: [container]
  pid:
    description:
      - Only packets of this process's sockets, those that are open and those that it makes during the trace. Not of its
        children. In a PID namespace of its own, as in a container, the task knows processes by other numbers than the
        kernel's programs do; there, those that are made during the trace are not told, and a warning says so.
    type: int
  direction:
    description:
      - V(out) are packets that leave, which rules limit. Of packets that arrive, which V(in) tells, only the programs
        and the size are known.
    type: str
    choices: [out, in, both]
    default: out
  reasons:
    description:
      - Only packets of which one of these was decided. See RV(sessions[].reason).
    type: list
    elements: str
    choices: [empty, tcp_reserve, debt, admission, ahead, lump, low, passed, exempt, encrypted, other_program]
    aliases: [reason]
  address:
    description:
      - Only packets from or to this address or network, such as V(192.0.2.7) or V(2001:db8::/32).
    type: str
  port:
    description:
      - Only packets of TCP or UDP from or to this port.
    type: int
  object:
    description:
      - The object file that the program was loaded from, if it was given to
        O(speed_limiter.ebpf.speed_limit_program#module:object).
    type: path
seealso:
  - module: speed_limiter.ebpf.speed_limit_info
    description: What rules have counted, and what they are used for.
  - module: speed_limiter.ebpf.speed_limit_program
    description: The program that enforces the rules.
"""

EXAMPLES = r"""
- name: What becomes of the packets of a service
  speed_limiter.ebpf.speed_limit_trace:
    unit: nginx
    duration: 2
  register: trace

- name: Show it as text
  ansible.builtin.debug:
    var: trace.text

- name: Which packets find no tokens, and whose are they
  speed_limiter.ebpf.speed_limit_trace:
    reasons: [empty, tcp_reserve]
    max_events: 20
  register: dropped

- name: Show the connections
  ansible.builtin.debug:
    msg: "{{ dropped.sessions | map(attribute='target') | unique }}"

- name: Does another program drop what goes to this network
  speed_limiter.ebpf.speed_limit_trace:
    address: 192.0.2.0/24
    reason: other_program
"""

RETURN = r"""
sessions:
  description: A packet each, in the order in which they were seen.
  type: list
  elements: dict
  returned: success
  contains:
    seconds:
      description: When it was seen, in seconds since the trace began.
      type: float
      returned: success
      sample: 0.013502
    direction:
      description: V(out) or V(in).
      type: str
      returned: success
    cgroup:
      description: The cgroup of its socket; null where that is gone, or there is no socket.
      type: str
      returned: success
      sample: /system.slice/nginx.service
    cgroup_id:
      description: The id of that cgroup; 0 without a socket.
      type: int
      returned: success
    context:
      description: The address of the packet in the kernel.
      type: str
      returned: success
      sample: '0xffff8f2ff73b4400'
    attach_type:
      description: The kernel's number of the hook, which is 1 for packets that leave and 0 for those that arrive.
      type: int
      returned: success
    programs:
      description: The BPF programs that run for a packet of that cgroup, in order. All of them run, and each can drop
        the packet. Null where that is not known. Each is in the form of
        RV(speed_limiter.ebpf.speed_limit_info#module:hook); C(name), C(cgroup) and C(attach_flags) are null for one
        that is gone.
      type: list
      elements: dict
      returned: success
      sample:
        - {id: 1497, name: limit_and_trace, attach_flags: multi, cgroup: /, ours: true}
    programs_from:
      description: How that is known. V(packet) is what the kernel ran for this packet. V(query) is what it lists for
        the cgroup, asked for a moment later, where it lets no program look into its memory (lockdown) or runs eight or
        more.
      type: str
      returned: success
    verdict:
      description: V(passed), V(dropped), or V(notice) for a packet that passed and told TCP to slow down.
      type: str
      returned: success
    reason:
      description:
        - Why it was dropped or got a notice, as in the counters of a rule, V(empty), V(tcp_reserve), V(debt),
          V(admission), V(ahead), V(lump), V(low).
        - Or V(passed); V(exempt) if no rule holds for it; V(encrypted) if it was charged before IPsec encrypted it;
          V(other_program) if ours let it pass and another program on the hook dropped it.
      type: str
      returned: success
    rule:
      description: The rule that dropped it or gave the notice. If it passed, the rule that holds its connection back
        most. Null without one.
      type: str
      returned: success
      sample: web
    bytes:
      description: IP bytes on the wire, which rules are charged with.
      type: int
      returned: success
    segments:
      description: IP packets on the wire.
      type: int
      returned: success
    control:
      description: Whether it is TCP without data.
      type: bool
      returned: success
    held:
      description: Whether only its share keeps its connection from sending more.
      type: bool
      returned: success
    early:
      description: Whether it is one of the first ten segments of its connection, which TCP does not pace.
      type: bool
      returned: success
    protocol:
      description: V(tcp), V(udp) or another name, or the number of a protocol without a name here.
      type: str
      returned: success
    source:
      description: Its address.
      type: str
      returned: success
    source_port:
      description: Its port; null if it has none.
      type: int
      returned: success
    target:
      description: The address that it goes to.
      type: str
      returned: success
    target_port:
      description: The port that it goes to; null if it has none.
      type: int
      returned: success
    connection:
      description: The kernel's number of its socket (SO_COOKIE), by which packets of one connection are told apart.
      type: int
      returned: success
    share:
      description: What its connection may send, in bytes per second; null where it was told nothing.
      type: int
      returned: success
    rules:
      description: The rules that hold for it, the innermost first.
      type: list
      elements: dict
      returned: success
      contains:
        name:
          description: Name of the rule; null if it is gone.
          type: str
          returned: success
        budget:
          description: The cgroup whose own budget was charged, for a rule with C(each); else null.
          type: str
          returned: success
        verdict:
          description: V(passed), V(notice) or V(dropped); V(refunded) if it let the packet pass and a rule above
            dropped it; null if it was not asked, since another had dropped the packet.
          type: str
          returned: success
        reason:
          description: Why it dropped the packet or gave a notice; else null.
          type: str
          returned: success
        tokens:
          description: What its bucket had when all had decided, in bytes; negative is debt.
          type: int
          returned: success
        share:
          description: What it lets one connection send, in bytes per second; null where that is not known.
          type: int
          returned: success
text:
  description: The same as lines of text. The first ones of a session have the form of the C tool
    C(debug_cgroup_pbf).
  type: list
  elements: str
  returned: success
  sample:
    - SESSION: direction=out cgroup_id=12345 ctx=0xffff8f2ff73b4400 atype=1
    - '  PROG: id=1497 name=limit_and_trace'
ended:
  description: V(duration) or V(max_events). Or V(replaced), V(unloaded), V(rule_removed) if another task ended the
    trace, which a warning says.
  type: str
  returned: success
lost:
  description: Packets that were not told, since there were more than could be read.
  type: int
  returned: success
other_drops_seen:
  description: Whether the kernel tells what other programs drop. If not, such packets look as if they had passed.
  type: bool
  returned: success
"""

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.respawn import leave_old_python


def main() -> None:
    """The rest is imported only now: an old Python can read this file, and not the rest."""
    leave_old_python()
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.modules.trace import main as go_on

    go_on()


if __name__ == "__main__":
    main()
