# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rates and sizes: what a user may write, and how they are shown. Inside, all are integers: bytes per second, bytes."""

from __future__ import annotations

import re
import typing as t

from .errors import LimiterError

MIN_RATE = 8_000  # bytes per second: 64 kbit/s
MAX_RATE = 12_500_000_000  # bytes per second: 100 Gbit/s
MIN_BUCKET = 2_048  # bytes: one full Ethernet packet has to fit
MAX_BUCKET = 1 << 40  # bytes: 88 s at the highest rate; the program's arithmetic is exact to 2^47

RATE_FORMS = (
    "an integer in bytes per second, or a number with k, m, g (powers of 1024 bytes per second) "
    "or kbit, mbit, gbit (powers of 1000 bits per second)"
)
BUCKET_FORMS = "an integer in bytes, or a number with k, m, g (powers of 1024 bytes)"

_NUMBER = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?([A-Za-z/]*)")
_AMBIGUOUS = re.compile(r"[kmgt]?i?b(yte)?s?(ps|/s)?", re.IGNORECASE)
_TRUTH = re.compile(r"true|false|yes|no|on|off", re.IGNORECASE)
_FLOAT = re.compile(r"[0-9.]+e[+-]?[0-9]+|[+-]?\.?(inf|nan)", re.IGNORECASE)
_BYTES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_BITS = {"kbit": 1000 // 8, "mbit": 1000**2 // 8, "gbit": 1000**3 // 8}


def parse_rate(option: str, value: object) -> int:
    """A rate in bytes per second.

    ``k``, ``m``, ``g`` are powers of 1024 bytes, as in the tool that this collection replaces. ``kbit``, ``mbit``,
    ``gbit`` are powers of 1000 bits, as in tc(8). ``mb``, ``mbps`` and the like mean different things to different
    tools and are refused. Raises LimiterError ``bad_rate``, which names the option, the value and the accepted forms.
    """
    rate = _parse(option, value, {**_BYTES, **_BITS}, "bad_rate", RATE_FORMS)
    if not MIN_RATE <= rate <= MAX_RATE:
        raise LimiterError(
            "bad_rate",
            f"{option}: {value!r} is out of range",
            f"a rate is at least {MIN_RATE} bytes per second (64kbit) and at most {MAX_RATE} (100gbit)",
            f"Give {RATE_FORMS}",
        )
    return rate


def parse_bucket(option: str, value: object) -> int:
    """A bucket in bytes, without the ``*bit`` forms. Raises LimiterError ``bad_bucket`` as parse_rate does."""
    bucket = _parse(option, value, _BYTES, "bad_bucket", BUCKET_FORMS)
    if not MIN_BUCKET <= bucket <= MAX_BUCKET:
        raise LimiterError(
            "bad_bucket",
            f"{option}: {value!r} is out of range",
            f"a bucket is at least {MIN_BUCKET} bytes (one full packet) and at most {MAX_BUCKET}",
            f"Give {BUCKET_FORMS}",
        )
    return bucket


def _parse(option: str, value: object, units: t.Mapping[str, int], kind: str, forms: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):  # what is stored
        return value
    text = str(value).strip()
    match = _NUMBER.fullmatch(text)
    factor = units.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        why = "it is not a positive number with a unit"
        if _TRUTH.fullmatch(text):
            why = "yes, no, on, off, true and false are truth values in YAML, and no number"
        elif _FLOAT.fullmatch(text):
            why = "it is a floating point number, which YAML makes of digits with an exponent"
        elif match:
            why = f"the unit {match.group(2)!r} is not known here"
            if _AMBIGUOUS.fullmatch(match.group(2)):
                why = f"{match.group(2)!r} is ambiguous: bits to some tools and bytes to others, by 1000 or by 1024"
        raise LimiterError(kind, f"{option}: {value!r} is refused", why, f"Give {forms}")
    if "." not in match.group(1):
        return int(match.group(1)) * factor
    from fractions import Fraction  # here, since it takes longer to import than all of this package's core

    exact = Fraction(match.group(1)) * factor
    if exact.denominator != 1:
        raise LimiterError(
            kind, f"{option}: {value!r} is refused", "it is not a whole number of bytes", f"Give {forms}"
        )
    return int(exact)


def show_rate(rate: int) -> str:
    """``5242880`` as ``5242880 B/s (41.9 Mbit/s)``."""
    return f"{rate} B/s ({short_rate(rate)})"


def short_rate(rate: int) -> str:
    """``5242880`` as ``41.9 Mbit/s``."""
    for factor, unit in ((10**9, "Gbit/s"), (10**6, "Mbit/s"), (10**3, "kbit/s")):
        if rate * 8 >= factor:
            return f"{_three_digits(rate * 8 / factor)} {unit}"
    return f"{rate * 8} bit/s"


def short_size(size: int) -> str:
    """``5242880`` as ``5 MiB``."""
    for factor, unit in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if size >= factor:
            return f"{_three_digits(size / factor)} {unit}"
    return f"{size} B"


def _three_digits(number: float) -> str:
    return f"{number:.3g}" if number < 999.5 else f"{number:.0f}"
