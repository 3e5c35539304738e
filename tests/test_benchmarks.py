"""The benchmark: that it compares like with like, survives what a contender does, computes its tables, and fills the README."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import nearfar as nf
from harness import KINDS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import bars  # noqa: E402
import cells  # noqa: E402
import measure  # noqa: E402
import readme  # noqa: E402
import table  # noqa: E402
from peers import PEERS, Contender, contenders  # noqa: E402
from plot import picture  # noqa: E402
from processes import forked  # noqa: E402
from workloads import WORKLOADS, inputs  # noqa: E402

# ---- like with like --------------------------------------------------------------------------------------------------


def test_every_loss_is_measured():
    assert {workload.loss for workload in WORKLOADS.values()} == set(KINDS) == set(nf.LOSSES)


@pytest.mark.parametrize("name", WORKLOADS)
def test_dense_form_is_the_loss(name):
    """In float64: value and gradient of ours are those of the form that everybody is measured against."""
    workload = WORKLOADS[name]
    found = []
    for call in (workload.ours(), workload.dense):
        given = inputs(workload.kind, 32, 8, torch.float64)
        found.append((measure.step(call, given), [z.grad for z in measure.leaves(given)]))
    (value, gradients), (wanted, wanted_gradients) = found
    assert wanted.abs() > 1e-6  # something is lost, or nothing is compared
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients, wanted_gradients, rtol=1e-6, atol=1e-9)


def test_related_rows_are_nearer():
    for kind in ("views", "sides", "frozen", "moments"):
        x, y = inputs(kind, 64, 32)
        cosine = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T
        assert len(x) == (32 if kind == "views" else 64)
        assert cosine.diagonal().mean() > 0.1 > cosine.mean().abs()


# ---- what a contender may do -----------------------------------------------------------------------------------------


def test_fork_returns_what_it_is_given():
    assert forked(lambda: {"a": [1, "ü" * 100_000]}, 20) == {"a": [1, "ü" * 100_000]}


def test_fork_that_fails_says_why():
    def fail() -> dict[str, Any]:
        raise ValueError("no\nmore")

    assert forked(fail, 20) == {"error": "ValueError: no"}
    assert forked(lambda: __import__("no_such_peer"), 20) == {"error": "not installed (no_such_peer)"}


def test_fork_that_takes_long_is_ended():
    start = time.monotonic()
    assert forked(lambda: time.sleep(60) or {}, 0.2)["time"]
    assert time.monotonic() - start < 20


def test_fork_that_takes_memory_is_ended():
    def take(size: int) -> dict[str, Any]:
        return forked(lambda: {"size": torch.empty(size, dtype=torch.uint8).nbytes}, 20, memory=2**30)

    assert take(2**20) == {"size": 2**20}
    assert take(2**31) == {"error": "out of memory at 2.1 GB more", "memory": True}


def test_fork_that_is_killed_is_seen():
    assert forked(lambda: __import__("os").kill(__import__("os").getpid(), 9), 20)["memory"]


def contender(**facts: Any) -> Contender:
    return Contender("SupCon", "peer", lambda: torch.sum, **facts)


def test_what_has_no_hope_is_refused():
    """From 1,024 rows with 1 s and 1 GB: twice the rows cost 4 times as much, or 8 times."""
    past = {("SupCon", "peer"): {"n": 1024, "d": 128, "seconds": 1.0, "bytes": 1e9}}
    limits = cells.Limits(step=3.0, memory=4_000_000_000)
    assert cells.foreseen(contender(), 2048, 256, past) == (8.0, 4e9)
    assert cells.refusal(contender(), 2048, 128, past, limits) is None  # near enough to try
    assert cells.refusal(contender(), 2048, 256, past, limits) == "over 3 s a step: not run"
    assert cells.refusal(contender(memory=3), 2048, 128, past, limits) == "would need 8 GB"
    assert cells.refusal(contender(power=3, memory=1), 2048, 128, past, limits) == "over 3 s a step: not run"
    assert cells.refusal(contender(), 65536, 128, {}, limits) is None


def test_errors_are_relative():
    found = measure.errors(torch.tensor(2.2), torch.tensor([1.0, 4.5]), torch.tensor(2.0), torch.tensor([0.8, 4.0]))
    assert found == {"value_error": pytest.approx(0.1), "gradient_error": pytest.approx(0.125)}
    assert measure.errors(*torch.tensor([[0.0], [1.0], [0.0], [0.0]]).unbind())["value_error"] is None


# ---- the command -----------------------------------------------------------------------------------------------------

HIDDEN = ("lightly", "pytorch_metric_learning", "info_nce", "sentence_transformers", "open_clip")
COMMAND = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({HIDDEN!r}))
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
runpy.run_path({str(ROOT / "benchmarks" / "losses.py")!r}, run_name="__main__")
"""


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    run("--quick", "--out", str(folder))
    return folder


def test_runs_without_the_peers(quick):
    report = json.loads((quick / "losses.json").read_text())
    rows = {(row["loss"], row["contender"]): row for row in report["rows"]}
    assert rows.keys() == {
        (name, one.name) for name, workload in WORKLOADS.items() for one in contenders(workload, 64, compiled=False)
    }
    for peer in PEERS:
        if not peer.name.startswith("linear_cross_entropy"):
            assert rows[peer.loss, peer.name]["error"].startswith("not installed"), peer
    for name in WORKLOADS:
        for one in ("nearfar", "dense"):
            row = rows[name, one]
            assert row["milliseconds"] > 0
            assert row["extra_mb"] >= 0
            assert row["value_error"] < 1e-5
            assert row["gradient_error"] < 1e-4
    assert (quick / "losses.md").read_text() == table.markdown(report)
    assert (quick / "losses.svg").read_text() == picture(report)


def test_a_run_that_was_cut_goes_on(quick, tmp_path):
    report = json.loads((quick / "losses.json").read_text())
    kept = [row for row in report["rows"] if row["loss"] not in ("SupCon", "CLIP")]
    (tmp_path / "losses.json").write_text(json.dumps(report | {"rows": kept}))
    run("--quick", "--resume", "--losses", "SupCon", "NT-Xent", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "losses.json").read_text())["rows"]
    assert rows[: len(kept)] == kept
    assert {row["loss"] for row in rows[len(kept) :]} == {"SupCon"}


def test_memory_and_sizes(tmp_path):
    """At 1,024 rows a matrix of float32 has 4 MB; the dense form holds several, in forward and backward."""
    run("--losses", "SupCon", "--rows", "1024", "--features", "32", "--budget", "0.01", "--out", str(tmp_path))
    report = json.loads((tmp_path / "losses.json").read_text())
    rows = {row["contender"]: row for row in report["rows"]}
    assert 8 < rows["dense"]["extra_mb"] < 80
    assert rows["nearfar bf16"]["value_error"] > rows["nearfar"]["value_error"]
    for row in (rows["dense"], rows["nearfar"]):
        spent = row["milliseconds"] / 1e3 * row["product_gigaflops"] * 1e9
        assert row["share"] == pytest.approx(2 * 2 * 1024**2 * 32 / spent, rel=1e-2, abs=1e-4)


# ---- arithmetic, on made-up rows -------------------------------------------------------------------------------------


def made(loss: str, n: int, d: int, contender: str, milliseconds: float, **facts: Any) -> dict[str, Any]:
    return {"loss": loss, "n": n, "d": d, "contender": contender, "milliseconds": milliseconds, "rounds": 3} | facts


MACHINE = {"processor": "one", "threads": 2, "instructions": "AVX2", "torch": "2", "python": "3"}
REPORT = {
    "machine": MACHINE,
    "rows": [
        made("SupCon", 16384, 128, "nearfar", 500.0, share=0.75, extra_mb=40.0, gradient_error=12 * 2.0**-23),
        made("SupCon", 16384, 128, "nearfar bf16", 250.0, share=0.4),
        made("SupCon", 16384, 128, "dense", 2000.0, share=0.19, extra_mb=3000.0, gradient_error=2 * 2.0**-23),
        made("SupCon", 16384, 128, "other formula", 1.0, same=False),
        {"loss": "SupCon", "n": 16384, "d": 128, "contender": "lightly", "error": "would need 40 GB"},
        made("Triplet, all", 16384, 128, "nearfar", 2000.0),
        made("Triplet, hard", 16384, 128, "nearfar", 100.0, share=0.5),
        made("Triplet, hard", 16384, 128, "dense", 150.0),
        made("CLIP", 64, 128, "nearfar", 0.9),
        made("CLIP", 64, 128, "open_clip", 0.6),
    ],
}


def bar(words: str) -> tuple[float | None, bool | None]:
    found = [one for one in bars.BARS if words in one.words]
    assert len(found) == 1, [one.words for one in found]
    results = bars.Results(REPORT)
    return found[0].figure(results), found[0].met(results)


def test_share_counts_the_least_products():
    """SupCon: 2 products of 2·1,000·1,000·100 operations in 4 ms are 100 GF/s."""
    flops = WORKLOADS["SupCon"].flops(1000, 100)
    assert flops == 4e8
    assert measure.share(4e8, 0.004, 200.0) == pytest.approx(0.5)
    assert WORKLOADS["CLIP"].flops(1000, 100) == 8e8
    assert WORKLOADS["Triplet, hard"].flops(1000, 100) == 1e8
    assert WORKLOADS["ArcFace"].flops(1000, 100) == 3 * 2 * 1000 * 125 * 100
    assert WORKLOADS["Barlow Twins"].flops(1000, 100) == 3 * 2 * 1000 * 100 * 100
    assert WORKLOADS["NCE"].flops(1000, 100) is None


def test_bars_are_computed():
    assert bar("SupCon, 16,384 rows, d = 128: share") == (0.75, True)
    assert bar("SupCon, 16,384 rows, d = 128: extra") == (40.0, True)
    assert bar("SupCon, 131,072 rows") == (None, None)
    assert bar("Batch-hard triplets, 16,384 rows") == (1.5, False)
    assert bar("Batch-all triplets")[0] == 4.0
    assert bar("fastest other") == (1.5, True)  # the cell of 64 rows and the other formula are left out
    assert bar("Gradient's error") == (4.0, False)  # (12 − 4) ulp over 2


def test_bars_are_shown():
    lines = bars.summary(bars.Results(REPORT))
    assert "| SupCon, 16,384 rows, d = 128: extra memory | ≤ 64 MB | 40 MB | met |" in lines
    assert any(line.startswith("| SupCon, 131,072") and line.endswith("| not measured |  |") for line in lines)
    assert len(lines) == 2 + len(bars.BARS)


def test_lines_of_the_table():
    results = bars.Results(REPORT)
    lines = {row["contender"]: table.line(row, results) for row in REPORT["rows"] if row["loss"] == "SupCon"}
    assert lines["nearfar"] == "| 128 | 16,384 | nearfar | 500.00 | 1.00 | 75% | 40.0 |  | 1e-06 |"
    assert lines["dense"] == "| 128 | 16,384 | dense | 2,000.00 | 4.00 | 19% | 3,000.0 |  | 2e-07 |"
    assert lines["lightly"] == "| 128 | 16,384 | lightly | would need 40 GB | | | | | |"
    assert all(line in table.markdown(REPORT) for line in lines.values())


def test_the_picture_shows_everybody_who_was_timed():
    shown = picture(REPORT)
    assert all(f">{name}</text>" in shown for name in ("nearfar", "nearfar bf16", "dense", "open_clip"))
    assert "lightly" not in shown
    assert picture({"machine": MACHINE, "rows": []}).endswith("</svg>\n")


# ---- the READMEs -----------------------------------------------------------------------------------------------------


def committed() -> dict[str, Any]:
    return json.loads(readme.REPORT.read_text())


@pytest.mark.parametrize("name", readme.WORDS)
def test_figures_are_those_of_the_results(name):
    """`python benchmarks/readme.py` would change nothing."""
    text = (ROOT / name).read_text()
    assert readme.updated(text, committed(), readme.WORDS[name]) == text


def test_table_of_results_is_that_of_the_json():
    folder = readme.REPORT.parent
    assert (folder / "losses.md").read_text() == table.markdown(committed())
    assert (folder / "losses.svg").read_text() == picture(committed())


@pytest.mark.parametrize("name", readme.WORDS)
def test_times_agree_with_the_json_row_by_row(name):
    """Read from the page by itself: the times of ours, of the dense form and of the named peer, as rounded."""
    times = {
        (row["loss"], row["n"], row["contender"]): row.get("milliseconds")
        for row in committed()["rows"]
        if row["d"] == 128
    }
    text = (ROOT / name).read_text().split("<!-- speed -->")[1].split("<!-- /speed -->")[0]
    lines = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("| ")
    ]
    columns = {"nearfar": "nearfar", "nearfar bf16": "nearfar bf16", "dense": "dense", "稠密写法": "dense"}
    checked = 0
    for line in lines[2:]:
        loss, rows = re.fullmatch(r"(.+?)[,，] ?([\d,]+) (?:rows|行)", line[0]).groups()
        for head, cell in zip(lines[0], line[-len(lines[0]) :], strict=False):
            if cell == "–" or cell == line[0]:
                continue
            who, number, unit = re.fullmatch(r"(.*?) ?([\d.]+) (ms|s)", cell).groups()
            exact = times[loss, int(rows.replace(",", "")), columns.get(head, who)] / {"ms": 1, "s": 1000}[unit]
            digits = len(number.partition(".")[2])
            assert float(number) == pytest.approx(exact, abs=0.5000001 * 10**-digits), (line, head)
            checked += 1
    assert checked >= 12


def test_rows_that_are_shown_come_from_the_report():
    text = readme.speed(REPORT, readme.WORDS["README.md"])
    assert "| SupCon, 16,384 rows | 0.50 s | 0.25 s | 2.00 s |" in text
    assert (
        "another is faster in 1 of 3 cells, in none beyond 64 rows; at worst by 50% (open_clip, CLIP, 64 rows: 0.60 ms"
        in text
    )
    assert "75% (SupCon, 16,384 rows)" in text
    with pytest.raises(ValueError, match="has no <!-- speed -->"):
        readme.updated("nothing", REPORT, readme.WORDS["README.md"])
