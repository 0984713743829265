# SPDX-License-Identifier: GPL-3.0-or-later
"""What no cell of ours may ever do, whatever the machine: a goal that is missed is a figure, this is a failure."""

from __future__ import annotations

from typing import Any

# As bench/shapers.py calls it; it is not imported, since it needs a sandbox's modules and this does not.
OURS, FQ = "speed_limiter", "speed_limiter with fq"
LARGEST_PACKET = 65536
USED = 0.5  # of the limit, where more is wanted
SHARE = 0.2  # of it, for one of two who want all
MADE = 0.5  # of the new connections that were wanted
PAGE = 4.0  # times what a page takes at exactly the limit
SILENCE = 1000.0  # milliseconds, and two packets' time
Stored = dict[str, Any]


def violated(cell: Stored) -> str:
    """How a cell broke a bound, or nothing."""
    if cell["shaper"] not in (OURS, FQ):
        return ""
    if "steps" in cell:
        return "; ".join(filter(None, (_changed(step, cell["seconds"]) for step in cell["steps"])))
    return _excess(cell) or _least(cell)


def _excess(cell: Stored) -> str:
    """The bucket is full at the start. Headers of fragments are made after the bytes were counted."""
    bucket = cell.get("bucket") or cell["limit"] / 8
    fragments = cell.get("fragments", 0) * cell["limit"] / 8 * (cell.get("seconds", 0) + cell.get("warm_up", 0))
    allowed = bucket + 1.5 * LARGEST_PACKET + fragments
    if cell["excess"] <= allowed:
        return ""
    return f"{cell['excess'] / 1e3:.0f} kB more than the rate, where {allowed / 1e3:.0f} kB are allowed"


def _least(cell: Stored) -> str:
    limit = cell["limit"]
    if "ideal" in cell:
        times = cell["took"] / cell["ideal"]
        return f"{times:.1f} times as long as at the limit" if times > PAGE else ""
    if cell.get("failed"):
        return f"{cell['failed']} connections or answers failed"
    if cell["used"] < USED * limit:
        return f"only {100 * cell['used'] / limit:.1f} % of the limit"
    if "made" in cell and cell["made"] < MADE * cell["per_second"]:
        return f"only {cell['made']:.0f} of {cell['per_second']} new connections a second"
    for who in ("tcp", "honest"):
        if who in cell and cell[who] < SHARE * limit:
            return f"only {100 * cell[who] / limit:.1f} % of the limit for {who}"
    return ""


def _changed(step: Stored, seconds: float) -> str:
    """From one second after a change to the next one."""
    rate, rest = step["rate"], step["rest"]
    most = rate + (rate + 8 * 1.5 * LARGEST_PACKET) / (seconds - 1)
    if not USED * rate <= rest <= most:
        return f"{100 * rest / rate:.1f} % of {rate / 1e6:g} Mbit/s a second after a change to it"
    allowed = SILENCE + 2000 * 8 * 1500 / rate
    return f"silent for {step['silence']:.0f} ms at {rate / 1e6:g} Mbit/s" if step["silence"] > allowed else ""
