"""Times to a target, their medians and ratios: hand-computed cases, SciPy, and a simulation of the coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from nearfar.compare.statistics import (
    LEAST_ROWS,
    Estimate,
    Times,
    censored_median,
    first_held,
    mean_interval,
    speedup,
    student_t,
    times_to_target,
)  # fmt: skip

inf = np.inf


def exact(*times: float) -> Times:
    return Times(np.array(times, float), np.array(times, float))


def censored(low: list[float], reached: list[bool]) -> Times:
    return Times(np.array(low, float), np.where(reached, low, inf))


@pytest.mark.parametrize(
    ("values", "hold", "expected"),
    [
        ([0.1, 0.9, 0.9], 2, 1),
        ([0.9, 0.1, 0.9, 0.95, 0.2], 2, 2),  # the first one was not held
        ([0.1, 0.2, 0.9], 2, None),  # the last look alone proves nothing
        ([0.1, 0.2, 0.9], 1, 2),
        ([0.9, 0.9, 0.8, 0.9, 0.9, 0.9], 3, 3),
        ([0.9], 2, None),
        ([0.9, 0.9], 2, 0),  # a target is met, not passed
    ],
)
def test_a_target_counts_from_the_first_of_the_evaluations_that_hold_it(values, hold, expected):
    assert first_held(np.array(values), 0.9, hold) == expected


def test_runs_that_do_not_arrive_enter_as_bounds():
    at = np.array([[10.0, 20, 30], [10, 20, 30], [11, 21, 31]])
    values = np.array([[0.5, 0.9, 0.9], [0.5, 0.6, 0.9], [0.9, 0.8, 0.9]])
    times = times_to_target(at, values, 0.9)
    np.testing.assert_array_equal(times.low, [20, 30, 31])
    np.testing.assert_array_equal(times.high, [20, inf, inf])
    # the second was there at its last look, so it may have come right after the one before
    np.testing.assert_array_equal(times.since, [10, 20, 21])
    assert times.reached == 1


def test_a_target_met_at_the_first_look_may_have_been_met_at_once():
    times = times_to_target(np.array([[10.0, 20]]), np.array([[0.9, 0.9]]), 0.5)
    assert (times.low[0], times.high[0], times.earliest[0]) == (10, 10, 0)


def test_a_lead_of_one_look_is_no_gain_and_of_two_is():
    looked = lambda step: Times(np.full(6, step), np.full(6, step), np.full(6, step - 3))  # noqa: E731
    one, two = speedup(looked(21.0), looked(18.0)), speedup(looked(21.0), looked(15.0))
    assert one.lower == one.upper == 21 / 18
    assert (one.low, one.high) == (18 / 18, 21 / 15)
    assert not one.excludes(1.0)
    assert (two.low, two.high) == (18 / 15, 21 / 12)
    assert two.excludes(1.0)
    first = Times(np.full(6, 3.0), np.full(6, 3.0), np.zeros(6))
    assert speedup(looked(21.0), first).high == inf


def test_a_target_is_held_for_one_evaluation_at_least():
    with pytest.raises(ValueError, match="hold is 0"):
        first_held(np.zeros(3), 0.5, hold=0)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (exact(3, 1, 2), (2, 2)),
        (censored([10, 20, 300, 300, 30], [True, True, False, False, True]), (30, 30)),  # three of five arrived
        (censored([10, 300, 300], [True, False, False]), (300, inf)),
        (censored([10, 20, 300, 300], [True, True, False, False]), (160, inf)),  # (20 + something ≥ 300) / 2
        (censored([10, 5, 20], [True, False, True]), (10, 20)),  # stopped early: it may end anywhere above 5
    ],
)
def test_the_median_is_exact_where_it_can_be_and_a_bound_where_not(times, expected):
    assert censored_median(times) == expected


@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans(), st.integers(0, 400)), min_size=1, max_size=9),
)
def test_the_median_lies_within_its_bounds_wherever_censored_runs_would_have_ended(runs):
    low = np.array([time for time, _, _ in runs], float)
    reached = [arrived for _, arrived, _ in runs]
    truth = np.array([time + (0 if arrived else later) for time, arrived, later in runs], float)
    below, above = censored_median(censored(low.tolist(), reached))
    assert below <= np.median(truth) <= above


def test_the_ratio_is_that_of_the_medians():
    gain = speedup(exact(30, 40, 50, 60, 70), exact(10, 20, 25, 30, 100))
    assert (gain.lower, gain.upper) == (2.0, 2.0)
    assert gain.low <= 2 <= gain.high


def test_equal_arms_show_no_gain_and_a_constant_ratio_has_no_width():
    base = exact(30, 40, 50, 60, 70)
    assert speedup(base, base) == Estimate(1.0, 1.0, 1.0, 1.0)
    third = Times(base.low / 3, base.high / 3)
    gain = speedup(base, third)
    np.testing.assert_allclose([gain.lower, gain.upper, gain.low, gain.high], 3.0)  # pairing removes the seeds' spread


def test_unpaired_seeds_would_widen_the_interval():
    base, other = exact(30, 40, 50, 60, 70), exact(10, 40 / 3, 50 / 3, 20, 70 / 3)
    shuffled = Times(other.low[[4, 0, 3, 1, 2]], other.high[[4, 0, 3, 1, 2]])
    assert speedup(base, other).high == pytest.approx(3)
    assert speedup(base, shuffled).high > 3.5


def test_the_interval_is_scipys_percentile_bootstrap():
    random = np.random.default_rng(3)
    base, other = random.lognormal(4, 0.4, 11), random.lognormal(3.5, 0.4, 11)
    theirs = scipy.stats.bootstrap(
        (base, other), lambda b, o, axis: np.median(b, axis=axis) / np.median(o, axis=axis), paired=True,
        vectorized=True, method="percentile", n_resamples=20_000, rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    ours = speedup(exact(*base), exact(*other), resamples=20_000)
    # medians of 11 take few values, so that both end on the same ones or their neighbours
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], rtol=0.02)


def test_a_baseline_that_never_arrives_gives_at_least():
    base = censored([300] * 5, [False] * 5)
    gain = speedup(base, exact(50, 60, 75, 80, 100))
    assert (gain.lower, gain.upper) == (4.0, inf)
    assert gain.low == 3.0  # 300 / 100
    assert gain.high == inf
    assert gain.excludes(1.0)


def test_an_arm_that_never_arrives_gives_at_most():
    gain = speedup(exact(50, 60, 75, 80, 100), censored([300] * 5, [False] * 5))
    assert (gain.lower, gain.upper, gain.low) == (0.0, 0.25, 0.0)
    assert gain.high == pytest.approx(1 / 3)
    assert gain.excludes(1.0)


def test_two_arms_that_never_arrive_say_nothing():
    never = censored([300] * 6, [False] * 6)
    gain = speedup(never, never)
    assert gain == Estimate(0.0, inf, 0.0, inf)
    assert not gain.excludes(1.0)


def test_one_censored_run_opens_the_interval_but_not_the_median():
    base, other = exact(90, 95, 100, 105, 110), censored([40, 45, 50, 55, 300], [True] * 4 + [False])
    gain = speedup(base, other)
    assert (gain.lower, gain.upper) == (2.0, 2.0)
    assert gain.low == 0.0  # resamples with three of it have no median
    assert gain.high < 3


@given(st.data())
def test_no_end_of_the_interval_is_better_than_the_truth_allows(data):
    n = data.draw(st.integers(5, 8))
    draw = lambda values: np.array(data.draw(st.lists(values, min_size=n, max_size=n)))  # noqa: E731
    base, other, later = draw(st.integers(10, 99)), draw(st.integers(10, 99)), draw(st.integers(1, 500))
    reached = draw(st.booleans())
    known = speedup(exact(*base), exact(*np.where(reached, other, other + later)), resamples=300)
    found = speedup(exact(*base), censored(other.astype(float).tolist(), reached.tolist()), resamples=300)
    assert found.low <= known.low
    assert found.high >= known.high
    assert found.lower <= known.lower <= known.upper <= found.upper


def test_fewer_than_five_runs_have_no_interval():
    gain = speedup(exact(8, 8, 8, 8), exact(2, 2, 2, 2))
    assert gain == Estimate(4.0, 4.0, 0.0, inf)
    assert not gain.excludes(1.0)


def test_speedups_are_paired():
    with pytest.raises(ValueError, match="5 runs against 4: speed-ups are paired"):
        speedup(exact(1, 2, 3, 4, 5), exact(1, 2, 3, 4))


def test_the_same_seed_draws_the_same():
    base, other = exact(30, 41, 52, 63, 70), exact(10, 22, 25, 33, 100)
    assert speedup(base, other, seed=1) == speedup(base, other, seed=1)


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    random, studies, n, ratio = np.random.default_rng(0), 400, 6, 2.0
    hits = 0
    for study in range(studies):
        base, other = random.lognormal(np.log(ratio), 0.3, n), random.lognormal(0, 0.3, n)
        gain = speedup(exact(*base), exact(*other), seed=study, resamples=500)
        hits += gain.low <= ratio <= gain.high
    # 95% promised; with 400 studies the standard error is 1.2 points
    assert 0.90 < hits / studies < 0.99


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_students_t_is_scipys(freedom, confidence):
    assert student_t(confidence, freedom) == pytest.approx(scipy.stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-9)


def test_the_interval_of_a_mean_is_scipys():
    values = np.array([0.91, 0.95, 0.93, 0.90, 0.96])
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    ours = mean_interval(values)
    np.testing.assert_allclose([ours.low, ours.high, ours.lower], [theirs.low, theirs.high, 0.93])


def test_a_single_run_has_an_open_interval():
    assert mean_interval(np.array([0.9])) == Estimate(0.9, 0.9, -inf, inf)


@pytest.mark.parametrize("runs", [2, 3, 4])
def test_fewer_than_five_runs_that_agree_to_the_row_have_an_open_interval(runs):
    assert mean_interval(np.full(runs, -0.5)) == Estimate(-0.5, -0.5, -inf, inf)


def test_six_rows_are_the_fewest_that_a_sign_test_tells():
    assert (
        scipy.stats.binomtest(LEAST_ROWS, LEAST_ROWS).pvalue
        < 0.05
        < scipy.stats.binomtest(LEAST_ROWS - 1, LEAST_ROWS - 1).pvalue
    )
