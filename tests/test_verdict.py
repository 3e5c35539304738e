"""Every sentence of a verdict is true, whatever came out: held against the runs that it speaks of."""

from __future__ import annotations

import itertools
import re
import statistics

import pytest

from nearfar.compare.arms import ARMS, control_of
from nearfar.compare.result import Comparison
from nearfar.compare.summary import summarize
from studies import EVERY, arriving, study

NEVER = 0
TITLES = {row.title: name for name, row in ARMS.items()}


def said(arms, edit=None, **options) -> str:
    about, runs = study(arms, **options)
    if edit is not None:
        edit(about, runs)
    return "\n".join(summarize(about, runs).verdict)


def flat(look: int, seeds: int, high: float = 0.9):
    return arriving(*[look] * seeds, high=high)


# ---- every outcome ---------------------------------------------------------------------------------------------------

LOOKS = (NEVER, 2, 6, 12)


@pytest.mark.parametrize("seeds", [1, 2, 5])
@pytest.mark.parametrize("joint", LOOKS)
def test_no_sentence_claims_more_than_the_runs_show(seeds, joint):
    for task, control in itertools.product(LOOKS, (None, *LOOKS)):
        looks = {"task": task} | ({} if control is None else {"control": control}) | {"joint": joint}
        arms = {name: flat(look, seeds) for name, look in looks.items()}
        words = said(arms, target=(0.8,))
        steps = {name: EVERY * look or float("inf") for name, look in looks.items()}
        best = min(value for name, value in steps.items() if name != "joint")
        # two looks apart is sure, as all seeds agree; whoever never arrives counts with the last look, 200
        sooner = steps["joint"] < min(steps["task"], 200)
        later = steps["task"] < min(steps["joint"], 200)
        if seeds < 5:
            assert not re.search(
                r"sooner(?! there| than the)|later|higher|lower|95% interval", words.replace("lower --", "")
            ), words
            assert "too few to tell" in words or "neither reached" in words
        else:
            assert ("converges sooner than plain cross-entropy" in words) == sooner, words
            assert ("converges later than plain cross-entropy" in words) == later, words
            assert ("shows no gain over plain" in words) == (not sooner and not later), words
            assert (": higher." in words) == (joint > 0 and task == 0), words
            assert (": lower." in words) == (joint == 0 and task > 0), words
        assert ("neither reached 80.0%" in words) == (steps["joint"] == steps["task"] == float("inf"))
        theirs = "all of that is the contrast's" in words or "the contrast's own doing" in words
        assert theirs == (seeds == 5 and control is not None and steps["joint"] < min(best, 200)), words
        if control is None:
            assert "No control was trained" in words
        elif "The best arm without contrast is" in words:
            named = re.search(r"The best arm without contrast is (.*?): ", words)
            assert named
            assert steps[TITLES[named[1]]] == best
        else:
            assert steps["control"] >= steps["task"]
            assert "No control without contrast was sooner there than the plain baseline" in words
        assert not re.search(r"\b(inf|nan|None)\b|points or (less|more)", words), words


@pytest.mark.parametrize(
    ("rows", "seeds", "high", "words"),
    [
        (50, 5, 0.88, "−2.0 points to −2.0 points): that is 1 of 50 test rows, too few to tell."),
        (50, 5, 0.80, "that is 5 of 50 test rows, too few to tell."),
        (60, 5, 0.80, "−10.0 points): lower."),
        (600, 5, 0.91, "+1.0 points): higher."),
        (10_000, 5, 0.8995, "that is 5 of 10,000 test rows, too few to tell."),
        (10_000, 4, 0.5, "−40.0 points over the baseline: too few seeds to tell."),
        (10_000, 2, 0.9001, "+0.0 points over the baseline: too few seeds to tell."),
        (10_000, 5, 0.9, "+0.0 points): no difference shown."),
    ],
)
def test_a_difference_in_the_end_is_one_of_six_test_rows_and_five_seeds_at_least(rows, seeds, high, words):
    arms = {"task": flat(3, seeds), "joint": flat(3, seeds, high)}
    assert words in said(arms, lambda about, runs: about["data"].update(test=rows), target=(0.3,))


def test_a_spread_over_seeds_wider_than_the_difference_shows_none():
    base, other = (0.80, 0.85, 0.90, 0.80, 0.85), (0.90, 0.80, 0.85, 0.90, 0.90)
    arms = {name: [[value] * 20 for value in final] for name, final in (("task", base), ("joint", other))}
    words = said(arms, lambda about, runs: about["data"].update(test=1000), target=(0.3,))
    mean = statistics.fmean(other) - statistics.fmean(base)
    assert f"+{100 * mean:.1f} points over the baseline (−" in words
    assert "no difference shown" in words


def test_an_interval_of_an_accuracy_ends_at_100_percent():
    finals = (0.99, 1.0, 1.0, 1.0, 0.98)
    arms = {"task": [[value] * 20 for value in finals], "joint": flat(3, 5)}
    about, runs = study(arms, target=(0.8,))
    final = summarize(about, runs)["task"].final
    assert (final.high, final.low > 0.97) == (1.0, True)


# ---- what is whose ---------------------------------------------------------------------------------------------------


def test_the_control_like_an_arm_differs_in_the_contrast_alone():
    assert {name: control_of(name) for name, row in ARMS.items() if row.kind == "contrast"} == {
        "joint": "control",
        "joint-prototypes": "control-prototypes",
        "prototypes": None,
    }


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (("control", "joint"), "which is the contrast's own doing"),
        (("control", "control-prototypes", "joint-prototypes"), "which is the contrast's own doing"),
        (
            ("control", "joint-prototypes"),
            "The control like it, control-prototypes, was not trained, so that what its read-out",
        ),
        (("batchnorm", "joint"), "The control like it, control, was not trained"),
        (("control", "prototypes"), "No arm without contrast is read out like it"),
        (("joint",), "what the head brings is not told from what the contrast brings"),
    ],
)
def test_a_gain_is_the_contrast_s_where_the_arm_that_differs_in_it_alone_was_trained(arms, words):
    looks = {"task": 12} | {name: 3 if ARMS[name].kind == "contrast" else 9 for name in arms}
    found = said({name: flat(look, 5) for name, look in looks.items()})
    assert words in found
    assert ("contrast's own doing" in found) == ("contrast's own doing" in words)


def test_a_slowdown_is_nobody_s_merit():
    found = said({"task": flat(4, 5), "control": flat(6, 5), "joint": flat(10, 5)})
    assert "No control without contrast was sooner there than the plain baseline.\n" in found
    assert "contrast's" not in found


def test_sooner_than_the_best_arm_without_contrast_and_not_surely_than_the_baseline():
    # the baseline's seeds are far apart, so that nothing is sure against it; the control's are not
    arms = {"task": arriving(2, 3, 12, 15, 18), "control": arriving(*[11] * 5), "joint": arriving(*[5] * 5)}
    found = said(arms, target=(0.8,))
    assert (
        "shows no gain over plain cross-entropy in steps; against the best arm without contrast it is sooner, 2.20×."
        in found
    )


def test_without_an_arm_with_contrast_nothing_is_said_of_it():
    result = summarize(*study({"task": flat(5, 5), "control": flat(3, 5)}))
    assert result.verdict == (
        "No arm with contrast takes part, so nothing is said of contrast: the tables compare the other arms.",
    )
    assert "Steps to a test accuracy" in str(result)


def test_a_baseline_that_is_never_right_sets_no_target():
    result = summarize(*study({"task": [[0.0] * 20] * 5, "joint": flat(3, 5)}))
    assert "right on no test row at any evaluation" in result.verdict[0]
    assert "pass --target" in result.verdict[0]
    assert isinstance(result, Comparison)


# ---- what is to be said besides --------------------------------------------------------------------------------------


def swept(rates, best=-1):
    """The sweep of every arm with these rates, of which one is best."""

    def edit(about, runs):
        about["config"].update(rates=rates, budget=len(rates))
        for run in [run for run in runs if run.stage == "sweep"]:
            if run.rate not in rates:
                del runs[run]
            else:
                runs[run].accuracy[:] = [0.9 if run.rate == rates[best] else 0.1] * 20

    return edit


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(
    ("rates", "best", "words"),
    [
        ((1e-3, 1e-2, 1e-1), 2, "The best rate of task, joint is the lowest or highest tried: widen --rates"),
        ((1e-3, 1e-2, 1e-1), 0, "The best rate of task, joint is the lowest or highest tried: widen --rates"),
        ((1e-3, 1e-2, 1e-1), 1, ""),
        ((1e-3, 1e-2), 1, "No more than two learning rates were tried, so that a better one may lie beyond: pass more"),
        ((1e-2,), 0, "One learning rate was tried, so that a better one may lie beyond: pass more --rates"),
    ],
)
def test_the_best_rate_is_called_an_end_only_of_three_or_more(quick, rates, best, words):
    found = said({"task": flat(9, 5), "joint": flat(3, 5)}, swept(rates, best), quick=quick)
    about_rates = [line for line in found.splitlines() if re.search("--rates|rates? w", line)]
    assert ("few steps and rates. Run without --quick" in found) == quick
    expected = [] if not words or (quick and len(rates) < 3) else [words]
    assert [line[: len(words)] for line in about_rates] == expected


def test_runs_that_diverged_keep_what_they_reached_before():
    def lost(about, runs):
        for run, curve in runs.items():
            if run.stage == "measure" and run.arm == "joint" and run.seed < 2:
                curve.accuracy[10:], curve.diverged = [0.0] * 10, True

    found = said({"task": flat(8, 5), "joint": flat(3, 5)}, lost, target=(0.8,))
    assert "30 steps (5 of 5 seeds arrived)" in found
    assert "no longer finite: joint (2); from there on they are right on no row" in found
    assert "54.0% test accuracy" in found  # of five, two at 0


def test_what_waits_is_named():
    arms = {"task": flat(8, 5), "control": flat(8, 5), "joint": flat(3, 5)}

    def partial(about, runs):
        for run in [run for run in runs if run.arm == "control" and run.stage == "measure"]:
            del runs[run]

    found = said(arms, partial)
    assert "No control is measured yet" in found
    assert "Not finished: 5 of 5 seeds so far, and nothing yet of control." in found


def test_rows_left_out_are_counted():
    edit = lambda about, runs: about["data"].update(left_out=["x"] * 3)  # noqa: E731
    assert "3 rows could not be read and were left out." in said({"task": flat(8, 5), "joint": flat(3, 5)}, edit)


def test_a_ratio_is_called_rough_only_where_somebody_arrived():
    arms = {"task": flat(NEVER, 5), "joint": flat(NEVER, 5)}
    short = {name: [curve[:3] for curve in curves] for name, curves in arms.items()}
    assert "rough" not in said(short, target=(0.8,))
    assert "10 steps are few of them: take the ratio as rough" in said({"task": flat(9, 5), "joint": flat(1, 5)})
