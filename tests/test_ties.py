"""Keys of one score have no order: figures are means over all orders, counted here one by one. And rows without a label."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nearfar as nf
from nearfar.evaluation.pair_scores import pair_scores
from nearfar.evaluation.retrieval import pair_retrieval, relevance_retrieval, retrieval
from nearfar.evaluation.verification import roc
from nearfar.evaluation.zeroshot import zero_shot

KEYS = {0.0: (0.0, 1.0), 0.6: (0.6, 0.8), 0.8: (0.8, 0.6), 1.0: (2.0, 0.0)}
"""A key of each cosine with the query (1, 0)."""


def measures(grades: list[float], best: list[float], ks: tuple[int, ...], depth: int) -> dict[str, float]:
    """Of one order, by the definitions."""
    grades, r = grades[:depth], sum(grade > 0 for grade in best)
    right = [grade > 0 for grade in grades]
    precision = [sum(right[: i + 1]) / (i + 1) if hit else 0.0 for i, hit in enumerate(right)]
    found = {"precision@r": sum(right[:r]) / r, "map@r": sum(precision[:r]) / r, "map": sum(precision) / r}
    found["mrr"] = 1 / (right.index(True) + 1) if any(right) else 0.0
    for k in ks:
        found[f"recall@{k}"], found[f"found@{k}"] = float(any(right[:k])), sum(right[:k]) / r
        gain, ideal = (sum(g / math.log2(i + 2) for i, g in enumerate(part[:k])) for part in (grades, best))
        found[f"ndcg@{k}"] = gain / ideal
    return found


def over_all_orders(scores: list[float], grades: list[float], ks: tuple[int, ...], depth: int) -> dict[str, float]:
    """The mean of each measure over every order in which no key stands before a nearer one."""
    orders = itertools.permutations(range(len(scores)))
    allowed = (order for order in orders if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)))
    best = sorted(grades, reverse=True)
    seen = [measures([grades[i] for i in order], best, ks, depth) for order in allowed]
    return {name: sum(one[name] for one in seen) / len(seen) for name in seen[0]}


@given(
    st.lists(st.tuples(st.sampled_from(sorted(KEYS)), st.sampled_from([0.0, 0.0, 1.0, 2.0])), min_size=1, max_size=6),
    st.booleans(),
)
def test_every_measure_is_its_mean_over_all_orders(keys, complete):
    scores, grades = map(list, zip(*keys))
    if not any(grades):
        grades[-1] = 1.0
    ks = (1, 2)
    rows = torch.tensor([KEYS[score] for score in scores])
    lists = [{i: grade for i, grade in enumerate(grades) if grade}]
    found = relevance_retrieval(torch.tensor([[3.0, 0.0]]), rows, lists, ks=ks, complete=complete)
    wanted = over_all_orders(scores, grades, ks, found.depth)
    for name, value in found.scores.items():
        assert value == pytest.approx(wanted[name], abs=1e-12), name


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("row", [[1.0, 1.0], [0.0, 0.0], [0.3, -7e-30], [1e20, 2e20]])
def test_a_constant_embedding_scores_chance_however_its_rows_stand(metric, row):
    """Of 5 keys, 2 right and first: by hand."""
    constant = torch.tensor(row).expand(5, 2)
    found = retrieval(
        constant[:1], torch.tensor([7]), constant, torch.tensor([7, 7, 0, 0, 0]), ks=(1, 2), metric=metric
    )
    assert found["recall@1"] == pytest.approx(2 / 5)
    assert found["recall@2"] == pytest.approx(1 - 3 / 5 * 2 / 4)
    assert found["mrr"] == pytest.approx(2 / 5 + 3 / 5 * (2 / 4 / 2 + 2 / 4 * (2 / 3 / 3 + 1 / 3 / 4)))
    assert found["ndcg@2"] == pytest.approx(2 / 5)
    assert found["precision@r"] == pytest.approx(found.chance["precision@r"])
    assert found.tied == 1
    assert "for 1 of 1 queries, relevant keys and others have the same score" in found.notes[0]


@pytest.mark.parametrize("complete", [True, False])
def test_the_order_of_rows_changes_nothing(complete):
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(-1, 2, (80, 3), generator=generator).float()
    y = torch.arange(80) % 4
    order = torch.randperm(80, generator=generator)
    one, other = (retrieval(z[i], y[i], ks=(1, 3), complete=complete) for i in (torch.arange(80), order))
    assert one.tied == other.tied > 40
    for name, value in one.scores.items():
        assert other[name] == pytest.approx(value, abs=1e-12), name
    assert max(one.scores[f"recall@{k}"] for k in (1, 3)) <= 1


def test_ties_beyond_the_last_place_that_is_looked_at():
    """1,500 keys as near as the fourth: 30 of them are right, and three of four places are among all those."""
    keys = torch.cat([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]]).expand(1500, 2)])
    labels = torch.cat([torch.tensor([5]), (torch.arange(1500) < 30).long()])
    found = retrieval(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), keys, labels, ks=(1, 4), complete=False)
    assert found.depth == 30
    assert found["recall@1"] == 0
    assert found["found@4"] == pytest.approx(3 * 30 / 1500 / 30)
    assert found["recall@4"] == pytest.approx(1 - (1470 / 1500) * (1469 / 1499) * (1468 / 1498))
    assert found["precision@r"] == pytest.approx(29 / 1500)


def test_pairs_both_ways_and_what_is_evaluated():
    ones = torch.ones(8, 3)
    for found in pair_retrieval(ones, ones, ks=(1, 4)):
        assert (found["recall@1"], found["recall@4"]) == (pytest.approx(1 / 8), pytest.approx(4 / 8))
        assert found["mrr"] == pytest.approx(sum(1 / k for k in range(1, 9)) / 8)
    figures = nf.evaluate(ones, torch.arange(8) // 4, pairs=ones, ks=(1,))
    assert figures["retrieval/recall@1"] == pytest.approx(3 / 7)
    assert figures["first→second/recall@1"] == pytest.approx(1 / 8)
    assert figures.get("retrieval/recall@1").low < 3 / 7 < figures.get("retrieval/recall@1").high
    for task in ("retrieval", "first→second"):
        assert any(note.startswith(f"{task}: for 8 of 8 queries, relevant keys") for note in figures.notes)
    assert any("more keys are as near as the last that votes" in note for note in nf.evaluate(
        ones, torch.arange(8) // 4, k=3).notes)  # fmt: skip


def test_cosines_that_are_all_the_same():
    """A correlation with nothing is 0, and no error that would cost the other figures."""
    ones, scores = torch.randn(5).expand(9, 5), torch.arange(9.0) / 9
    found = nf.evaluate(ones, pairs=3 * ones, scores=scores)
    assert (found["spearman"], found["pearson"]) == (0.0, 0.0)
    assert "similarity: all cosines are the same, which says nothing of the scores" in found.notes
    binary = nf.evaluate(ones, pairs=ones, scores=(scores > 0.5).float())
    assert (binary["auc"], binary["average precision"]) == (0.5, pytest.approx(4 / 9))


def test_prototypes_that_are_the_same():
    found = zero_shot(
        torch.ones(6, 2), torch.arange(6) % 3, torch.tensor([[1.0, 1.0], [2.0, 2.0], [1.0, 0.0]]), ks=(1, 2)
    )
    assert found.accuracy == {1: pytest.approx(1 / 3), 2: pytest.approx(2 / 3)}
    assert found.per_class.tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert found.predicted.tolist() == [0] * 6
    assert found.notes


def test_nothing_is_said_of_ties_that_decide_nothing():
    z = torch.eye(4).repeat_interleave(3, 0)  # copies, but of one class each
    found = retrieval(z, torch.arange(12) // 3, ks=(1,))
    assert (found["recall@1"], found["map@r"], found.tied, found.notes) == (1.0, 1.0, 0, ())


class TestDigits:
    """Rows that are nearly one."""

    rows = torch.randn(60, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(60) % 3

    @pytest.mark.parametrize(("apart", "dtype", "lost"), [
        (1e-4, torch.float32, True), (1e-4, torch.float64, False), (0.3, torch.float32, False), (1e-2, torch.float16, True),
    ])  # fmt: skip
    def test_a_note_says_so(self, apart, dtype, lost):
        z = (1 + apart * self.rows).to(dtype)
        for found in (retrieval(z, self.y), nf.evaluate(z, self.y), retrieval(z, self.y, metric="euclidean")):
            assert sum("of such differences" in note for note in found.notes) == lost

    def test_constant_rows_and_rows_of_many_lengths_have_none(self):
        assert len(retrieval(torch.ones(6, 3), torch.arange(6) % 2).notes) == 1
        assert len(retrieval(torch.arange(1.0, 7.0)[:, None], torch.arange(6) % 2, metric="euclidean").notes) <= 1

    def test_pairs_are_scored_by_the_digits_that_there_are(self):
        z = (1 + 1e-4 * (self.y[:, None] + 0.1 * self.rows)).float()
        z[:, 0] = 2.0
        above = torch.ones(60, 60).triu(1).bool()
        same = (self.y[:, None] == self.y)[above]
        unit = torch.nn.functional.normalize(z.double(), dim=1)
        cosines = (unit @ unit.T)[above]
        for limit in (10_000, 1000):  # all pairs, and pairs that are drawn
            found = pair_scores(z, self.y, limit=limit)
            near = (found.genuine[:, None] - cosines[same]).abs().amin(1)
            assert float(near.max()) < 2e-11
        assert roc(found.genuine, found.impostor).auc > 0.9  # in float32 nearly all of them would be 1


class TestUnlabelled:
    z = torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    y = torch.tensor([0, -1, 0, 1, 1])
    """The nearest of row 0 has no label."""

    def test_one_rule_for_both(self):
        known = self.y >= 0
        without = retrieval(self.z[known], self.y[known], ks=(1,))
        found, evaluated = (
            retrieval(self.z, self.y, ks=(1,)),
            nf.evaluate(self.z, self.y, ks=(1,), tasks=("retrieval",)),
        )
        assert found.scores == without.scores
        assert evaluated["recall@1"] == found["recall@1"] == 0.5
        assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1) / 4)
        assert (found.keys, found.queries, found.left_out) == (3, 4, 1)
        assert "1 rows without a label were left out" in found.notes
        assert "1 rows without a label were left out" in evaluated.notes

    def test_distractors_where_they_are_asked_for(self):
        found = retrieval(self.z, self.y, ks=(1,), unknown="negative")
        assert (found["recall@1"], found.keys) == (0.25, 4)
        assert found["mrr"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4 + 1) / 4)
        evaluated = nf.evaluate(self.z, self.y, ks=(1,), unknown="negative", tasks=("retrieval",))
        assert evaluated["mrr"] == found["mrr"]
        assert "retrieval: 1 keys without a label are relevant to nobody" in evaluated.notes

    def test_in_a_gallery_and_among_some_queries(self):
        gallery, labels = self.z, torch.tensor([-1, 0, -1, 1, 1])
        assert retrieval(self.z[:1], self.y[:1], gallery, labels, ks=(1,))["recall@1"] == 1.0
        assert retrieval(self.z[:1], self.y[:1], gallery, labels, ks=(1,), unknown="negative")["recall@1"] == 0.0
        some = retrieval(self.z, self.y, ks=(1,), rows=torch.tensor([0, 1, 4]))
        every = retrieval(self.z, self.y, ks=(1,))
        assert (some.queries, some.left_out) == (2, 1)
        assert some.per_query["mrr"].tolist() == every.per_query["mrr"][[0, 3]].tolist()

    def test_a_pair_without_an_id_has_its_own_partner(self):
        z = torch.eye(3)
        for ids in (torch.tensor([-1, -1, 4]), torch.tensor([[-1, -1], [-1, -1], [4, -1]])):
            assert pair_retrieval(z, z, ids, ks=(1,))[0]["recall@1"] == 1.0
            assert pair_retrieval(z, z, ids, ks=(1,))[0].queries == 3

    def test_an_unknown_rule(self, unchecked):
        with pytest.raises(ValueError, match="unknown='drop' is not known"):
            retrieval(self.z, self.y, unknown="drop")
