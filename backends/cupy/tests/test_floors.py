"""The least times, of an H100 on paper: 3.35 TB/s and 800 TFLOP/s."""

from __future__ import annotations

import pytest

from tinymistral_cupy.floors import Heads, Rates, decode_seconds, prefill_seconds, visible_pairs

H100 = Rates(bandwidth=3.35e12, operations=800e12)
HEADS = Heads()


@pytest.mark.parametrize(("T", "milliseconds"), [(8192, 0.515), (32768, 2.58)])
def test_the_floor_of_prefill(T, milliseconds):
    assert prefill_seconds(H100, T, HEADS) * 1e3 == pytest.approx(milliseconds, rel=5e-3)
    small = sum(0 <= i - j < 5 for i in range(12) for j in range(12))
    assert visible_pairs(12, 5) == small


@pytest.mark.parametrize(("rows", "microseconds"), [(1, 5.0), (8, 40), (32, 160)])
def test_the_floor_of_decoding(rows, microseconds):
    assert decode_seconds(H100, rows, HEADS) * 1e6 == pytest.approx(microseconds, rel=5e-3)
