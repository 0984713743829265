# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why packets are dropped or get a congestion notice (enum limiter_reason of bpf/layout.h), and a rule's counters."""

from __future__ import annotations

import typing as t

# In the order of the enum. docs/reasons.md says what each means.
REASONS = ("unknown", "empty", "tcp_reserve", "debt", "admission", "ahead", "lump", "low")
# Not every reason leads to both: "low" never drops.
DROPS = REASONS[:-1]
NOTICES = ("unknown", "ahead", "lump", "low")

NONE = (0,) * len(REASONS)


class Counters(t.NamedTuple):
    """What a rule has passed, dropped and given notices since it was made, in IP packets and IP bytes on the wire."""

    packets: int = 0
    bytes: int = 0
    dropped_bytes: int = 0
    drops: tuple[int, ...] = NONE  # packets by reason
    notices: tuple[int, ...] = NONE  # packets that passed with a congestion notice, by reason
    delayed_packets: int = 0  # passed, and waited in their device's queue
    delay_ns: int = 0  # ... in all

    @property
    def dropped_packets(self) -> int:
        return sum(self.drops)

    def __add__(self, other: object) -> Counters:
        """What two have counted together."""
        if not isinstance(other, Counters):
            return NotImplemented
        drops, notices = (
            tuple(map(sum, zip(*both))) for both in ((self.drops, other.drops), (self.notices, other.notices))
        )
        return Counters(
            self.packets + other.packets,
            self.bytes + other.bytes,
            self.dropped_bytes + other.dropped_bytes,
            drops,
            notices,
            self.delayed_packets + other.delayed_packets,
            self.delay_ns + other.delay_ns,
        )

    def __sub__(self, earlier: object) -> Counters:
        """What was counted since; not less than nothing, since packets that another rule drops are taken back."""
        if not isinstance(earlier, Counters):
            return NotImplemented

        def since(now: t.Sequence[int], then: t.Sequence[int]) -> tuple[int, ...]:
            return tuple(max(one - other, 0) for one, other in zip(now, then))

        packets, passed, dropped, delayed, delay = since(
            (self.packets, self.bytes, self.dropped_bytes, self.delayed_packets, self.delay_ns),
            (earlier.packets, earlier.bytes, earlier.dropped_bytes, earlier.delayed_packets, earlier.delay_ns),
        )
        drops, notices = since(self.drops, earlier.drops), since(self.notices, earlier.notices)
        return Counters(packets, passed, dropped, drops, notices, delayed, delay)

    def about(self) -> dict[str, t.Any]:
        """``counters`` of a rule in a module's result."""
        return {
            "packets": self.packets,
            "bytes": self.bytes,
            "dropped_packets": self.dropped_packets,
            "dropped_bytes": self.dropped_bytes,
            "congestion_marks": sum(self.notices),
            "delayed_packets": self.delayed_packets,
            "mean_delay_us": self.delay_ns // 1000 // self.delayed_packets if self.delayed_packets else None,
            "drops": {name: count for name, count in zip(REASONS, self.drops) if name in DROPS},
            "notices": {name: count for name, count in zip(REASONS, self.notices) if name in NOTICES},
        }
