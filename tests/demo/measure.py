# SPDX-License-Identifier: GPL-3.0-or-later
"""What arrives at the receiver's interface, and whether it is what the limit promises.

Usage, in the receiver's network namespace:
    measure.py FILE PROTOCOL LIMIT SECONDS SETTLE
        waits SETTLE seconds, measures for SECONDS and up to the end of a burst, and adds a line to FILE; LIMIT is in
        Mbit/s, and 0 where there is none
    measure.py FILE table
        prints what FILE holds; fails where a limit did not hold
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

ETHERNET_HEADER = 14  # bytes: the interface counts it, a limit does not
LOWEST, HIGHEST = 0.95, 1.01  # of the limit
FREE = 1.5  # times its highest limit: what a sender without a limit must reach, or the demo shows nothing
PAUSE = 0.02  # seconds without a byte: a burst is over
LONGEST_BURST = 0.5  # seconds after which it is no burst, but a flow


class Measured(NamedTuple):
    """One line of the table; both rates in Mbit/s of IP packets."""

    protocol: str
    limit: int
    rate: float


def ip_bytes() -> int:
    """IP bytes that the interface of this network namespace has received."""
    for line in Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines():
        name, _colon, counters = line.partition(":")
        if name.strip() == "veth0":
            received, packets = counters.split()[:2]
            return int(received) - ETHERNET_HEADER * int(packets)
    raise SystemExit("measure.py: this network namespace has no interface veth0")


def end_of_burst() -> tuple[int, float]:
    """Bytes so far and the time, at the next moment at which the bucket is empty.

    TCP without pacing empties the bucket in a burst, and then stops until a timer of its own (200 ms) tries again. What
    passes between the ends of two bursts is what the limit has granted in that time; between two other moments it may
    be a burst more or less. A sender that never stops keeps the bucket empty all the time: there, any moment will do.
    """
    seen, last = ip_bytes(), None
    now = time.monotonic()
    deadline = now + LONGEST_BURST
    while now < deadline and (last is None or now - last < PAUSE):
        time.sleep(0.002)
        received, now = ip_bytes(), time.monotonic()
        if received != seen:
            seen, last = received, now
    return seen, last or now


def measure(protocol: str, limit: int, seconds: float, settle: float) -> Measured:
    time.sleep(settle)
    before, begin = end_of_burst()
    time.sleep(seconds)
    after, end = end_of_burst()
    return Measured(protocol, limit, (after - before) * 8 / (end - begin) / 1e6)


def table(lines: list[Measured]) -> list[str]:
    """Prints the table; returns what is wrong with it."""
    wrong = []
    print(f"{'protocol':<10}{'limit':>14}{'measured':>17}{'measured/limit':>17}")
    for index, (protocol, limit, rate) in enumerate(lines):
        again = any(earlier.protocol == protocol for earlier in lines[:index])
        wanted = f"{limit} Mbit/s" if limit else "none again" if again else "none"
        ratio = f"{rate / limit:.3f}" if limit else ""
        print(f"{protocol:<10}{wanted:>14}{rate:>10.1f} Mbit/s{ratio:>17}".rstrip())
        if limit and not LOWEST <= rate / limit <= HIGHEST:
            wrong.append(f"{protocol}, {wanted}: measured/limit is not between {LOWEST} and {HIGHEST}")
        highest = max(other.limit for other in lines if other.protocol == protocol)
        if not limit and rate < FREE * highest:
            wrong.append(f"{protocol}, limit {wanted}: not even {FREE} times the limit of {highest} Mbit/s")
    return wrong


def main(file: Path, command: list[str]) -> None:
    if command == ["table"]:
        wrong = table([Measured(*json.loads(line)) for line in file.read_text(encoding="ascii").splitlines()])
        if wrong:
            raise SystemExit("\n".join(f"demo: FAILED: {sentence}" for sentence in wrong))
        return
    protocol, limit, seconds, settle = command
    measured = measure(protocol, int(limit), float(seconds), float(settle))
    with file.open("a", encoding="ascii") as lines:
        lines.write(json.dumps(measured) + "\n")
    print(f"{measured.rate:.1f} Mbit/s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
