"""Choosing a learning rate, and a weight where an arm has one: the same number of trials for every arm."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from nearfar.compare.arms import Arm


@dataclass(frozen=True)
class Choice:
    """What the sweep of an arm found."""

    rate: float
    """The learning rate with the best score."""
    weight: float
    """The weight of the contrast that goes with it."""
    score: float
    """Its mean validation accuracy over the evaluations."""
    edge: bool
    """Whether the rate is the lowest or the highest tried: a better one may lie beyond."""
    trials: tuple[tuple[float, float, float], ...]
    """Every ``(rate, weight, score)`` in the order tried."""


Plan = Generator[tuple[float, float], float | None, Choice]
"""Gives the trials of an arm, ``(rate, weight)``, one by one; is sent the score of each; returns what it chose."""


def plan(arm: Arm, rates: tuple[float, ...], budget: int) -> Plan:
    """Spends ``budget`` trials and takes the best; equal scores go to the first tried.

    First every rate with a weight of 1; then the arm's own weights at the best rate so far; what is left goes into
    rates half a step beside the best so far (beyond the end if it lies there), then a quarter of a step. So an arm
    without weights gets a finer choice of rates for the same number of trials.

    Args:
        arm: Gives the weights.
        rates: To try first.
        budget: Trials, at least as many as rates.
    """
    scores: dict[tuple[float, float], float] = {}
    for rate in rates:
        scores[rate, 1.0] = yield from _ask(rate, 1.0)
    while len(scores) < budget:
        best = max(scores, key=lambda trial: scores[trial])
        rate, weight = next(trial for trial in _beside(arm, rates, *best) if trial not in scores)
        scores[rate, weight] = yield from _ask(rate, weight)
    rate, weight = max(scores, key=lambda trial: scores[trial])
    tried = [rate for rate, _ in scores]
    return Choice(
        rate=rate,
        weight=weight,
        score=scores[rate, weight],
        edge=len(set(tried)) > 1 and rate in (min(tried), max(tried)),
        trials=tuple((*trial, value) for trial, value in scores.items()),
    )


def choose(arm: Arm, rates: tuple[float, ...], budget: int, score: Callable[[float, float], float]) -> Choice:
    """The whole plan at once, by a function that knows every score.

    Example:
        >>> from nearfar.compare.arms import ARMS
        >>> choose(ARMS["task"], (1e-3, 1e-2), 4, lambda rate, weight: 1 - rate).trials
        ((0.001, 1.0, 0.999), (0.01, 1.0, 0.99), (0.00316, 1.0, 0.99684), (0.000316, 1.0, 0.999684))
    """
    steps = plan(arm, rates, budget)
    found = None
    while True:
        try:
            found = score(*steps.send(found))
        except StopIteration as end:
            return end.value


def _ask(rate: float, weight: float) -> Generator[tuple[float, float], float | None, float]:
    score = yield rate, weight
    assert score is not None
    return score


def _beside(arm: Arm, rates: tuple[float, ...], rate: float, weight: float) -> Iterator[tuple[float, float]]:
    """Trials around the best one so far, those worth more first; endless."""
    for other in arm.weights:
        yield rate, other
    ordered = sorted(set(rates))
    step = (ordered[-1] / ordered[0]) ** (1 / (len(ordered) - 1)) if len(ordered) > 1 else 10.0
    while True:
        step **= 0.5
        for factor in (step, 1 / step):
            yield float(f"{rate * factor:.3g}"), weight
