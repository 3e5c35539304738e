"""Retrieval: by hand, by scikit-learn, by torchmetrics, by lists."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchmetrics.functional.retrieval as theirs
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from nearfar.evaluation.retrieval import pair_retrieval, relevance_retrieval, retrieval


def clusters(n: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=generator)
    centres = torch.randn(classes, 6, generator=generator)
    return centres[y] + 1.5 * torch.randn(n, 6, generator=generator), y


def test_a_case_by_hand():
    """One query; the gallery in order of cosine: no, yes, yes, no, yes."""
    gallery = torch.tensor([[1.0, 0.05], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4]])
    labels = torch.tensor([1, 0, 0, 1, 0])
    found = retrieval(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), gallery, labels, ks=(1, 2, 5))
    assert found["recall@1"] == 0
    assert found["recall@2"] == 1
    assert found["found@2"] == pytest.approx(1 / 3)
    assert found["precision@r"] == pytest.approx(2 / 3)  # R = 3: of the first three, two
    assert found["map@r"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert found["map"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)
    assert found["mrr"] == 0.5
    gain = 1 / math.log2(3) + 1 / math.log2(4)
    assert found["ndcg@5"] == pytest.approx((gain + 1 / math.log2(6)) / (1 + gain))
    assert found["ndcg@2"] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))


def test_map_and_mrr_are_torchmetrics_and_scikit_learns():
    z, y = clusters(120, 5)
    found = retrieval(z, y, ks=(1, 3, 10))
    unit = torch.nn.functional.normalize(z.double(), dim=1)
    similar = unit @ unit.T + 2  # torchmetrics wants scores above 0
    for i in range(0, 120, 7):
        others = torch.arange(120) != i
        scores, same = similar[i][others], (y == y[i])[others]
        assert found.per_query["map"][i] == pytest.approx(float(theirs.retrieval_average_precision(scores, same)))
        assert found.per_query["map"][i] == pytest.approx(average_precision_score(same, scores))
        assert found.per_query["mrr"][i] == pytest.approx(float(theirs.retrieval_reciprocal_rank(scores, same)))
        assert found.per_query["precision@r"][i] == pytest.approx(float(theirs.retrieval_r_precision(scores, same)))
        for k in (1, 3, 10):
            assert found.per_query[f"recall@{k}"][i] == float(theirs.retrieval_hit_rate(scores, same, top_k=k))
            assert found.per_query[f"found@{k}"][i] == pytest.approx(
                float(theirs.retrieval_recall(scores, same, top_k=k))
            )
            wanted = ndcg_score(same[None].double().numpy(), scores[None].numpy(), k=k)
            assert found.per_query[f"ndcg@{k}"][i] == pytest.approx(wanted)


def test_map_at_r_is_the_papers_loop():
    z, y = clusters(90, 7, seed=3)
    found = retrieval(z, y)
    unit = torch.nn.functional.normalize(z.double(), dim=1)
    similar = (unit @ unit.T).fill_diagonal_(-2)
    total = 0.0
    for i in range(90):
        order = similar[i].argsort(descending=True)
        r = int((y == y[i]).sum()) - 1
        hits, value = 0, 0.0
        for place, j in enumerate(order[:r].tolist(), 1):
            if y[j] == y[i]:
                hits += 1
                value += hits / place
        total += value / r
    assert found["map@r"] == pytest.approx(total / 90)


def test_graded_lists_are_scikit_learns_ndcg():
    generator = torch.Generator().manual_seed(1)
    queries, keys = torch.randn(20, 5, generator=generator), torch.randn(30, 5, generator=generator)
    grades = torch.randint(0, 4, (20, 30), generator=generator) * (torch.rand(20, 30, generator=generator) < 0.3)
    lists = [{int(j): float(row[j]) for j in row.nonzero()[:, 0]} for row in grades]
    found = relevance_retrieval(queries, keys, lists, ks=(3, 10))
    scores = torch.nn.functional.cosine_similarity(queries[:, None], keys[None], dim=2)
    with_any = (grades > 0).any(1)
    for k in (3, 10):
        wanted = [ndcg_score(g[None].numpy(), s[None].numpy(), k=k) for g, s in zip(grades[with_any], scores[with_any])]
        np.testing.assert_allclose(found.per_query[f"ndcg@{k}"], wanted, rtol=1e-6)
    assert found.left_out == int((~with_any).sum())


def test_lists_of_classes_are_labels():
    z, y = clusters(50, 4)
    g, w = clusters(40, 4, seed=1)
    lists = [(w == c).nonzero()[:, 0].tolist() for c in y]
    assert relevance_retrieval(z, g, lists).scores == retrieval(z, y, g, w).scores


def test_pairs_both_ways():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40, 8, generator=generator)
    b = a + torch.randn(40, 8, generator=generator)
    there, back = pair_retrieval(a, b, ks=(1, 5))
    similar = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    for found, scores in ((there, similar), (back, similar.T)):
        rank = (scores > scores.diagonal()[:, None]).sum(1) + 1
        assert found["recall@1"] == pytest.approx(float((rank == 1).double().mean()))
        assert found["recall@5"] == pytest.approx(float((rank <= 5).double().mean()))
        assert found["mrr"] == pytest.approx(float((1 / rank.double()).mean()))
    assert there.chance["recall@5"] == pytest.approx(5 / 40)


def test_several_captions_of_one_image():
    images = torch.eye(3).repeat_interleave(2, 0)
    captions = torch.eye(3).repeat_interleave(2, 0)
    assert pair_retrieval(images, captions, ks=(1,))[0]["recall@1"] == 0.5  # the twin comes first half of the time
    assert pair_retrieval(images, captions, torch.arange(3).repeat_interleave(2), ks=(1,))[0]["recall@1"] == 1.0


def test_collapsed_embeddings_reach_no_more_than_chance():
    found = pair_retrieval(torch.ones(50, 4), torch.ones(50, 4), ks=(1, 10))[0]
    assert found["recall@1"] == pytest.approx(1 / 50)
    assert found["recall@10"] == pytest.approx(10 / 50)


def test_classes_of_one_row_and_unknown_labels_are_left_out():
    z, y = clusters(40, 3)
    y[0], y[1] = 77, -1
    found = retrieval(z, y)
    assert (found.queries, found.left_out) == (38, 2)
    keep = torch.arange(40) > 1
    rest = retrieval(z[keep], y[keep], z, y, ks=(1,))
    assert rest.left_out == 0


def test_duplicates_are_told_apart_from_the_query_itself():
    z = torch.ones(4, 2)
    found = retrieval(z, torch.tensor([0, 1, 0, 1]), ks=(1,))
    assert found["recall@1"] == pytest.approx(1 / 3)  # one of three others is right, and any may come first


def test_ids_beyond_float32():
    z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    y = torch.tensor([2**24, 2**24 + 1, 2**24 + 1, 2**24])
    assert retrieval(z, y, ks=(1,))["recall@1"] == 0.0
    assert retrieval(z, torch.tensor([-1, -1, 2**60, 2**60]), ks=(1,))["recall@1"] == 1.0


def test_a_part_of_the_rows_may_query():
    z, y = clusters(60, 3)
    rows = torch.tensor([3, 17, 40])
    some, every = retrieval(z, y, rows=rows), retrieval(z, y)
    for name, values in some.per_query.items():
        assert torch.equal(values, every.per_query[name][rows])


@pytest.mark.parametrize("ks", [(1, 5), (100,)])
def test_shorter_rankings_say_the_same(ks):
    z, y = clusters(80, 4)
    whole, short = retrieval(z, y, ks=ks), retrieval(z, y, ks=ks, complete=False)
    assert "map" not in short.scores or short.depth == 79
    for name in ("precision@r", "map@r", f"ndcg@{ks[0]}", f"recall@{ks[0]}"):
        assert short[name] == pytest.approx(whole[name])
    assert short.depth == min(79, max(*ks, int(torch.bincount(y).max()) - 1))


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 5))
def test_chance_is_that_of_random_orders(seed, n, k):
    """Counted: the probability that none of R is among k of m, one drawn after the other."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=generator)
    if int(torch.bincount(y).max()) < 2:
        return
    found = retrieval(torch.randn(n, 3, generator=generator), y, ks=(k,))
    wanted = []
    for label in y.tolist():
        relevant, m = int((y == label).sum()) - 1, n - 1
        if relevant:
            none = math.prod(max(m - relevant - i, 0) / (m - i) for i in range(min(k, m)))
            wanted.append(1 - none)
    assert found.chance[f"recall@{k}"] == pytest.approx(float(np.mean(wanted)))
    assert all(0 <= value <= 1 for value in found.scores.values())


class TestWrongInput:
    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (lambda z: retrieval(z, torch.arange(4)), "none of 4 queries has a relevant key"),
            (lambda z: retrieval(z, torch.zeros(4)), "integer class ids"),
            (lambda z: retrieval(z, torch.zeros(3).long()), "one id a row"),
            (lambda z: retrieval(z, torch.zeros(4).long(), ks=(0,)), "whole numbers of 1 or more"),
            (lambda z: retrieval(z, torch.zeros(4).long(), z), "pass both, or neither"),
            (lambda z: retrieval(z * torch.nan, torch.zeros(4).long()), "NaN or infinity"),
            (lambda z: pair_retrieval(z, z[:3]), "row i belongs to row i"),
            (lambda z: relevance_retrieval(z, z, [[0]]), "1 lists of relevant keys for 4 queries"),
            (lambda z: relevance_retrieval(z, z, [[0], [1], [2], [4]]), "query 3: key 4"),
            (lambda z: relevance_retrieval(z, z, [{0: -1.0}, [1], [2], [3]]), "grade -1"),
            (lambda z: relevance_retrieval(z, z, [[], [], [], []]), "none of 4 queries"),
        ],
    )
    def test_says_what_is_wrong(self, call, says, unchecked):
        with pytest.raises(ValueError, match=says):
            call(torch.eye(4))
