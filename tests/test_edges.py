"""The lists of a small batch say what the relation's masks say."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

import nearfar as nf
from nearfar.pairs import Pairs
from nearfar.scores import Scores, count_over, few, held, logsumexp_over, mean_over, sum_over
from nearfar.scores.edges import Edges
from problems import draw

IDS = torch.tensor([3, 0, 3, 1, 0, 3, 2])
MANY = torch.arange(150) % 40
SOFT = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).where(torch.eye(4).repeat(2, 1)[:6] == 0, 0)

RELATIONS = {
    "ids": Pairs.from_ids(IDS, IDS.flip(0)),
    "ids without oneself": Pairs.by_label(IDS).excluding_self(),
    "many ids": Pairs.from_ids(MANY, MANY[:140]),
    "many ids without oneself": Pairs.by_label(MANY).excluding_self(),
    "own samples further on": Pairs((140, 150), Pairs.from_ids(MANY[5:145], MANY).parts, own=5),
    "own samples before": Pairs((150, 140), Pairs.from_ids(MANY, MANY[5:145]).parts, own=-5),
    "several ids": Pairs.sparing(torch.stack([MANY, MANY // 3 - 1], 1), torch.stack([MANY + 20, MANY // 3], 1)[:140]),
    "ids of no key": Pairs.from_ids(MANY, MANY + 20),
    "classes": Pairs.from_ids(MANY, torch.arange(40)),
    "more classes than rows": Pairs.from_ids(IDS, torch.arange(9)),
    "a class that is not there": Pairs.from_ids(MANY, torch.arange(39)),
    "classes and an unknown": Pairs.from_ids(IDS - 1, torch.arange(4)),
    "unknown": Pairs.by_label(IDS - 1).excluding_self(),
    "views": Pairs.views(4).excluding_self(),
    "three views": Pairs.views(3, 3).excluding_self(),
    "aligned": Pairs.aligned(5),
    "aligned without oneself": Pairs.aligned(5).excluding_self(),
    "two classes": Pairs.by_label(torch.arange(140) % 2).excluding_self(),
    "rows left out": Pairs.from_ids(IDS, IDS).excluding(IDS, torch.arange(7)),
    "soft": Pairs.by_label(SOFT).excluding_self(),
    "union": (Pairs.views(3) | Pairs.by_label(IDS[:6])).excluding_self(),
}


@pytest.mark.parametrize("name", RELATIONS)
def test_lists_are_the_masks(name):
    pairs = RELATIONS[name]
    edges, (positive, ignored, weight) = Edges.of(pairs, torch.float64), pairs.whole()
    assert positive is not None
    none = torch.zeros_like(positive)

    def mask(places):
        found = none.clone()
        found.view(-1)[places if places is not None else torch.arange(0)] = True
        return found

    ignored = none if ignored is None else ignored
    assert torch.equal(mask(edges.place), positive)
    assert len(edges.place) == int(positive.sum())
    assert torch.equal(edges.row, edges.row.sort().values)
    assert torch.equal(mask(edges.left_out("candidates")), ignored)
    assert torch.equal(mask(edges.left_out("negatives")), ignored | positive)
    assert (edges.weight is None) == (weight is None)
    if weight is not None:
        torch.testing.assert_close(edges.weight, weight[edges.row, edges.column].double())
    assert edges.single == bool((positive.sum(1) == 1).all())


@pytest.mark.parametrize("few", [0, 10**6], ids=["lists", "numbers"])
@pytest.mark.parametrize("name", RELATIONS)
def test_hardest_and_log_sum_exps_are_the_dense_ones(name, few, monkeypatch):
    monkeypatch.setattr("nearfar.counts.FEW", few)
    pairs = replace(RELATIONS[name])  # that knows nothing yet
    draw = torch.Generator().manual_seed(1)
    x, y = (torch.randint(-1, 2, (size, 3), generator=draw).double() for size in pairs.shape)  # with ties
    y = x if pairs.own == 0 else y
    plans = [Scores(x, y, pairs, backend=backend) for backend in (None, "dense")]
    assert plans[0].holds
    for over, which in product(("positives", "negatives", "candidates"), ("max", "min")):
        (value, exists, index), (other, some, place) = (scores.hardest(over, which) for scores in plans)
        assert torch.equal(exists, some)
        assert torch.equal(value, other)
        assert torch.equal(index[some], place[some])
        assert torch.equal(plans[0].extreme(over, which)[some], value[some])
        assert plans[0].extreme(over, which)[~some].isinf().all()
        own, wanted = (scores.powered(2.0).logsumexp(over) for scores in plans)
        torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)
    for ask in (Scores.logsumexp_both_ways, Scores.mean_positive_both_ways):
        torch.testing.assert_close(*(ask(scores) for scores in plans), rtol=1e-12, atol=1e-12)


OPERATIONS = {"sum_over": sum_over, "mean_over": mean_over, "logsumexp_over": logsumexp_over}


@pytest.mark.parametrize("few", [0, 10**6], ids=["lists", "numbers"])
@pytest.mark.parametrize("name", RELATIONS)
def test_stages_with_a_condition_are_the_dense_ones(name, few, monkeypatch):
    monkeypatch.setattr("nearfar.counts.FEW", few)
    pairs = replace(RELATIONS[name])
    draw = torch.Generator().manual_seed(1)
    x, y = (torch.randn(size, 3, generator=draw).double() for size in pairs.shape)
    y = x if pairs.own == 0 else y
    stage = {
        f"{what} {over} {keep is not None}": reduction(over, lambda s, t: s * s - t.rows["mean"], keep)
        for (what, reduction), over, keep in product(
            OPERATIONS.items(),
            ("positives", "negatives", "candidates"),
            (None, lambda s, t: s - t.rows["mean"]),
        )
    }
    stage |= {f"count {over}": count_over(over, lambda s, t: s) for over in ("positives", "negatives", "candidates")}
    statistics = {"mean": torch.randn(len(x), generator=draw).double()}
    own, wanted = (
        Scores(x, y, pairs, backend=backend).reduce(stage, statistics=statistics) for backend in (None, "dense")
    )
    for what in stage:
        torch.testing.assert_close(
            own[what], wanted[what], rtol=1e-12, atol=1e-12, msg=lambda m, what=what: f"{what}: {m}"
        )


def test_lists_that_are_kept_from_inference_serve_a_graph():
    """Those of views are kept from batch to batch, and the first may come from an evaluation."""
    views = [torch.randn(11, 3) for _ in range(3)]
    loss = nf.HardNegativeLoss()
    with torch.inference_mode():
        value = loss(*views)
    again = loss(views[0].requires_grad_(), *views[1:])
    again.backward()
    assert torch.equal(again.detach(), value)
    assert float(views[0].grad.abs().sum()) > 0


@pytest.mark.parametrize("few", [0, 10**6], ids=["lists", "numbers"])
@pytest.mark.parametrize("name", ["InfoNCELoss", "DebiasedLoss", "MultiSimilarityLoss", "SpectralLoss", "TripletLoss"])
def test_a_relation_that_evaluated_first_trains_later(name, few, monkeypatch):
    monkeypatch.setattr("nearfar.counts.FEW", few)
    x, y, pairs = torch.randn(11, 3), torch.randn(11, 3), Pairs.by_label(torch.arange(11) % 4)
    sides = (x, y) if name in ("InfoNCELoss", "SpectralLoss") else (x,)
    loss = nf.LOSSES[name].loss()
    with torch.inference_mode():
        value = loss(*sides, pairs=pairs)
    again = loss(x.requires_grad_(), *sides[1:], pairs=pairs)
    again.backward()
    assert torch.equal(again.detach(), value)
    assert float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize("few", [0, 10**6], ids=["lists", "numbers"])
def test_nan_is_not_passed_over(few, monkeypatch):
    """Where nobody looks at the rows first."""
    monkeypatch.setattr("nearfar.counts.FEW", few)
    z = torch.randn(8, 3)
    z[5] = torch.nan
    for mining in ("hard", "all", "semihard"):
        value = nf.TripletLoss(mining=mining, validate=False)(z, labels=torch.arange(8) % 3)
        assert value.isnan(), mining


def test_gradients_of_one_row_are_its_own():
    """One score is its own transpose, and a sum of one number the number itself: memory must not be shared."""
    x, y = (torch.tensor([[a, 1.0]], dtype=torch.float64, requires_grad=True) for a in (0.5, -2.0))
    found = [
        torch.autograd.grad(nf.SigLIPLoss(backend=backend)(x, y, labels=torch.zeros(1, dtype=torch.long)), (x, y))
        for backend in (None, "dense")
    ]
    torch.testing.assert_close(*found)
    assert float(found[0][0].abs().sum()) > 0


@pytest.mark.parametrize("relation", ["two classes", "weights everywhere", "twelve classes"])
@pytest.mark.parametrize("loss", [nf.ContrastiveLoss, nf.MultiSimilarityLoss, nf.CircleLoss, nf.TripletLoss])
def test_a_long_list_gives_way_to_numbers(relation, loss, monkeypatch):
    """Above 256 rows too, where positives are many: with the values and gradients of the definition."""
    made: list[type] = []
    for kind in (few.Few, held.Held):
        first = kind.__init__
        monkeypatch.setattr(
            kind, "__init__", lambda self, *a, first=first: (made.append(type(self)), first(self, *a))[1]
        )
    n, z = 300, draw(300, 5, seed=1).requires_grad_()
    if relation == "weights everywhere":
        if loss is nf.TripletLoss:
            pytest.skip("triplets take no weights")
        weights = draw(n, n, seed=2).square() + 0.1
        keywords = {"pairs": Pairs.from_matrix(weights + weights.T)}
    else:
        classes = 2 if relation == "two classes" else 12
        keywords = {"labels": torch.randint(classes, (n,), generator=torch.Generator().manual_seed(3))}
    options = {"mining": "hard"} if loss is nf.TripletLoss else {}
    values = [loss(backend=backend, **options)(z, **keywords) for backend in (None, "dense")]
    assert set(made) == {held.Held if relation == "twelve classes" else few.Few}
    torch.testing.assert_close(values[0], values[1], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(*(torch.autograd.grad(value, z)[0] for value in values), rtol=1e-8, atol=1e-10)
