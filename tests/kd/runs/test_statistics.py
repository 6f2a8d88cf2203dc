"""Paired differences: Student's t by its printed tables and by scipy, and when a verdict is one."""

from __future__ import annotations

import pytest

from kd.runs.statistics import differences, interval95, t975


@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042), (120, 1.980)],
)
def test_quantiles_are_those_of_the_printed_tables(freedom, t):
    assert round(t975(freedom), 3) == t


def test_one_value_has_no_interval_and_equal_ones_an_empty_one():
    assert interval95([]) is None
    assert interval95([0.02]) is None
    assert interval95([0.25, 0.25]) == [0.25, 0.25]


def test_quantiles_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="comes with the extra duplicates")
    for freedom in range(1, 200):
        assert t975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-12)


@pytest.mark.parametrize("pairs", range(7))
def test_fewer_than_five_pairs_prove_nothing_however_far_from_zero(pairs):
    up = [(0.5 + 0.001 * i, 0.1) for i in range(pairs)]
    proven = pairs >= 5
    assert differences(up).verdict == ("better" if proven else "unproven")
    assert differences([pair[::-1] for pair in up]).verdict == ("worse" if proven else "unproven")


def test_pairs_without_both_scores_are_not_counted():
    found = differences([(0.5, None), (None, 0.5), (0.5, 0.25), (0.25, 0.5), (0.5, 0.5)])
    assert (found.differences, found.difference) == ([0.25, -0.25, 0.0], 0.0)
    assert found.signs == {"up": 1, "down": 1, "same": 1}
    assert found.means == pytest.approx({"runs": 1.25 / 3, "baseline": 1.25 / 3})
    nothing = differences([(None, None)])
    assert (nothing.means, nothing.difference, nothing.interval95) == ({"runs": None, "baseline": None}, None, None)
    assert nothing.verdict == "unproven"
