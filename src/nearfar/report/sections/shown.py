"""A run as the sections of the page see it: with a name of its own, a key that is safe anywhere, and its colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nearfar.report.format import percent
from nearfar.report.html import radios
from nearfar.report.palette import Style, run_style
from nearfar.report.run_schema import Evaluation, Look, Metric, RunFacts, Step, Value


@dataclass(frozen=True)
class Shown:
    """A run on a page."""

    run: RunFacts
    key: str
    """``r0``, ``r1``, …: used in ids and values, where no text of a user belongs."""
    name: str
    """As the run's, numbered where two runs have the same."""
    style: Style
    others: Sequence[tuple[str, Evaluation]] = ()
    """Its figures on other data, each with what those are called on the page."""

    @property
    def steps(self) -> Sequence[Step]:
        """Its lines of training."""
        return self.run.get("events", {}).get("steps", [])

    @property
    def looks(self) -> Sequence[Look]:
        """Its looks at the held-out rows."""
        return self.run.get("events", {}).get("looks", [])

    @property
    def metrics(self) -> Sequence[Metric]:
        """Its figures at the end."""
        evaluation = self.run.get("evaluation")
        return [] if evaluation is None else evaluation["metrics"]

    def look_name(self, name: str) -> str:
        """What a figure of its looks is called: kNN and recall by where neighbours were looked for."""
        looked = self.run.get("events", {}).get("looked")
        return f"{name} {looked}" if looked and name in ("knn", "recall@1") else name

    def class_name(self, label: int | None) -> str:
        """What a class is called."""
        names = self.run.get("class_names", [])
        if label is None or label < 0:
            return "unknown"
        return names[label] if label < len(names) else f"class {label}"


def shown(runs: Sequence[RunFacts]) -> list[Shown]:
    """Runs with names of their own.

    Example:
        >>> [one.name for one in shown([{"name": "a", "config": {}}, {"name": "a", "config": {}}])]
        ['a', 'a (2)']
    """
    seen: Counter[str] = Counter()
    found = []
    there = {(one.get("data", "other data"), one.get("source", "")) for run in runs for one in run.get("others", ())}
    own = {run["evaluation"].get("data", "") for run in runs if "evaluation" in run}
    names = Counter([name for name, _ in there] + [*own])
    called = {place: f"{place[0]} ({place[1]})" if names[place[0]] > 1 and place[1] else place[0] for place in there}
    for k, run in enumerate(runs):
        seen[run["name"]] += 1
        again = seen[run["name"]]
        name = run["name"] if again == 1 else f"{run['name']} ({again})"
        others = [(called[one.get("data", "other data"), one.get("source", "")], one) for one in run.get("others", ())]
        found.append(Shown(run, f"r{k}", name, run_style(k), others))
    return found


def pick(key: str, runs: Sequence[Shown]) -> str:
    """Radio buttons that say of which run a section speaks; nothing where there is only one."""
    return radios(key, "Run", [(one.key, one.name) for one in runs], runs[0].key) if len(runs) > 1 else ""


def of_run(key: str, one: Shown, body: str) -> str:
    """Something that is shown while its run is picked."""
    return f'<div data-choose="{key}" data-is="{one.key}">{body}</div>'


def number(value: Value, *, fraction: bool = False) -> str:
    """A figure for a table: percent where it is a fraction, four digits otherwise.

    Example:
        >>> number(0.9315, fraction=True), number(0.0001, fraction=True), number(12.3456), number(None)
        ('93.2%', '0.01%', '12.35', '–')
    """
    if value is None or value != value:
        return "–"
    if fraction:
        return percent(value) if not 0 < value < 0.001 else f"{100 * value:.2g}%"
    return f"{value:,.4g}".replace("-", "−")


def is_fraction(metric: Metric) -> bool:
    """Whether a figure is shown in percent."""
    if "fraction" in metric:
        return metric["fraction"]
    known = [metric.get(end) for end in ("value", "low", "high", "chance")]
    return all(0 <= value <= 1 for value in known if value is not None)


def span(metric: Metric) -> str:
    """Its interval in words; empty without one."""
    low, high = metric.get("low"), metric.get("high")
    if low is None or high is None:
        return ""
    return f"{number(low, fraction=is_fraction(metric))} to {number(high, fraction=is_fraction(metric))}"
