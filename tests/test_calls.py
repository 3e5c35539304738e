"""What a call gives beside its value: the values by query, what was counted, and how weights enter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import nearfar as nf
from harness import KINDS, PAIRWISE, backends_of, build, class_table, differentiate, evaluate, keywords_for, tiles
from oracles import ORACLES
from problems import FORMS, Problem, draw, forms_of

ROWS = nf.LOSSES
BY_QUERY = [name for name in PAIRWISE if ROWS[name].per_query and name != "CLIPLoss"]
BY_ROW = [name for name in KINDS if KINDS[name] == "classes" and ROWS[name].per_query]
UNDIVIDED = [name for name in KINDS if not ROWS[name].per_query]


def unknown(name: str, n: int = 11) -> Problem:
    """A problem in which some queries have no positive."""
    return FORMS["unknown" if "unknown" in forms_of(name, KINDS[name]) else "views, unknown"](n, 3, 0)


def by_query(name: str, problem: Problem, backend: str | None = None) -> Tensor:
    with tiles():
        return build(name, {}, 3, backend).double().per_query(*problem.tensors, **keywords_for(problem, torch.float64))


@pytest.mark.parametrize(("name", "backend"), [(name, b) for name in BY_QUERY for b in backends_of(name)])
def test_values_by_query_are_the_loops(name, backend):
    problem = FORMS["views, unknown"](6, 3, 0).map(lambda x: x.requires_grad_())
    cotangent = draw(len(by_query(name, problem)), seed=5)  # no plan may take the upstream gradient for a mean's
    actual = differentiate((by_query(name, problem, backend) * cotangent).sum(), problem.leaves())
    values = ORACLES[name](*problem.tensors, **problem.keywords, per_query=True)
    assert any(v is None for v in values) or ROWS[name].mean == "queries"
    kept = torch.stack([problem.tensors[0].sum() * 0 if v is None else v for v in values])  # 0 where it is left out
    wanted = differentiate((kept * cotangent).sum(), problem.leaves())
    torch.testing.assert_close(by_query(name, problem, backend), kept, rtol=1e-9, atol=1e-11)
    for a, b in zip(actual.gradients, wanted.gradients):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BY_QUERY)
def test_their_mean_is_the_loss(name):
    problem = FORMS["views, unknown"](6, 3, 0)
    counted = [v is not None for v in ORACLES[name](*problem.tensors, **problem.keywords, per_query=True)]
    mean = by_query(name, problem)[torch.tensor(counted)].mean()
    torch.testing.assert_close(mean, evaluate(build(name, {}, 3), problem).value, rtol=1e-12, atol=0)


def test_clips_value_of_a_pair_is_the_mean_of_both_ways():
    q, k = draw(2, 7, 3, seed=0)
    ways = [ORACLES["InfoNCELoss"](*side, temperature=0.07, per_query=True) for side in ((q, k), (k, q))]
    wanted = torch.stack([0.5 * (a + b) for a, b in zip(*ways)])
    torch.testing.assert_close(by_query("CLIPLoss", Problem((q, k))), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BY_ROW)
def test_values_by_row_of_the_class_losses(name):
    """Each row alone is a batch of one; an unknown row gives 0."""
    z, labels = draw(6, 3, seed=0), torch.tensor([0, 2, -1, 1, 3, 2])
    loss = build(name, {}, 3).double()
    alone = [ORACLES[name](z[i : i + 1], labels[i : i + 1], class_table(3)).item() for i in range(6)]
    assert loss.per_query(z, labels=labels).tolist() == pytest.approx(alone, rel=1e-10)
    assert loss(z, labels=labels).item() == pytest.approx(sum(alone) / 5, rel=1e-10)


@pytest.mark.parametrize("name", UNDIVIDED)
def test_a_loss_that_does_not_divide_says_so(name):
    problem = FORMS["labels" if KINDS[name] in ("self", "pairs", "classes") else "two views"](6, 3, 0)
    with pytest.raises(TypeError, match=f"{name} does not decompose into queries"):
        by_query(name, problem)


def test_explicit_rows_divide_all_the_same():
    rows, triplets = FORMS["rows"](5, 3, 0), FORMS["triplets, many"](5, 3, 0)
    for name, problem in (("ContrastiveLoss", rows), ("TripletLoss", triplets)):
        values = by_query(name, problem)
        assert values.shape == (5,)
        torch.testing.assert_close(values.mean(), evaluate(build(name, {}, 3), problem).value)


@pytest.mark.parametrize("name", [*BY_QUERY, *BY_ROW])
def test_a_weight_of_zero_leaves_the_query_out(name):
    """Its value no longer counts, though it stays a candidate of the others."""
    problem = FORMS["views, labels" if KINDS[name] == "two-sided" else "labels"](9, 3, 0)  # each has a positive
    weights = torch.ones(9, dtype=torch.float64)
    weights[[0, 4]] = 0.0
    weighted = replace(problem, keywords=problem.keywords | {"weights": weights})
    values = by_query(name, problem)
    wanted = (values * weights).sum() / weights.sum()
    torch.testing.assert_close(evaluate(build(name, {}, 3), weighted).value, wanted, rtol=1e-12, atol=0)


def test_all_weights_zero_is_zero_and_not_nan():
    problem = replace(FORMS["labels"](6, 3, 0))
    problem.keywords["weights"] = torch.zeros(6, dtype=torch.float64)
    outcome = evaluate(build("SupConLoss", {}, 3), problem)
    assert outcome.value == 0
    assert (outcome.gradients[0] == 0).all()


def test_options_at_the_constructor_and_at_the_call():
    z, labels, weights = draw(6, 3, seed=0), torch.tensor([0, 0, 1, 1, 2, 2]), torch.rand(6, dtype=torch.float64)
    built = nf.SupConLoss(normalize=False, weights=weights)(z, labels=labels)
    called = nf.SupConLoss()(z, labels=labels, normalize=False, weights=weights)
    assert built == called
    assert built != nf.SupConLoss()(z, labels=labels)


def test_own_sample_among_the_keys():
    """`query_rows` and `key_rows` say which key is the query itself: it is no candidate."""
    z, labels = draw(8, 3, seed=0), torch.arange(8) % 3
    rows = torch.arange(8)
    by_matrix = nf.Pairs.from_matrix((labels[:, None] == labels).double())
    said = nf.SupConLoss()(z, z.clone(), pairs=by_matrix, query_rows=rows, key_rows=rows)
    torch.testing.assert_close(said, nf.SupConLoss()(z, labels=labels), rtol=1e-12, atol=0)


class TestStats:
    """Detached tensors of what the last call saw."""

    def test_queries_without_a_positive_are_counted(self):
        loss = nf.SupConLoss()
        loss(draw(6, 3, seed=0), labels=torch.tensor([0, 0, 1, 2, -1, -1]))
        assert loss.stats["queries"] == 6
        assert loss.stats["queries_without_positive"] == 4

    def test_nothing_to_average_is_counted(self):
        loss = nf.InfoNCELoss()
        assert loss(draw(5, 3, seed=0), labels=torch.arange(5)) == 0
        assert loss.stats["queries_without_positive"] == 5

    def test_queries_without_a_negative_are_counted(self):
        loss = nf.CircleLoss()
        assert loss(draw(5, 3, seed=0), labels=torch.zeros(5, dtype=torch.long)) == 0
        assert loss.stats["queries_without_negative"] == 5

    def test_active_and_dropped_triplets_are_counted(self):
        z = torch.tensor([[0.0], [1.0], [1.1], [9.0]], dtype=torch.float64)
        labels = torch.tensor([0, 0, 1, 1])
        triplets = nf.TripletLoss(margin=0.2)
        triplets(z, labels=labels)
        # distances (a, p) and (a, n): 0: 1 and 1.1, 9; 1: 1 and 0.1, 8; 2: 7.9 and 1.1, 0.1; 3: 7.9 and 9, 8
        assert triplets.stats["active"] == 1 + 1 + 2 + 1
        semihard = nf.TripletLoss(margin=0.2, mining="semihard")
        semihard(z, labels=labels)  # (0, 1) and (3, 2) have a negative beyond the positive and within the margin
        assert semihard.stats["dropped"] == 2

    @pytest.mark.parametrize("name", [name for name in KINDS if name != "NCELoss"])
    def test_they_are_detached_and_of_the_last_call(self, name):
        loss = build(name, {}, 3)
        for n in (9, 6):
            problem = FORMS[forms_of(name, KINDS[name])[0]](n, 3, 0).map(lambda x: x.float().requires_grad_())
            loss(*problem.tensors, **keywords_for(problem, torch.float32))
        assert all(isinstance(v, Tensor) and not v.requires_grad for v in loss.stats.values())
        assert loss.stats["queries"] == 6


@pytest.mark.parametrize("name", [*PAIRWISE, "BarlowTwinsLoss", "VICRegLoss", "AlignUniformLoss"])
def test_modules_without_a_table_have_an_empty_state(name):
    """They hold nothing that a checkpoint must keep."""
    assert not build(name, {}, 3).state_dict()


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name] == "classes"])
def test_a_generator_makes_the_class_table_reproducible(name):
    tables = [
        next(ROWS[name].loss(4, 3, generator=torch.Generator().manual_seed(seed)).parameters()) for seed in (0, 0, 1)
    ]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_no_gradient_work_under_no_grad():
    z = draw(9, 3, seed=0).requires_grad_()
    with torch.no_grad(), tiles():
        assert not nf.SupConLoss(backend="tiled")(z, labels=torch.arange(9) % 2).requires_grad
