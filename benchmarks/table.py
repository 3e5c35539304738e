"""The results as files: JSON while the run goes, then Markdown and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bars import Results, summary
from nearfar.report.files import write_json, write_text
from plot import picture

Row = dict[str, Any]

INTRODUCTION = """\
Forward + backward in float32 on {processor}, {threads} threads, {instructions}, torch {torch}, Python {python}. A cell's contenders
run in turn in one process, with the machine's own (1024×d)(d×1024) product among them; times are medians. `n` is the rows that
score each other (two views together; one side of two).

- **share**: of the product's rate, counting the least products known for the loss, whatever a contender spends; bf16 against
  the bf16 product. Over 100% where the second library that torch brings is faster than `torch.mm`'s, which ours then uses.
- **× ours**: time over nearfar's.
- **extra**: most memory during one step beyond inputs and gradients, in a process of its own, MB.
- **value**, **gradient**: relative errors against the dense form in float64, up to 4,096 rows; a gradient's is its largest
  error over its largest entry. Where a loss picks pairs (hard, semi-hard) chance decides between two that tie within
  rounding, anybody's, and the error may be one pair's whole gradient.

Written by `make bench`.
"""


def write(folder: Path, report: dict[str, Any]) -> None:
    """All three files, each whole or as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "losses.json", report)
    write_text(folder / "losses.md", markdown(report))
    write_text(folder / "losses.svg", picture(report))


def markdown(report: dict[str, Any]) -> str:
    """The page: bars first, then a table a loss."""
    results = Results(report)
    lines = [
        "# Losses beside their peers",
        "",
        INTRODUCTION.format(**report["machine"]),
        "## Bars",
        "",
        *summary(results),
    ]
    lines += ["", "## Time against rows", "", "![Time against rows](losses.svg)", ""]
    for loss in dict.fromkeys(row["loss"] for row in report["rows"]):
        lines += [f"## {loss}", "", *_table(loss, report, results), ""]
    return "\n".join(lines)


def _table(loss: str, report: dict[str, Any], results: Results) -> list[str]:
    rows = sorted((row for row in report["rows"] if row["loss"] == loss), key=lambda row: (row["d"], row["n"]))
    lines = [
        "| d | n | contender | ms | × ours | share | extra | value | gradient |",
        "|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [line(row, results) for row in rows]
    notes = {row["contender"]: row["note"] for row in rows if "note" in row}
    return lines + ([""] if notes else []) + [f"{name}: {note}." for name, note in notes.items()]


def line(row: Row, results: Results) -> str:
    """One contender's line."""
    start = f"| {row['d']} | {row['n']:,} | {row['contender']} |"
    if "error" in row:
        return f"{start} {row['error']} | | | | | |"
    ratio = times_ours(row, results)
    cells = [
        f"{row['milliseconds']:,.2f}",
        "" if ratio is None else f"{ratio:.2f}",
        f"{row['share']:.0%}" if "share" in row else "",
        f"{row['extra_mb']:,.1f}" if "extra_mb" in row else "",
        *(f"{row[name]:.0e}" if row.get(name) is not None else "" for name in ("value_error", "gradient_error")),
    ]
    return f"{start} {' | '.join(cells)} |"


def times_ours(row: Row, results: Results) -> float | None:
    """A row's time over nearfar's in the same cell."""
    own = results.milliseconds((row["loss"], row["n"], row["d"]))
    return None if own is None else row["milliseconds"] / own
