# SPDX-License-Identifier: GPL-3.0-or-later
"""A long way between a sender and a receiver: three network namespaces in a row, of which the middle one delays."""

from __future__ import annotations

import itertools
import os
import subprocess

from ...support import net

# More packets than are ever on their way: a delay must not lose any.
QUEUE = 200_000
# What the way itself passes, as every real one does: or connections without a limit would take all of the CPU.
NARROWEST = "100mbit"
_numbers = itertools.count()


def batch(*command: str, lines: list[str]) -> None:
    """One process of ip or tc for many commands: in an emulated guest each process costs a tenth of a second."""
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run([*command, "-batch", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()} in {text}")


class Path:
    """Sender, router, receiver. Its namespaces can be used again for any number of measurements, one at a time.

    Use as a context manager: leaving it removes all that it made. Offloads are off, as in net.Pair; and what TCP has
    learned of a way (the metrics of its destinations) is not kept for the next measurement.
    """

    address, sender_address = "10.255.2.2", "10.255.1.2"

    def __init__(self) -> None:
        number = next(_numbers)
        self.sender, self.router, self.receiver = (
            f"{role}-{os.getpid()}-{number}" for role in ("send", "route", "receive")
        )
        self._delayed = False
        peers = [(self.sender, "near", 1), (self.receiver, "far", 2)]
        # Both ends first: `ip link` names them.
        batch("ip", lines=[f"netns add {name}" for name in (self.sender, self.router, self.receiver)])
        links = [
            f"link add veth0 netns {end} type veth peer name {side} netns {self.router}"
            for end, side, _network in peers
        ]
        batch("ip", lines=links)
        for end, _side, network in peers:
            batch(
                "ip",
                "-n",
                end,
                lines=[
                    f"address add 10.255.{network}.2/24 dev veth0",
                    "link set veth0 up",
                    "link set lo up",
                    f"route add default via 10.255.{network}.1",
                ],
            )
            _inside(end, f"ethtool -K veth0 {' '.join(net.OFFLOADS_OFF)}; {_NO_METRICS}")
        ups = [f"address add 10.255.{network}.1/24 dev {side}" for _end, side, network in peers]
        batch("ip", "-n", self.router, lines=[*ups, "link set near up", "link set far up"])
        off = "; ".join(f"ethtool -K {side} {' '.join(net.OFFLOADS_OFF)}" for side in ("near", "far"))
        _inside(self.router, f"{off}; echo 1 >/proc/sys/net/ipv4/ip_forward")

    def __enter__(self) -> Path:
        return self

    def __exit__(self, *_: object) -> None:
        batch("ip", lines=[f"netns delete {name}" for name in (self.sender, self.router, self.receiver)])

    def delay(self, rtt_ms: float, loss_percent: float = 0) -> None:
        """Half of the round trip each way; what is lost is lost on the way to the receiver. 0: no delay at all."""
        if self._delayed:
            batch("tc", "-n", self.router, lines=[f"qdisc delete dev {side} root" for side in ("near", "far")])
        self._delayed = bool(rtt_ms)
        if not rtt_ms:
            return
        loss = f" loss {loss_percent}%" if loss_percent else ""
        each = f"netem limit {QUEUE} delay {rtt_ms / 2:g}ms"
        lines = [f"qdisc add dev far root {each}{loss} rate {NARROWEST}", f"qdisc add dev near root {each}"]
        batch("tc", "-n", self.router, lines=lines)


_NO_METRICS = "echo 1 >/proc/sys/net/ipv4/tcp_no_metrics_save"


def _inside(namespace: str, script: str) -> None:
    net.run("nsenter", f"--net=/run/netns/{namespace}", "sh", "-ec", script)
