"""Writes the figures of speed into README.md and README.zh-CN.md from the committed results.

    python benchmarks/readme.py

replaces what lies between `<!-- speed -->` and `<!-- /speed -->`; a test holds both files to the results.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bars import BF16, COMPILED, DENSE, OURS, Cell, Results
from nearfar.report.files import read_json, write_text

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "benchmarks" / "results" / "losses.json"
START, END = "<!-- speed -->", "<!-- /speed -->"
SHOWN: tuple[Cell, ...] = (
    ("NT-Xent", 256, 128),
    ("NT-Xent", 4096, 128),
    ("NT-Xent", 16384, 128),
    ("SupCon", 4096, 128),
    ("SupCon", 16384, 128),
    ("InfoNCE", 64, 128),
    ("InfoNCE", 4096, 128),
    ("InfoNCE", 16384, 128),
    ("CLIP", 4096, 128),
    ("CLIP", 16384, 128),
    ("Triplet, hard", 16384, 128),
    ("Triplet, all", 16384, 128),
    ("ArcFace, 10,000 classes", 512, 128),
)
WORDS = {
    "README.md": {
        "lead": "Forward + backward in float32, d = 128, {threads} threads, the contenders of a line in turn; rows are those that "
        "score each other ([all losses, sizes, peers, memory and errors](benchmarks/results/losses.md), `make bench`):",
        "header": ("", "nearfar", "nearfar bf16", "dense", "fastest peer"),
        "row": "{loss}, {n:,} rows",
        "share": "That is {parts} of the rate of the machine's own matrix product (`torch.mm`), counting the least products known "
        "for each loss; over 100% where the second library that torch brings is the faster one, which the engine then takes.",
        "part": "{share} ({loss}, {n:,} rows)",
        "joint": ", ",
        "loss": "Where we lose: another is faster in {lost} of {cells} cells, in none beyond {n:,} rows; at worst by {excess} "
        "({name}, {loss}, {worst:,} rows: {theirs}, ours {own}).",
        "win": "Nobody is faster in any of {cells} cells.",
        "compiled": "Small batches are all overhead, and `loss.compile()` takes that out: every loss is one graph, which beats "
        "the dense form as it is in {won} of {cells} cells up to {n:,} rows, by {gain} at the median "
        "({worst} at worst, {loss}, {rows:,} rows).",
    },
    "README.zh-CN.md": {
        "lead": "前向加反向，float32，d = 128，{threads} 个线程，同一行的各方交替计时；“行”指相互打分的行"
        "（[全部损失、规模、对手、内存与误差](benchmarks/results/losses.md)，`make bench`）：",
        "header": ("", "nearfar", "nearfar bf16", "稠密写法", "最快的对手"),
        "row": "{loss}，{n:,} 行",
        "share": "按每个损失已知最少的矩阵乘法计，这是本机矩阵乘法（`torch.mm`）速率的 {parts}；"
        "超过 100% 是因为 torch 自带的另一个库在这种处理器上更快，引擎会用它。",
        "part": "{share}（{loss}，{n:,} 行）",
        "joint": "、",
        "loss": "不足之处：{cells} 个规模中有 {lost} 个别人更快，超过 {n:,} 行则没有；最多慢 {excess}"
        "（{name}，{loss}，{worst:,} 行：{theirs}，我们 {own}）。",
        "win": "{cells} 个规模中没有一个别人更快。",
        "compiled": "小批量的时间全是固定开销，`loss.compile()` 可以去掉它：每个损失都是一张图，"
        "在不超过 {n:,} 行的 {cells} 个规模中有 {won} 个比未编译的稠密写法更快，中位数 {gain}"
        "（最差 {worst}，{loss}，{rows:,} 行）。",
    },
}


def duration(milliseconds: float) -> str:
    """Two or three digits, in milliseconds or seconds."""
    if milliseconds >= 100:
        seconds = milliseconds / 1000
        return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.{1 if milliseconds >= 1 else 2}f} ms"


def speed(report: dict[str, Any], words: dict[str, Any]) -> str:
    """The block between the marks."""
    results = Results(report)
    cells = [cell for cell in SHOWN if results.milliseconds(cell) is not None]
    rows = [_row(results, cell, words) for cell in cells]
    keep = [column for column in range(len(words["header"])) if any(row[column] != "–" for row in rows)]
    table = [words["header"], ["---", *["--:"] * (len(words["header"]) - 1)], *rows]
    lines = ["| " + " | ".join(row[column] for column in keep) + " |" for row in table]
    sentences = [_share(results, cells, words), _lost(results, words), _compiled(results, words)]
    lead = words["lead"].format(threads=report["machine"]["threads"])
    return "\n".join([START, lead, "", *lines, "", "\n".join(filter(None, sentences)), END])


def _row(results: Results, cell: Cell, words: dict[str, Any]) -> list[str]:
    def time(contender: str) -> str:
        found = results.milliseconds(cell, contender)
        return "–" if found is None else duration(found)

    peers = [(found, name) for name, found in results.others(cell) if not name.startswith(DENSE)]
    peer = f"{min(peers)[1]} {duration(min(peers)[0])}" if peers else "–"
    return [words["row"].format(loss=cell[0], n=cell[1]), time(OURS), time(BF16), time(DENSE), peer]


def _share(results: Results, cells: list[Cell], words: dict[str, Any]) -> str:
    """At the largest size that is shown of each loss."""
    largest = {cell[0]: cell for cell in cells}
    parts = [
        words["part"].format(share=f"{share:.0%}", loss=loss, n=cell[1])
        for loss, cell in largest.items()
        if not loss.startswith("Triplet") and (share := results.figure(cell, OURS, "share")) is not None
    ]
    return words["share"].format(parts=words["joint"].join(parts)) if parts else ""


def _lost(results: Results, words: dict[str, Any]) -> str:
    """Where another is faster, by how much at worst."""
    cells = [cell for cell in results.cells() if results.milliseconds(cell) is not None and any(results.others(cell))]
    lost = []
    for cell in cells:
        own = results.milliseconds(cell) or 0.0
        name, theirs = min(results.others(cell), key=lambda other: other[1])
        if theirs < own:
            lost.append((own / theirs, cell, name, theirs, own))
    if not lost:
        return words["win"].format(cells=len(cells))
    ratio, cell, name, theirs, own = max(lost)
    return words["loss"].format(
        lost=len(lost), cells=len(cells), n=max(cell[1] for _, cell, *_ in lost), excess=f"{ratio - 1:.0%}", name=name,
        loss=cell[0], worst=cell[1], theirs=duration(theirs), own=duration(own),
    )  # fmt: skip


def _compiled(results: Results, words: dict[str, Any]) -> str:
    """How our compiled losses stand beside the dense form as it is."""
    ratios = [
        (ratio, cell)
        for cell in results.cells()
        if (ratio := results.ratio((cell, DENSE), (cell, OURS + COMPILED))) is not None
    ]
    if not ratios:
        return ""
    worst, cell = min(ratios)
    return words["compiled"].format(
        won=sum(ratio > 1 for ratio, _ in ratios), cells=len(ratios), n=max(cell[1] for _, cell in ratios),
        gain=f"{statistics.median(ratio for ratio, _ in ratios):.2f}×", worst=f"{worst:.2f}×", loss=cell[0], rows=cell[1],
    )  # fmt: skip


def updated(text: str, report: dict[str, Any], words: dict[str, Any]) -> str:
    """A README with its block written anew.

    Raises:
        ValueError: If it has no marks.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the text has no {START} … {END}: put both around the figures of speed")
    return before + speed(report, words) + after


def main() -> None:
    report = read_json(REPORT)
    for name, words in WORDS.items():
        write_text(ROOT / name, updated((ROOT / name).read_text(encoding="utf-8"), report, words))


if __name__ == "__main__":
    main()
