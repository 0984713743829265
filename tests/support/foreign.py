# SPDX-License-Identifier: GPL-3.0-or-later
"""C texts of programs that are not ours, and of objects that nearly are."""

from __future__ import annotations

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog

# What needs no more of the kernel's types than these headers have compiles in a fraction of the time.
INCLUDES = "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n"
SOMEONE_ELSES = f"""{INCLUDES}
SEC("cgroup_skb/egress") int limit_egress(struct __sk_buff *skb) {{ return 1; }}
SEC("sockops") int others_sockops(struct bpf_sock_ops *ops) {{ return 1; }}
char LICENSE[] SEC("license") = "GPL";
"""
LIMIT_EGRESS = 'SEC("cgroup_skb/egress") int limit_egress(struct __sk_buff *skb) { return 1; }\n'
PACE_SOCKETS = 'SEC("sockops") int pace_sockets(struct bpf_sock_ops *ops) { return 1; }\n'
SETTLE_SOCKETS = 'SEC("iter/tcp") int settle_sockets(void *context) { return 0; }\n'
CARRY_OVER = 'SEC("tc") int carry_over(struct __sk_buff *skb) { return 0; }\n'
REFUSED_PACE = 'SEC("sockops") int pace_sockets(struct bpf_sock_ops *ops) { return *(volatile int *)7; }\n'
REFUSED_SETTLE = 'SEC("iter/tcp") int settle_sockets(void *context) { return *(volatile int *)context; }\n'


def an_object(*programs: str, key: str = "") -> str:
    """An object with our maps, or with all keys of another type, and these programs."""
    text = INCLUDES + 'char LICENSE[] SEC("license") = "GPL";\n'
    for row in catalog.LIMITER.maps:
        name, of_socket = row.name, row.type == catalog.SOCKET_STORAGE
        text += (
            f"struct {name}_value {{ char bytes[{row.value.size}]; }};\n"
            f"struct {{ __uint(type, {row.type}); __uint(max_entries, {0 if of_socket else 1}); "
            f"__uint(map_flags, {int(of_socket)}); __type(value, struct {name}_value); "
            f'__type(key, {key or ("int" if row.key.size == 4 else "__u64")}); }} {name} SEC(".maps");\n'
        )
    return text + CARRY_OVER + "".join(programs)


OURS = an_object(LIMIT_EGRESS, PACE_SOCKETS, SETTLE_SOCKETS)
