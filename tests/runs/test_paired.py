"""Paired tests against scipy's own, Holm's correction against its definition."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ctpo.runs.means import mean
from ctpo.runs.paired import holm, paired

ONE = [0.91, 0.93, 0.88, 0.95, 0.90]
OTHER = [0.85, 0.94, 0.80, 0.90, 0.89]


def test_a_paired_test_is_scipys() -> None:
    expected = stats.ttest_rel(ONE, OTHER)
    got = paired(ONE, OTHER)
    assert got.t == pytest.approx(expected.statistic, rel=1e-12)
    assert got.p == pytest.approx(expected.pvalue, rel=1e-12)


def test_the_standard_error_is_of_the_mean() -> None:
    assert mean([1.0, 3.0]).stderr == pytest.approx(1.0)  # s = √2, n = 2
    assert mean([1.0]).stderr is None


def test_without_spread_or_with_one_seed_there_is_no_test() -> None:
    assert paired([0.5], [0.4]).p is None
    assert paired([0.5, 0.6], [0.5, 0.6]).p is None


def test_pairs_need_as_many_of_each() -> None:
    with pytest.raises(ValueError, match="2 values against 1"):
        paired([1.0, 2.0], [1.0])


def test_holm_by_hand() -> None:
    # .01·4, then .02·3, then max(.06, .03·2), then max(.06, .5·1)
    assert holm([0.03, 0.01, None, 0.5, 0.02]) == pytest.approx([0.06, 0.04, None, 0.5, 0.06])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    """At any level: reject the smallest while p ≤ level / (tests left), stop at the first that is not."""
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for left, i in zip(
            itertools.count(len(p_values), -1),
            sorted(range(len(p_values)), key=p_values.__getitem__),
            strict=False,
        ):
            if left == 0 or p_values[i] * left > level:
                break
            rejected.add(i)
        close = [i for i, p in enumerate(corrected) if p is not None and math.isclose(p, level, rel_tol=1e-9)]
        assert rejected - set(close) == {
            i for i, p in enumerate(corrected) if p is not None and p <= level
        } - set(close)
