"""A comparison on the terminal: two tables and the verdict, by rich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nearfar.compare.statistics import Estimate
from nearfar.compare.verdict import judge
from nearfar.report.format import bounded, count, percent

if TYPE_CHECKING:
    from nearfar.compare.result import Comparison

COLOURS = {"sooner": "green", "later": "red", "no gain": "yellow"}


def render(result: Comparison) -> Any:
    """What rich prints of a comparison."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    gist, *others = result.verdict
    words = [Text(gist, style="bold"), *(Text(f"· {sentence}") for sentence in others)]
    if not result.arms:
        return Group(*words)
    return Group(_reach_table(result), Text(), _gain_table(result), Padding(Group(*words), (1, 0, 0, 0)))


def _reach_table(result: Comparison) -> Any:
    from rich.table import Table
    from rich.text import Text

    data, config = result.about["data"], result.about["config"]
    table = Table(
        title=f"Steps to a test accuracy: medians of {result.arms[0].seeds} seeds, {data['name']}",
        caption=f"held for {config['hold']} evaluations, {config['eval_every']} steps apart; (k/n): seeds that arrived, "
        "where not all did; a rate's (w): the weight of the contrast, where not 1",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("arm", no_wrap=True)
    table.add_column("rate", justify="right")
    for target in result.targets:
        name = percent(target.accuracy)
        table.add_column(name if target.name == name else f"{name}\n{target.name}", justify="right")
    table.add_column("after\nthe last step", justify="right")
    for arm in result.arms:
        cells = []
        for reach in arm.reach:
            missing = "" if reach.reached == arm.seeds else f" ({reach.reached}/{arm.seeds})"
            cells.append(bounded(*reach.steps, count) + missing)
        rate = f"{arm.choice.rate:g}" + ("" if arm.choice.weight == 1 else f" ({arm.choice.weight:g})")
        table.add_row(Text(arm.name), rate, *cells, percent(arm.final.lower))
    return table


def _gain_table(result: Comparison) -> Any:
    from rich.table import Table
    from rich.text import Text

    target = result.targets[result.headline]
    rival = result.rivals[result.headline]
    table = Table(
        title=f"How many times sooner to {percent(target.accuracy)}, with 95% intervals",
        caption=f"than the baseline; own: than the best arm without contrast, here {rival}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("arm", no_wrap=True)
    for heading in ("in steps", "in seconds", "own, in\nsteps", "own, in\nseconds"):
        table.add_column(heading, justify="right")
    for arm in result.arms:
        reach = arm.reach[result.headline]
        cells = [_gain(gain) for gain in (reach.gain_steps, reach.gain_seconds, reach.own_steps, reach.own_seconds)]
        table.add_row(Text(arm.name), *cells)
    return table


def _gain(gain: Estimate | None) -> Any:
    from rich.text import Text

    if gain is None:
        return Text("")
    return Text(f"{bounded(gain.lower, gain.upper)}\n{bounded(gain.low, gain.high)}", style=COLOURS[judge(gain)])
