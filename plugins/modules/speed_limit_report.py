#!/usr/bin/python
# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
DOCUMENTATION = r"""
module: speed_limit_report
short_description: Write what a fleet answered as text, JSON and HTML
version_added: 0.1.0
description:
  - Writes the report of the playbook C(speed_limiter.ebpf.report), on the controller. Looks at no host.
  - For each host of the play, it takes three registered variables. C(speed_limiter_seen) is the result of
    M(speed_limiter.ebpf.speed_limit_info) with C(gather=host,rules,boot). C(speed_limiter_compared) is that of
    M(speed_limiter.ebpf.speed_limit_rules) in check mode. C(speed_limiter_named) is the list of the names of all wanted
    rules. A host without them is one that failed.
  - Nothing that a host has answered is taken for a template or for markup.
author:
  - Speed Limiter contributors (@speed-limiter)
attributes:
  action:
    support: full
    description: Runs on the controller, as the user who runs the playbook.
  check_mode:
    support: full
    description: Writes the report in check mode, too, since no host is changed by that.
  diff_mode:
    support: none
    description: Shows no diff of the report.
  idempotent:
    support: N/A
    description: A report has the time at which it was written, and reports no change.
options:
  text:
    description: Path of the text. Without it none is written.
    type: str
  json:
    description: Path of the JSON document, whose schema is C(docs/report.schema.json).
    type: str
  html:
    description: Path of the page, one file that needs no other.
    type: str
  fail:
    description:
      - What RV(failure) tells. V(drift) are hosts that differ from what is wanted; V(unlimited) are hosts on which
        something that a rule is to limit is not limited; V(any) are all hosts that are not known to be as wanted.
      - Hosts that failed, as by a rate that is refused, are told with any of these.
    type: list
    elements: str
    choices: [drift, unlimited, any]
    default: []
seealso:
  - module: speed_limiter.ebpf.speed_limit_info
    description: What a host has.
  - module: speed_limiter.ebpf.speed_limit_rules
    description: In check mode, what a host lacks.
"""

EXAMPLES = r"""
- name: Write a page that everybody can open
  speed_limiter.ebpf.speed_limit_report:
    html: /srv/www/limits.html
  delegate_to: localhost
  become: false
  run_once: true

- name: Write what a program reads, and look for hosts that differ
  speed_limiter.ebpf.speed_limit_report:
    json: limits.json
    fail: [drift]
  delegate_to: localhost
  become: false
  run_once: true
  register: report

- name: Fail where some differ
  ansible.builtin.assert:
    that: report.failure is none
    fail_msg: "{{ report.failure }}"
  run_once: true
"""

RETURN = r"""
summary:
  description:
    - Numbers of hosts, by state; and how many differ from what is wanted, and on how many something is not limited, by
      which O(fail=drift) and O(fail=unlimited) decide. A host that failed is a failure for all of them.
  type: dict
  returned: success
  sample:
    hosts: 500
    not_limited: 0
    differs: 14
    cannot: 0
    failed: 1
    unreachable: 3
    as_wanted: 482
    drift: 14
    unlimited: 2
files:
  description: Absolute paths of what was written, by form.
  type: dict
  returned: success
  sample: {html: /srv/www/limits.html}
lines:
  description: How the text begins.
  type: list
  elements: str
  returned: success
  sample: ["500 hosts: 482 as wanted, 14 differ, 1 failed, 3 unreachable"]
failure:
  description: Why the report is a failure for what O(fail) asks, or null.
  type: str
  returned: success
  sample: 14 of 500 hosts differ from what is wanted
"""
