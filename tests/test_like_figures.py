"""Figures of several runs: each is ranked by what it depends on, the same in the findings and in the tables."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import nearfar as nf
from nearfar.cli import main
from nearfar.evaluation.evaluate import evaluate
from nearfar.index.facts import run_facts
from nearfar.index.measured import page_evaluation
from nearfar.report.run_page import render_runs
from nearfar.report.sections.findings import sentences
from nearfar.report.sections.measures import measures
from nearfar.report.sections.shown import shown
from pages import Page

BASE = {
    "rows measured": "x",
    "metric": "cosine",
    "number of neighbours": "20",
    "cut-offs": "1, 5",
    "rows to learn from": "9",
}
CHANCES = {"clustering nmi": 0.031, "knn accuracy": 0.1}
NAMES = (
    "knn accuracy",
    "probe accuracy",
    "retrieval recall@1",
    "verification eer",
    "clustering nmi",
    "zero-shot top-1",
)


def told(name: str, value: float, chances: dict[str, float] = CHANCES, **protocol: str) -> Any:
    metrics = [
        {"name": metric, "value": value} | ({"chance": chances[metric]} if metric in chances else {})
        for metric in NAMES
    ]
    known = BASE | {key.replace("_", " "): other for key, other in protocol.items()}
    return {"name": name, "config": {}, "evaluation": {"metrics": metrics, "protocol": known}}


def starred(*runs: Any) -> set[str]:
    section = measures(shown([*runs]))
    assert section is not None
    rows = re.findall(r"<tr>(.*?)</tr>", section.body, re.S)
    return {name for name in NAMES for row in rows if f">{name}" in row and "★" in row}


@pytest.mark.parametrize(
    ("other", "unranked"),
    [
        ({}, set()), ({"number_of_neighbours": "3"}, {"knn accuracy"}), ({"cut-offs": "1"}, set()),
        ({"rows_to_learn_from": "4"}, {"knn accuracy", "probe accuracy"}),
        ({"sentences_about_classes": "other"}, {"zero-shot top-1"}), ({"rows_measured": "y"}, set(NAMES)),
        ({"metric": "dot"}, set(NAMES) - {"probe accuracy", "zero-shot top-1"}),
        ({"chances": CHANCES | {"clustering nmi": 0.033}}, set()),
        ({"chances": CHANCES | {"knn accuracy": 0.5}}, {"knn accuracy"}),
    ],
)  # fmt: skip
def test_each_figure_by_what_it_depends_on(other, unranked):
    runs = told("a", 0.7, sentences_about_classes="one"), told("b", 0.8, **{"sentences_about_classes": "one"} | other)
    assert starred(*runs) == set(NAMES) - unranked
    first = sentences(shown([*runs]))[0]
    assert ("not ranked" in first) == ("knn accuracy" in unranked)


def test_findings_and_tables_name_the_same_best():
    runs = told("a", 0.7), told("b", 0.95, number_of_neighbours="3"), told("c", 0.8)
    assert sentences(shown([*runs]))[0].startswith("By knn accuracy, c is the best of 2 runs: 80.0% against 70.0% of a")
    section = measures(shown([*runs]))
    assert section is not None
    knn = next(row for row in re.findall(r"<tr>(.*?)</tr>", section.body, re.S) if ">knn accuracy" in row)
    assert "★ 80.0%" in knn
    assert "★ 95.0%" not in knn
    assert "No ★: in some rows, not ranked, since the runs differ in number of neighbours." in section.body


@pytest.mark.parametrize("tasks", [("knn",), ("retrieval",), ("clustering",), ("knn", "retrieval")])
def test_names_are_whole_whatever_was_measured(tasks):
    z = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    found = page_evaluation(evaluate(z, torch.arange(24) % 3, tasks=tasks), "")
    assert {metric["name"].partition(" ")[0] for metric in found["metrics"]} == {*tasks}
    assert all(metric["name"].partition(" ")[2] for metric in found["metrics"])


def test_knn_says_who_votes_on_the_console_and_on_the_page(tmp_path, capsys):
    assert main(["train", "--data", "digits", "--steps", "2", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "looks at 599 rows: knn and recall@1 among the others looked at" in said.err
    assert "knn and recall@1 are among the others looked at" in said.out
    assert main(["evaluate", str(tmp_path / "run"), "--tasks", "knn"]) == 0
    assert "note: knn: by the vote of 1,198 rows that were trained on" in capsys.readouterr().out
    text = Page(render_runs([run_facts(tmp_path / "run", rows=0)])).text
    assert "run: knn accuracy is" in text
    assert "on 599 held-out rows, by the vote of 1,198 rows that were trained on; chance is" in text
    assert "run: knn among the others looked at went from" in text
    (tmp_path / "run/evaluation.json").unlink()
    assert (
        "by the vote of the other 99 rows that are measured"
        in Page(render_runs([run_facts(tmp_path / "run", rows=100)])).text
    )


def test_looks_among_training_rows_say_so(tmp_path):
    """Held-out rows that are alone of their class."""
    from photos import photos

    run = nf.train(data=str(photos(tmp_path / "d", "abcdef", 3)), steps=2, out=str(tmp_path / "run"), show=False)
    assert run.environment["looked"] == "among rows that are trained on"
    assert "knn among rows that are trained on" in Page(render_runs([run_facts(run.path, rows=0)])).text
