"""Figures are counted against what could be: clusters of single rows are none, neighbours are right where partners are."""

from __future__ import annotations

import pytest
import torch

import nearfar as nf
from nearfar.data.corpus import Column, Corpus, TensorPart
from nearfar.evaluation.clustering import cluster_agreement, clustering, kmeans
from nearfar.index.held_out import HeldOut
from nearfar.index.measured import gallery
from nearfar.report.run_page import render_runs
from pages import Page

Z = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))


class TestClusters:
    def test_of_single_rows_are_left_out_with_a_note(self):
        found = nf.evaluate(Z, torch.arange(60), tasks=("knn", "clustering"))
        assert {measure.task for measure in found.measures} == {"knn"}
        [note] = [note for note in found.notes if note.startswith("clustering")]
        assert "60 rows in 60 classes are left out: with fewer than two rows a cluster" in note
        nearly = torch.cat([torch.arange(40), torch.arange(20)])  # 1.5 rows a class
        assert "nmi" not in nf.evaluate(Z, nearly)
        with pytest.raises(ValueError, match=r"nothing could be measured: clustering: 60 rows in 60 classes"):
            nf.evaluate(Z, torch.arange(60), tasks=("clustering",))
        with pytest.raises(ValueError, match="each row is a cluster of its own"):
            clustering(Z, torch.arange(60))

    def test_of_two_rows_have_a_high_chance_beside_them(self):
        """Noise: the figure is about what shuffled classes reach, and far from 0."""
        y = torch.arange(60) // 2
        found = nf.evaluate(Z, y, tasks=("clustering",))
        for name in ("nmi", "purity", "accuracy"):
            measure = found.get(name)
            assert measure.chance is not None
            assert measure.value == pytest.approx(measure.chance, abs=0.1)
        assert found["nmi"] > 0.7
        assert found.get("ari").chance == 0.0
        assert found["nmi"] == cluster_agreement(y, kmeans(Z, 30))["nmi"]


def held_out(labels: torch.Tensor | None = None, sides: int = 1, ids: torch.Tensor | None = None) -> HeldOut:
    columns = [Column("a", "vector"), Column("b", "vector", "positive")][:sides]
    n = 24 if labels is None else len(labels)
    z = [torch.nn.functional.normalize(Z[:n] + side, dim=1) for side in range(sides)]
    part = TensorPart({column.name: Z[:n] for column in columns}, labels)
    corpus = Corpus("made", tuple(columns), part, part)
    return HeldOut(corpus, part, True, torch.arange(n), columns, z, z, labels, None, ids=ids)  # type: ignore[arg-type]


def told(held: HeldOut) -> tuple[list, str]:
    queries = gallery(held)
    return queries, Page(render_runs([{"name": "mine", "config": {}, "gallery": queries}])).text


class TestNeighbours:
    def test_no_more_are_right_than_share_the_class(self):
        """24 rows of 8 classes: of six neighbours each, two at most can be right, 48 of 144 in all."""
        queries, text = told(held_out(torch.arange(24) // 3))
        right = sum(near["right"] for query in queries for near in query["neighbours"])
        assert [query["possible"] for query in queries] == [2] * 24
        assert sum(len(query["neighbours"]) for query in queries) == 144
        assert 0 < right < 48
        assert f"{right} of the 48 neighbours that can be right are" in text

    def test_rows_alone_and_rows_without_a_class(self):
        labels = torch.tensor([0, 0, 0, 1, -1, 2, 2, -1])
        queries, text = told(held_out(labels))
        assert [query.get("possible") for query in queries] == [2, 2, 2, 0, None, 1, 1, None]
        assert "of the 8 neighbours that can be right are" in text

    def test_of_pairs(self):
        queries, text = told(held_out(sides=2))
        assert [query["possible"] for query in queries] == [1] * 24
        assert "of the 24 neighbours that can be right are" in text
        ids = torch.stack([torch.arange(24), torch.arange(24) // 2], 1)  # each twice
        assert [query["possible"] for query in gallery(held_out(sides=2, ids=ids))] == [2] * 24

    def test_large_classes_as_before(self):
        queries, text = told(held_out(torch.arange(24) // 12))
        right = sum(near["right"] for query in queries for near in query["neighbours"])
        assert f"{right} of 144 neighbours are right" in text

    def test_only_a_wrong_one_in_place_of_a_right_one_counts_as_wrong(self):
        def query(*right: bool, possible: int) -> dict:
            near = [{"item": {"name": "n"}, "score": 0.5, "right": one} for one in right]
            return {"item": {"name": "q"}, "neighbours": near, "possible": possible}

        found = [query(True, False, possible=1), query(False, True, possible=1), query(False, False, possible=0)]
        html = render_runs([{"name": "mine", "config": {}, "gallery": found}])
        assert html.count("<li data-wrong>") == 1
        assert [html.count(f'<li class="item {kind}">') for kind in ("right", "wrong", "open")] == [2, 1, 3]
        assert html.count("none left") == 3
        assert "only those with a wrong neighbour where a right one could be" in html
        assert "2 of the 2 neighbours that can be right are" in html
