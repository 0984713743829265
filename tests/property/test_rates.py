# SPDX-License-Identifier: GPL-3.0-or-later
"""Rates and buckets, against their definitions in exact fractions."""

from fractions import Fraction

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import rates
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from hypothesis import example, given
from hypothesis import strategies as st

FACTORS = {
    "": Fraction(1),
    **{unit: Fraction(1024 ** (power + 1)) for power, unit in enumerate("kmg")},
    **{f"{unit}bit": Fraction(1000 ** (power + 1), 8) for power, unit in enumerate("kmg")},
}
UNITS = st.sampled_from(sorted(FACTORS)).flatmap(lambda unit: st.sampled_from([unit, unit.upper(), unit.capitalize()]))
NUMBERS = st.one_of(st.integers(0, 10**11).map(str), st.decimals(0, 10**6, places=3).map(str))


@given(NUMBERS, UNITS, st.sampled_from(["", " "]))
def test_a_rate_is_what_its_unit_says_or_is_refused(number: str, unit: str, space: str) -> None:
    exact = Fraction(number) * FACTORS[unit.lower()]
    if exact.denominator == 1 and rates.MIN_RATE <= exact <= rates.MAX_RATE:
        assert rates.parse_rate("rate", f"{number}{space}{unit}") == exact
    else:
        with pytest.raises(LimiterError) as error:
            rates.parse_rate("rate", f"{number}{space}{unit}")
        assert error.value.what.startswith("rate: ") and repr(f"{number}{space}{unit}") in error.value.what
        assert rates.RATE_FORMS in str(error.value)


@given(st.text(max_size=12))
def test_any_text_is_a_rate_or_is_refused_clearly(text: str) -> None:
    try:
        assert rates.MIN_RATE <= rates.parse_rate("rate", text) <= rates.MAX_RATE
    except LimiterError as error:
        assert error.kind == "bad_rate"


@given(st.sampled_from(["kb", "mb", "gb", "kbps", "mbps", "gbps", "KiB", "MB/s", "mib", "b", "bps", "kB"]))
def test_ambiguous_units_are_called_that(unit: str) -> None:
    with pytest.raises(LimiterError, match="ambiguous"):
        rates.parse_rate("rate", f"500{unit}")


@given(st.integers(rates.MIN_BUCKET, rates.MAX_BUCKET))
def test_a_bucket_in_bytes_is_taken_as_it_is(size: int) -> None:
    assert rates.parse_bucket("bucket", size) == rates.parse_bucket("bucket", str(size)) == size


@given(st.integers(rates.MIN_RATE, rates.MAX_RATE))
@example(124_950)  # 999.6 kbit/s
def test_both_units_are_shown_and_agree(rate: int) -> None:
    shown, _space, bits = rates.show_rate(rate).partition(" B/s (")
    number, unit = bits.rstrip(")").split(" ")
    factor = {"kbit/s": 10**3, "Mbit/s": 10**6, "Gbit/s": 10**9}[unit]
    assert int(shown) == rate and "e" not in number
    assert abs(float(number) * factor - rate * 8) <= rate * 8 * 0.006
