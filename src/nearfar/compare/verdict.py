"""The findings of a comparison in plain words, and no better than the data allow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from nearfar.compare.arms import ARMS, BASELINE, control_of
from nearfar.compare.statistics import LEAST_ROWS, LEAST_RUNS, Estimate
from nearfar.report.format import bounded, count, interval, percent, points, seconds, times

if TYPE_CHECKING:
    from nearfar.compare.result import ArmResult, Comparison

# Below this many evaluations a median is mostly the distance between two of them.
COARSE = 4


def judge(gain: Estimate) -> Literal["sooner", "later", "no gain"]:
    """What an interval of a speed-up says: which side of 1 all of it lies on, or neither.

    Example:
        >>> judge(Estimate(2.0, 2.0, 1.5, 2.5)), judge(Estimate(1.2, 1.2, 1.0, 1.5)), judge(Estimate(0.5, 0.5, 0.0, 0.7))
        ('sooner', 'no gain', 'later')
    """
    if not gain.excludes(1.0):
        return "no gain"
    return "sooner" if gain.low > 1 else "later"


def verdict(result: Comparison) -> tuple[str, ...]:
    """One sentence a finding, the first the gist of all."""
    if not any(ARMS[name].kind == "contrast" for name in result.about["config"]["arms"]):
        return ("No arm with contrast takes part, so nothing is said of contrast: the tables compare the other arms.",)
    if not result.arms or result.contrast is None:
        return ("Nothing to compare yet: no seed is finished in the baseline and in an arm with contrast.",)
    arm, base = result[result.contrast], result[BASELINE]
    rival = result[result.rivals[result.headline]]
    if result.targets[result.headline].accuracy <= 0:
        return (
            "The baseline is right on no test row at any evaluation, so that no part of its best is a target: pass --target "
            "(target=), or lower --rates.",
            *_caveats(result, arm, base),
        )
    return (
        _gist(result, arm, rival),
        _against_baseline(result, arm, base),
        *_against_rival(result, arm, rival),
        *_at_other_targets(result, arm),
        _in_seconds(result, arm, rival),
        _in_the_end(result, arm, rival),
        *_caveats(result, arm, base),
    )


def _gist(result: Comparison, arm: ArmResult, rival: ArmResult) -> str:
    reach = arm.reach[result.headline]
    assert reach.gain_steps is not None
    assert reach.own_steps is not None
    gain, own = judge(reach.gain_steps), judge(reach.own_steps)
    words = {
        "sooner": f"converges sooner than plain cross-entropy, {_ratio(reach.gain_steps)} in steps",
        "later": f"converges later than plain cross-entropy, {_ratio(reach.gain_steps)} in steps",
        "no gain": "shows no gain over plain cross-entropy in steps",
    }
    gist = f"On {result.about['data']['name']}, {arm.title} {words[gain]}"
    medians = reach.steps, result[BASELINE].reach[result.headline].steps
    if not any(math.isfinite(high) for _, high in medians):
        return f"{gist}: neither reached {percent(result.targets[result.headline].accuracy)} with most of its seeds."
    if arm.seeds < LEAST_RUNS:
        return f"{gist}: {_runs(arm.seeds)} too few to tell."
    if rival.name == BASELINE:  # then both questions are one
        return f"{gist}."
    than = {
        "sooner": f"{_ratio(reach.own_steps)} of it stays against the best arm without contrast"
        if gain == "sooner"
        else f"against the best arm without contrast it is sooner, {_ratio(reach.own_steps)}",
        "later": "the best arm without contrast is sooner" + (" still" if gain == "sooner" else ""),
        "no gain": "no gain is shown against the best arm without contrast",
    }
    return f"{gist}; {than[own]}."


def _against_baseline(result: Comparison, arm: ArmResult, base: ArmResult) -> str:
    k = result.headline
    mine, theirs = arm.reach[k], base.reach[k]
    target = result.targets[k]
    what = percent(target.accuracy) + ("" if target.name == percent(target.accuracy) else f" ({target.name})")
    return (
        f"To {what}: {bounded(*mine.steps, count)} steps ({mine.reached} of {arm.seeds} seeds arrived) where "
        f"{base.title} needs {bounded(*theirs.steps, count)} ({theirs.reached} of {base.seeds}); speed-up "
        f"{_said(arm, mine.gain_steps, ': ')}."
    )


def _against_rival(result: Comparison, arm: ArmResult, rival: ArmResult) -> list[str]:
    """What is the contrast's own: what stays against every arm without it, the one like it in all else among them."""
    own = arm.reach[result.headline].own_steps
    assert own is not None
    controls = {other.name for other in result.arms if other.kind == "control"}
    asked, twin = result.about["config"]["arms"], control_of(arm.name)
    if not controls:
        missing = "is measured yet" if any(ARMS[name].kind == "control" for name in asked) else "was trained"
        return [f"No control {missing}, so that what the head brings is not told from what the contrast brings."]
    gained = judge(own) == "sooner" and twin in controls
    if rival.name == BASELINE:
        said = "No control without contrast was sooner there than the plain baseline"
        said += ", so all of that is the contrast's." if gained else "."
    else:
        needs = bounded(*rival.reach[result.headline].steps, count)
        said = f"The best arm without contrast is {rival.title}: {needs} steps. "
        said += f"Against it {arm.title} makes {_said(arm, own, ': ')}"
        said += ", which is the contrast's own doing." if gained else "."
    if twin in controls:
        return [said]
    missing = "No arm without contrast is read out like it"
    if twin is not None:
        missing = f"The control like it, {twin}, {'is not measured yet' if twin in asked else 'was not trained'}"
    return [said, f"{missing}, so that what its read-out brings is not told from what the contrast brings."]


def _at_other_targets(result: Comparison, arm: ArmResult) -> list[str]:
    found = [
        f"{percent(target.accuracy)}: {_said(arm, arm.reach[k].own_steps)}"
        for k, target in enumerate(result.targets)
        if k != result.headline
    ]
    if not found:
        return []
    return [f"At the other targets, in steps against the best arm without contrast: {'; '.join(found)}."]


def _in_seconds(result: Comparison, arm: ArmResult, rival: ArmResult) -> str:
    reach = arm.reach[result.headline]
    words = (
        f"In seconds of training ({bounded(*reach.seconds, seconds)}), a step of it taking "
        f"{times(arm.seconds_per_step / result[BASELINE].seconds_per_step)} as long as the baseline's: against the baseline "
        f"{_said(arm, reach.gain_seconds)}"
    )
    if rival.name != BASELINE:
        words += f"; against {rival.title} {_said(arm, reach.own_seconds)}"
    return words + "."


def _in_the_end(result: Comparison, arm: ArmResult, rival: ArmResult) -> str:
    gain, rows = arm.final_gain, result.about["data"]["test"]
    assert gain is not None
    others = f"{percent(result[BASELINE].final.lower)} for the baseline"
    if rival.name != BASELINE:
        others += f" and {percent(rival.final.lower)} for {rival.title}"
    few = arm.seeds < LEAST_RUNS
    sure = "" if few else f" (95% interval over seeds {interval(arm.final.low, arm.final.high, percent)})"
    over = "" if few else f" ({interval(gain.low, gain.high, points)})"
    if few:
        better = "too few seeds to tell"
    elif not gain.excludes(0.0):
        better = "no difference shown"
    elif abs(gain.lower) * rows < LEAST_ROWS - 1e-6:
        better = f"that is {count(round(abs(gain.lower) * rows, 1))} of {rows:,} test rows, too few to tell"
    else:
        better = "higher" if gain.low > 0 else "lower"
    return (
        f"After {result.about['config']['steps']} steps: {percent(arm.final.lower)} test accuracy{sure} against {others}; "
        f"{points(gain.lower)} over the baseline{over}: {better}."
    )


def _caveats(result: Comparison, arm: ArmResult, base: ArmResult) -> list[str]:
    config, found = result.about["config"], []
    if not result.complete:
        missing = [name for name in config["arms"] if name not in {measured.name for measured in result.arms}]
        nothing = f", and nothing yet of {', '.join(missing)}" if missing else ""
        found.append(f"Not finished: {base.seeds} of {config['seeds']} seeds so far{nothing}.")
    if base.seeds < LEAST_RUNS:
        found.append(f"Too few seeds ({base.seeds}) for an interval of the speed-up: take {LEAST_RUNS} or more.")
    if config["quick"]:
        found.append("A quick look: few steps and rates. Run without --quick before telling anyone.")
    if arm.rows_per_step != base.rows_per_step:
        found.append(
            f"A step of {arm.title} sends {times(arm.rows_per_step / base.rows_per_step)} the rows of the baseline's "
            "through the network: compare rows, not steps."
        )
    arrived = [
        steps[0] for steps in (one.reach[result.headline].steps for one in (arm, base)) if math.isfinite(steps[1])
    ]
    if arrived and min(arrived) < COARSE * config["eval_every"]:
        found.append(
            f"Evaluations are {config['eval_every']} steps apart, and {count(min(arrived))} steps are few of them: take the "
            "ratio as rough, or lower --eval-every."
        )
    found += _rates(result)
    lost = [f"{a.name} ({a.diverged})" for a in result.arms if a.diverged]
    if lost:
        found.append(
            f"Seeds whose weights were no longer finite: {', '.join(lost)}; from there on they are right on no row."
        )
    if result.about["data"]["left_out"]:
        found.append(f"{len(result.about['data']['left_out'])} rows could not be read and were left out.")
    return found


def _rates(result: Comparison) -> list[str]:
    """Where a better rate than the best may lie beyond those tried; of one or two, each is at an end."""
    tried = {arm.name: len({rate for rate, *_ in arm.choice.trials}) for arm in result.arms}
    ends = [arm.name for arm in result.arms if arm.choice.edge and tried[arm.name] > 2]
    few = [name for name, rates in tried.items() if rates <= 2]
    found = []
    if ends:
        found.append(f"The best rate of {', '.join(ends)} is the lowest or highest tried: widen --rates to be sure.")
    if few and not result.about["config"]["quick"]:  # which says so
        whom = "" if len(few) == len(tried) else f" for {', '.join(few)}"
        most = max(tried[name] for name in few)
        rates = "One learning rate was" if most == 1 else "No more than two learning rates were"
        found.append(f"{rates} tried{whom}, so that a better one may lie beyond: pass more --rates.")
    return found


def _ratio(gain: Estimate) -> str:
    return bounded(gain.lower, gain.upper)


def _said(arm: ArmResult, gain: Estimate | None, apart: str = ", ") -> str:
    """A speed-up with its interval, and what that says."""
    assert gain is not None
    if arm.seeds < LEAST_RUNS:
        return f"{_ratio(gain)}{apart}too few seeds to tell"
    word = judge(gain)
    said = "no gain shown" if word == "no gain" else word
    return f"{_ratio(gain)} (95% interval {interval(gain.low, gain.high)}){apart}{said}"


def _runs(seeds: int) -> str:
    return "1 seed is" if seeds == 1 else f"{seeds} seeds are"
