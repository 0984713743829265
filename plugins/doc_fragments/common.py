# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What all modules of this collection have in common."""

    DOCUMENTATION = r"""
requirements:
  - Linux 5.10 or newer with cgroup v2 and BTF
  - Python 3.9 or newer on the managed node, with C(_cffi_backend) (package C(python3-cffi-backend) or C(python3-cffi))
  - libbpf 1.0 or newer on the managed node
attributes:
  action_group:
    support: full
    membership: [speed_limiter.ebpf.speed_limit]
    description: Use C(group/speed_limiter.ebpf.speed_limit) in C(module_defaults) to set defaults for this module.
  check_mode:
    support: full
    description: Can run in check mode and return the changed status prediction without modifying the target.
  diff_mode:
    support: full
    description: Returns details on what has changed (or possibly needs changing in check mode), when in diff mode.
  platform:
    support: full
    platforms: linux
    description: Target OS/families that can be operated against.
notes:
  - The task needs root. Use C(become).
  - If the interpreter is older or lacks a requirement, the module runs again on one of the distribution's that has it.
    Under Mitogen it cannot, and the error names the interpreter to set as C(ansible_python_interpreter).
"""

    IDEMPOTENT = r"""
attributes:
  idempotent:
    support: full
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no
      change.
"""
