"""What is asked of the losses, and what a run gave: computed from its rows, never typed.

`BARS` holds what is asked; every figure is a function of the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nearfar.report.format import percent

ULP = 2.0**-23
OURS, BF16, DENSE = "nearfar", "nearfar bf16", "dense"
COMPILED = ", compiled"
Cell = tuple[str, int, int]


class Results:
    """The rows of a report by loss, rows, features and contender."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.rows = {(row["loss"], row["n"], row["d"], row["contender"]): row for row in report["rows"]}

    def figure(self, cell: Cell, contender: str, name: str) -> float | None:
        """One number of one row, if it was measured."""
        return self.rows.get((*cell, contender), {}).get(name)

    def milliseconds(self, cell: Cell, contender: str = OURS) -> float | None:
        return self.figure(cell, contender, "milliseconds")

    def own(self, cell: Cell, compiled: bool = False) -> float | None:
        """Our time; compiled, where that changes anything."""
        found = self.milliseconds(cell, OURS + COMPILED) if compiled else None
        return self.milliseconds(cell) if found is None else found

    def ratio(self, slow: tuple[Cell, str], fast: tuple[Cell, str]) -> float | None:
        """How many times as long the first takes as the second."""
        a, b = self.milliseconds(*slow), self.milliseconds(*fast)
        return None if a is None or b is None else a / b

    def cells(self) -> list[Cell]:
        """In the order of the run."""
        return list(dict.fromkeys(key[:3] for key in self.rows))

    def contenders(self, cell: Cell) -> list[str]:
        return [key[3] for key in self.rows if key[:3] == cell]

    def others(self, cell: Cell, compiled: bool = False) -> Iterator[tuple[str, float]]:
        """Times of those who compute the very same loss, ours left out: the compiled ones, or the others."""
        for name in self.contenders(cell):
            row = self.rows[*cell, name]
            theirs = not name.startswith(OURS) and name.endswith(COMPILED) == compiled
            if theirs and "milliseconds" in row and row.get("same", True):
                yield name, row["milliseconds"]


Figure = Callable[[Results], float | None]


@dataclass(frozen=True)
class Bar:
    """One thing asked.

    Attributes:
        words: What is measured.
        asked: The number.
        figure: What a run gave; None where it did not measure that.
        unit: "share", "times", "MB", "ms".
        most: Whether the number is the most that is allowed, rather than the least.
    """

    words: str
    asked: float
    figure: Figure
    unit: str = "share"
    most: bool = False

    def met(self, results: Results) -> bool | None:
        found = self.figure(results)
        return None if found is None else found <= self.asked if self.most else found >= self.asked


def share(loss: str, n: int, d: int) -> Figure:
    return lambda results: results.figure((loss, n, d), OURS, "share")


def extra(loss: str, n: int, d: int) -> Figure:
    return lambda results: results.figure((loss, n, d), OURS, "extra_mb")


def against(other: str, loss: str, n: int, d: int) -> Figure:
    return lambda results: results.ratio(((loss, n, d), other), ((loss, n, d), OURS))


def bf16_gain(loss: str, n: int, d: int) -> Figure:
    return lambda results: results.ratio(((loss, n, d), OURS), ((loss, n, d), BF16))


def bf16_rate(loss: str, n: int, d: int) -> Figure:
    """The rate in bfloat16 over that of the library's float32 product, which our float32 may exceed."""

    def figure(results: Results) -> float | None:
        gain, own = bf16_gain(loss, n, d)(results), share(loss, n, d)(results)
        return None if gain is None or own is None else gain * own

    return figure


def worst_ratio(least_rows: int, compiled: bool = False) -> Figure:
    """The fastest other's time over ours, in the cell where that is least: compiled with compiled, or as they are."""

    def figure(results: Results) -> float | None:
        found = [
            other / own
            for cell in results.cells()
            if cell[1] >= least_rows and (own := results.own(cell, compiled)) is not None
            for _, other in results.others(cell, compiled)
        ]
        return min(found, default=None)

    return figure


def worst_overhead(most_rows: int, compiled: bool = False) -> Figure:
    """Our milliseconds less those of the dense form as it is, in the cell where that is most (of those compiled, if asked)."""

    def figure(results: Results) -> float | None:
        times = [
            (results.own(cell, compiled), results.milliseconds(cell, DENSE))
            for cell in results.cells()
            if cell[1] <= most_rows and (not compiled or DENSE + COMPILED in results.contenders(cell))
        ]
        return max((own - dense for own, dense in times if own is not None and dense is not None), default=None)

    return figure


PICKING = ("Triplet, hard", "Triplet, semi-hard")
"""Of two pairs that tie within rounding, chance says which of them gets the gradient: ours or anybody's."""


def worst_error(results: Results) -> float | None:
    """Our error of a gradient beyond 4 units in the last place, over the dense form's, where no pair is picked."""
    found = []
    for cell in results.cells():
        if cell[0] in PICKING:
            continue
        own, dense = (results.figure(cell, name, "gradient_error") for name in (OURS, DENSE))
        if own is not None and dense is not None:
            found.append(max(own - 4 * ULP, 0) / max(dense, ULP))
    return max(found, default=None)


def all_triplets(results: Results) -> float | None:
    return results.ratio((("Triplet, all", 16384, 128), OURS), (("SupCon", 16384, 128), OURS))


BARS = (
    *(Bar(f"{loss}, 16,384 rows, d = {d}: share of the product's rate", asked, share(loss, 16384, d))
      for d, asked in ((128, 0.75), (512, 0.85)) for loss in ("NT-Xent", "SupCon")),
    *(Bar(f"{loss}, {n:,} rows a side, d = 512: share of the product's rate", 0.75, share(loss, n, 512))
      for loss in ("InfoNCE", "CLIP") for n in (8192, 16384)),
    *(Bar(f"InfoNCE, {n:,} rows a side, d = {d}: linear_cross_entropy over ours", 1.5,
          against("linear_cross_entropy", "InfoNCE", n, d), "times") for n, d in ((8192, 128), (8192, 512), (16384, 512))),
    *(Bar(f"Batch-hard triplets, {n:,} rows: dense over ours", 5.0, against(DENSE, "Triplet, hard", n, 128), "times")
      for n in (4096, 8192, 16384)),
    Bar("Batch-all triplets, 8 a class, 16,384 rows: over SupCon's time", 4.0, all_triplets, "times", most=True),
    *(Bar(f"{loss}, 16,384 rows, d = 512: float32 over bf16", 2.5, bf16_gain(loss, 16384, 512), "times")
      for loss in ("NT-Xent", "SupCon", "InfoNCE", "CLIP")),
    *(Bar(f"{loss}, 16,384 rows, d = 512: bf16 over the rate of the library's float32 product", 2.5,
          bf16_rate(loss, 16384, 512), "times") for loss in ("NT-Xent", "SupCon", "InfoNCE", "CLIP")),
    Bar("SupCon, 16,384 rows, d = 128: extra memory", 64, extra("SupCon", 16384, 128), "MB", most=True),
    Bar("SupCon, 131,072 rows, d = 128: extra memory", 1000, extra("SupCon", 131072, 128), "MB", most=True),
    Bar("64 to 512 rows, every loss: ours less the dense form, at worst", 0.3, worst_overhead(512), "ms", most=True),
    Bar("The same, ours by `loss.compile()`", 0.3, worst_overhead(512, compiled=True), "ms", most=True),
    Bar("From 256 rows on: the fastest other over ours, at worst, nobody compiled", 1.0, worst_ratio(256), "times"),
    Bar("The same, all compiled", 1.0, worst_ratio(256, compiled=True), "times"),
    Bar("Gradient's error beyond 4 ulp: over dense's, at worst, where no pair is picked", 2.0, worst_error, "times", most=True),
)  # fmt: skip


def written(number: float | None, unit: str) -> str:
    """A figure as the tables say it."""
    if number is None:
        return "not measured"
    return {
        "share": percent,
        "times": lambda x: f"{x:.2f}×",
        "MB": lambda x: f"{x:,.0f} MB",
        "ms": lambda x: f"{x:.2f} ms",
    }[unit](number)


def summary(results: Results) -> list[str]:
    """The Markdown table: asked, got, met or missed."""
    lines = ["| bar | asked | got | |", "|---|--:|--:|---|"]
    for bar in BARS:
        sign = "≤" if bar.most else "≥"
        verdict = {True: "met", False: "missed", None: ""}[bar.met(results)]
        got = written(bar.figure(results), bar.unit)
        lines.append(f"| {bar.words} | {sign} {written(bar.asked, bar.unit)} | {got} | {verdict} |")
    return lines
