"""The findings of a comparison in plain words, and no better than the data allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from nearfar.compare.arms import BASELINE
from nearfar.compare.statistics import LEAST_RUNS, Estimate
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
    if not result.arms or result.contrast is None:
        return ("Nothing to compare yet: no seed is finished in the baseline and in an arm with contrast.",)
    arm, base = result[result.contrast], result[BASELINE]
    target, rival = result.targets[result.headline], result[result.rivals[result.headline]]
    return (
        _gist(result, arm, rival),
        _against_baseline(result, arm, base),
        _against_rival(result, arm, rival),
        *_at_other_targets(result, arm),
        _in_seconds(result, arm, rival),
        _in_the_end(result, arm, rival),
        *_caveats(result, arm, base, target.accuracy),
    )


def _gist(result: Comparison, arm: ArmResult, rival: ArmResult) -> str:
    reach = arm.reach[result.headline]
    assert reach.gain_steps is not None
    assert reach.own_steps is not None
    words = {
        "sooner": f"converges sooner than plain cross-entropy, {_ratio(reach.gain_steps)} in steps",
        "later": f"converges later than plain cross-entropy, {_ratio(reach.gain_steps)} in steps",
        "no gain": "shows no gain over plain cross-entropy in steps",
    }
    own = {
        "sooner": f"{_ratio(reach.own_steps)} of it stays against the best arm without contrast",
        "later": "the best arm without contrast is sooner still",
        "no gain": "no gain is shown against the best arm without contrast",
    }
    gist = f"On {result.about['data']['name']}, {arm.title} {words[judge(reach.gain_steps)]}"
    if rival.name == BASELINE:  # then both questions are one
        return f"{gist}."
    return f"{gist}; {own[judge(reach.own_steps)]}."


def _against_baseline(result: Comparison, arm: ArmResult, base: ArmResult) -> str:
    k = result.headline
    mine, theirs = arm.reach[k], base.reach[k]
    assert mine.gain_steps is not None
    target = result.targets[k]
    what = percent(target.accuracy) + ("" if target.name == percent(target.accuracy) else f" ({target.name})")
    return (
        f"To {what}: {bounded(*mine.steps, count)} steps ({mine.reached} of {arm.seeds} seeds arrived) where "
        f"{base.title} needs {bounded(*theirs.steps, count)} ({theirs.reached} of {base.seeds}); speed-up "
        f"{_with_interval(mine.gain_steps)}: {_word(mine.gain_steps)}."
    )


def _against_rival(result: Comparison, arm: ArmResult, rival: ArmResult) -> str:
    reach = arm.reach[result.headline]
    assert reach.own_steps is not None
    if not any(other.kind == "control" for other in result.arms):
        return "No control was trained, so that what the head brings is not told from what the contrast brings."
    if rival.name == BASELINE:
        return "No control without contrast was sooner there than the plain baseline, so all of that is the contrast's."
    needs = bounded(*rival.reach[result.headline].steps, count)
    return (
        f"The best arm without contrast is {rival.title}: {needs} steps. Against it the contrast itself makes "
        f"{_with_interval(reach.own_steps)}: {_word(reach.own_steps)}."
    )


def _at_other_targets(result: Comparison, arm: ArmResult) -> list[str]:
    found = []
    for k, target in enumerate(result.targets):
        own = arm.reach[k].own_steps
        if k != result.headline and own is not None:
            found.append(f"{percent(target.accuracy)}: {_with_interval(own)}, {_word(own)}")
    if not found:
        return []
    return [f"At the other targets, in steps against the best arm without contrast: {'; '.join(found)}."]


def _in_seconds(result: Comparison, arm: ArmResult, rival: ArmResult) -> str:
    reach = arm.reach[result.headline]
    assert reach.gain_seconds is not None
    assert reach.own_seconds is not None
    words = (
        f"In seconds of training ({bounded(*reach.seconds, seconds)}), a step of it taking "
        f"{times(arm.seconds_per_step / result[BASELINE].seconds_per_step)} as long: "
        f"{_with_interval(reach.gain_seconds)} against the baseline, {_word(reach.gain_seconds)}"
    )
    if rival.name != BASELINE:
        words += f"; {_with_interval(reach.own_seconds)} against {rival.title}, {_word(reach.own_seconds)}"
    return words + "."


def _in_the_end(result: Comparison, arm: ArmResult, rival: ArmResult) -> str:
    base = result[BASELINE]
    assert arm.final_gain is not None
    others = f"{percent(base.final.lower)} for the baseline"
    if rival.name != BASELINE:
        others += f" and {percent(rival.final.lower)} for {rival.title}"
    gain = arm.final_gain
    better = "higher" if gain.low > 0 else "lower" if gain.high < 0 else "no difference shown"
    return (
        f"After {result.about['config']['steps']} steps: {percent(arm.final.lower)} test accuracy (95% interval "
        f"{interval(arm.final.low, arm.final.high, percent)}) against {others}; {points(gain.lower)} over the baseline "
        f"({interval(gain.low, gain.high, points)}): {better}."
    )


def _caveats(result: Comparison, arm: ArmResult, base: ArmResult, target: float) -> list[str]:
    config, found = result.about["config"], []
    if not result.complete:
        found.append(f"Not finished: {base.seeds} of {config['seeds']} seeds so far.")
    if base.seeds < LEAST_RUNS:
        found.append(f"Too few seeds ({base.seeds}) for an interval of the speed-up: take {LEAST_RUNS} or more.")
    if config["quick"]:
        found.append("A quick look: few steps and rates. Run without --quick before telling anyone.")
    if arm.rows_per_step != base.rows_per_step:
        found.append(
            f"A step of {arm.title} sends {times(arm.rows_per_step / base.rows_per_step)} the rows of the baseline's "
            "through the network: compare rows, not steps."
        )
    soonest = min(arm.reach[result.headline].steps[0], base.reach[result.headline].steps[0])
    if soonest < COARSE * config["eval_every"]:
        found.append(
            f"Evaluations are {config['eval_every']} steps apart, and {count(soonest)} steps are few of them: take the "
            "ratio as rough, or lower --eval-every."
        )
    edge = [a.name for a in result.arms if a.choice.edge]
    if edge:
        found.append(f"The best rate of {', '.join(edge)} is the lowest or highest tried: widen --rates to be sure.")
    lost = [f"{a.name} ({a.diverged})" for a in result.arms if a.diverged]
    if lost:
        found.append(f"Seeds whose weights were no longer finite: {', '.join(lost)}; they count as never arriving.")
    if result.about["data"]["left_out"]:
        found.append(f"{len(result.about['data']['left_out'])} rows could not be read and were left out.")
    return found


def _ratio(gain: Estimate) -> str:
    return bounded(gain.lower, gain.upper)


def _with_interval(gain: Estimate) -> str:
    return f"{_ratio(gain)} (95% interval {interval(gain.low, gain.high)})"


def _word(gain: Estimate) -> str:
    word = judge(gain)
    return "no gain shown" if word == "no gain" else word
