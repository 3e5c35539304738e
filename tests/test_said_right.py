"""Small things that a run, a figure or a page says: each is what the numbers are."""

from __future__ import annotations

import warnings

import pytest
import torch

import nearfar as nf
from nearfar.cli import main
from nearfar.data.corpus import Column, Corpus, TensorPart
from nearfar.index.facts import run_facts
from nearfar.index.measured import singular_values
from nearfar.report.run_page import render_runs
from nearfar.report.sections.curves import curves
from nearfar.report.sections.shown import shown
from nearfar.training.watched import watched_rows
from pages import Page
from train_cases import images

Z = torch.randn(18, 24, generator=torch.Generator().manual_seed(0))
TEXT = (Column("text", "text"),)
PAIR = (Column("a", "text"), Column("b", "text", "positive"))


def test_one_row_that_is_held_out_is_not_none():
    corpus = Corpus("t", TEXT, TensorPart({"text": ["a", "b"]}), TensorPart({"text": ["c"]}))
    watched = watched_rows(corpus, TEXT, 100, 0)
    assert watched is not None
    assert watched.notes[0].startswith(
        "one row is held out, which is too few to look at: looks are at rows that are trained on"
    )
    none = watched_rows(Corpus("t", TEXT, corpus.train, None), TEXT, 100, 0)
    assert none is not None
    assert none.notes[0] == "no rows are held out: looks are at rows that are trained on"


class TestSidesThatAreTheSame:
    def test_in_looks(self):
        texts = [f"text {i}" for i in range(12)]
        part = TensorPart({"a": texts, "b": [text.upper() for text in texts]})
        watched = watched_rows(Corpus("t", PAIR, part, part), PAIR, 100, 0)
        assert watched is not None
        assert watched.metrics == ()
        assert "both sides of every pair that is looked at are the same" in watched.warnings[0]

    @pytest.mark.parametrize(
        ("changed", "said"), [(0, "all rows are"), (3, "15 of 18 rows are"), (17, "1 row is"), (18, "")]
    )
    def test_in_figures(self, changed, said):
        other = Z.clone()
        other[:changed] += 0.5
        notes = nf.evaluate(Z, pairs=other).notes
        told = f"retrieval: {said} the same as their partner, which any embedding finds"
        assert (told in notes) == bool(said)
        assert any("partner" in note for note in notes) == bool(said)


def test_a_loss_at_guessing_is_no_warning_where_the_metric_rises(tmp_path, monkeypatch):
    """Whatever the loss is, it is taken for that of guessing."""
    monkeypatch.setattr("nearfar.methods.labels.SupCon.chance", lambda self, rows: 1e9)
    monkeypatch.setattr("nearfar.training.looks.abs", lambda value: 0.0, raising=False)

    def warned(run) -> bool:
        return any("nothing has been learned" in event["message"] for event in run.events("warning"))

    options = {
        "method": "supcon",
        "model": "small-cnn",
        "batch_size": 32,
        "eval_every": 20,
        "show": False,
        "views": "none",
    }
    level = nf.train(corpus=images(), steps=1, lr=1e-12, out=str(tmp_path / "level"), **options)
    assert warned(level)
    torch.manual_seed(0)
    noise = images()
    for part in (noise.train, noise.test):
        part.data["image"][:, :, :, :4] //= 8  # hard to tell apart at the start
    rising = nf.train(corpus=noise, steps=20, lr=3e-3, out=str(tmp_path / "rising"), **options)
    before, after = (rising.end[name]["knn"] for name in ("before", "after"))
    assert after > before + 0.01
    assert not warned(rising)


def test_a_run_that_was_killed_at_once_says_whose_weights_it_has(tmp_path, capsys):
    run = nf.train(data="digits", steps=2, eval_every=1, out=str(tmp_path / "run"), show=False)
    assert main(["evaluate", str(run.path), "--tasks", "knn"]) == 0
    assert "has not come to its end" not in capsys.readouterr().err
    file = run.path / "events.jsonl"
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if '"end"' not in line))
    assert main(["evaluate", str(run.path), "--tasks", "knn"]) == 0
    assert "run has not come to its end: its weights are of step" in capsys.readouterr().err
    for path in [*(run.path / "checkpoints").iterdir()]:
        path.rename(tmp_path / path.name)
    assert main(["evaluate", str(run.path), "--tasks", "knn"]) == 0
    assert "its weights are those before training (go on with nearfar train --resume" in capsys.readouterr().err
    told = run_facts(run.path, rows=50)["events"]["warnings"]
    assert any("those before training" in one["message"] for one in told)


def test_a_model_folder_is_not_written_into(tmp_path, capsys):
    run = nf.train(data="digits", steps=1, out=str(tmp_path / "run"), show=False)
    before = {path.name for path in (run.path / "model").iterdir()}
    assert main(["evaluate", str(run.path / "model"), "--data", "digits", "--tasks", "knn"]) == 0
    assert {path.name for path in (run.path / "model").iterdir()} == before
    assert "evaluation" not in capsys.readouterr().out


class TestPage:
    def test_no_neighbour_can_be_right(self):
        near = [{"item": {"name": "n"}, "score": 0.5, "right": False}]
        queries = [{"item": {"name": "q"}, "neighbours": near, "possible": 0}]
        text = Page(render_runs([{"name": "a", "config": {}, "gallery": queries}])).text
        assert "none of them can be right: no other row here belongs to any query" in text
        assert "0 of the 0" not in text

    def test_bins_end_at_nought(self):
        edges = torch.linspace(-1, 1, 81, dtype=torch.float64).tolist()
        counts = [1.0] * 80
        facts = {"name": "a", "config": {}, "histogram": {"edges": edges, "positives": counts, "negatives": counts}}
        text = Page(render_runs([facts])).text
        assert "−0.1 to 0" in text
        assert "e-1" not in text.split("belong together")[-1]

    @pytest.mark.parametrize("value", [1.0, 0.0, 0.5])
    def test_a_level_share_stays_within_what_it_can_be(self, value):
        looks = [{"step": step, "metrics": {"knn": value}} for step in (0, 1, 2)]
        section = curves(shown([{"name": "a", "config": {}, "events": {"looks": looks}}]))
        assert section is not None
        (figure,) = (found[""] for found in section.figures.values())
        low, high = figure["layout"]["yaxis"]["range"]
        assert 0 <= low <= value <= high <= 1.005

    def test_centred_rows_span_a_direction_less(self):
        assert len(singular_values(Z)["values"]) == 17
        assert len(singular_values(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)))["values"]) == 6

    def test_other_data_of_the_name_of_its_own_are_told_by_their_place(self):
        figures = [{"name": "knn accuracy", "value": 0.5}]
        own, other = {"metrics": figures, "data": "d"}, {"metrics": figures, "data": "d", "source": "/x/d.csv"}
        text = Page(render_runs([{"name": "a", "config": {}, "evaluation": own, "others": [other]}])).text
        assert "On d (/x/d.csv)" in text


def test_clusters_of_rows_that_are_the_same_warn_in_a_note_of_ours():
    z = torch.eye(3).repeat(8, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = nf.evaluate(z, torch.arange(24) % 6, tasks=("clustering",))
    assert "clustering: k-means finds 3 of 6 clusters: no more rows differ" in found.notes


def test_one_row_is_one_row():
    found = nf.evaluate(torch.ones(1, 3), torch.tensor([0]), gallery=(torch.eye(3), torch.tensor([0, 1, 1])))
    assert str(found).startswith("1 row of 3 features")
    assert "1 row is few" in " ".join(found.notes)
