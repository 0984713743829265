#!/usr/bin/python
# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
DOCUMENTATION = r"""
module: speed_limit_command
short_description: Install the command limiter on a host, or remove it
version_added: 0.1.0
description:
  - Installs C(limiter), which does on the host itself, without Ansible, what the other modules do. It has their code,
    and sees the same rules. Its manual page and what bash completes come along.
  - It is of the version of this collection. The one that was there is replaced in one step.
  - The role P(speed_limiter.ebpf.setup#role) does this.
author:
  - Speed Limiter contributors (@speed-limiter)
extends_documentation_fragment:
  - speed_limiter.ebpf.common
  - speed_limiter.ebpf.common.idempotent
options:
  state:
    description:
      - V(present) installs the command, or this version of it.
      - V(absent) removes it. Rules and the program stay.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: speed_limiter.ebpf.speed_limit_program
    description: The program that enforces the rules.
  - module: speed_limiter.ebpf.speed_limit_info
    description: What is limited on a host, by which rule, and what the host lacks.
"""

EXAMPLES = r"""
- name: Install the command limiter
  speed_limiter.ebpf.speed_limit_command:

- name: Remove it
  speed_limiter.ebpf.speed_limit_command:
    state: absent
"""

RETURN = r"""
command:
  description: The command that is there, or would be. Null where none is.
  type: dict
  returned: success
  contains:
    path:
      description: Where it is.
      type: str
      returned: success
      sample: /usr/sbin/limiter
    version:
      description: The version of this collection.
      type: str
      returned: success
      sample: 0.1.0
    interpreter:
      description: The Python that runs it.
      type: str
      returned: success
      sample: /usr/bin/python3
"""

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.respawn import leave_old_python


def main() -> None:
    """The rest is imported only now: an old Python can read this file, and not the rest."""
    leave_old_python()
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.modules.command import main as go_on

    go_on()


if __name__ == "__main__":
    main()
