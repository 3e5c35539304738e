"""What changes nothing: the order of the samples, a rotation of the space, the length of rows, a batch said twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from torch import Tensor

import nearfar as nf
from harness import KINDS, PAIRWISE, build, class_table, evaluate, functional, keywords_for, tiles
from problems import CLASSES, FORMS, Problem, draw, label_structure, relation_matrix, seeds, shapes, structures

pytestmark = pytest.mark.usefixtures("unchecked")

ROTATED = [name for name in KINDS if name not in ("NCELoss", "BarlowTwinsLoss", "VICRegLoss")]
COSINE = [
    "InfoNCELoss", "NTXentLoss", "SupConLoss", "CLIPLoss", "DCLLoss", "HardNegativeLoss", "DebiasedLoss", "SigLIPLoss",
    "MultiSimilarityLoss", "CircleLoss", "ProxyAnchorLoss", "ProxyNCALoss", "ArcFaceLoss", "CosFaceLoss", "AlignUniformLoss",
]  # fmt: skip
REPEATED = [name for name in PAIRWISE if name not in ("CLIPLoss", "LiftedStructureLoss")]
"""Not where a key's own side of the loss sees every query: CLIP's columns, the second end of a lifted pair."""


def problem(name: str, shape: tuple[int, int], seed: int, structure: str) -> Problem:
    """Labels where the loss takes them, two views elsewhere."""
    n, d = shape
    y = label_structure(structure, n, seed)
    labels = {"labels": y.clamp(max=CLASSES - 1) if KINDS[name] == "classes" else y}
    if KINDS[name] in ("moments", "information"):
        return FORMS["two views"](n, d, seed)
    if KINDS[name] in ("one-sided", "two-sided"):
        return replace(FORMS["two views"](n, d, seed), keywords=labels)
    return Problem((draw(n, d, seed=seed),), labels)


def value(name: str, given: Problem, d: int, turn: Tensor | None = None) -> Tensor:
    loss = build(name, {}, d).double()
    for table in loss.parameters():
        table.data = table.data if turn is None else table.data @ turn
    with tiles(), torch.no_grad():
        return loss(*given.tensors, **keywords_for(given, torch.float64))


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "NCELoss"])
@given(shape=shapes, seed=seeds, structure=structures)
def test_order_of_the_samples(name, shape, seed, structure):
    given = problem(name, shape, seed, structure)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    keywords = {k: v[order] for k, v in given.keywords.items()}
    same(value(name, replace(given.map(lambda x: x[order]), keywords=keywords), shape[1]), value(name, given, shape[1]))


@pytest.mark.parametrize("name", ROTATED)
@given(shape=shapes, seed=seeds, structure=structures)
def test_rotation_of_both_sides(name, shape, seed, structure):
    given, d = problem(name, shape, seed, structure), shape[1]
    turn = torch.linalg.qr(draw(d, d, seed=seed + 1)).Q
    same(value(name, given.map(lambda x: x @ turn), d, turn), value(name, given, d))


@pytest.mark.parametrize("name", COSINE)
@given(shape=shapes, seed=seeds, structure=structures)
def test_length_of_rows_under_a_cosine(name, shape, seed, structure):
    assume(name != "ArcFaceLoss" or shape[1] > 1)  # on a line θ is 0, where sin θ = √(1 − cos² θ) loses half the digits
    given = problem(name, shape, seed, structure)
    lengths = draw(shape[0], 1, seed=seed + 2).exp()
    same(value(name, given.map(lambda x: x * lengths), shape[1]), value(name, given, shape[1]))


@pytest.mark.parametrize("name", REPEATED)
@given(shape=shapes, seed=seeds)
def test_queries_said_twice(name, shape, seed):
    n, d = shape
    q, k, pairs = draw(n, d, seed=seed), draw(n + 2, d, seed=seed + 1), relation_matrix(n, n + 2, seed)
    once = value(name, Problem((q, k), {"pairs": pairs}), d)
    same(value(name, Problem((q.repeat(2, 1), k), {"pairs": pairs.repeat(2, 1)}), d), once)


@pytest.mark.parametrize("name", [name for name in PAIRWISE if name != "LiftedStructureLoss"])
@given(shape=shapes, seed=seeds)
def test_ignored_keys_are_as_if_they_were_not_there(name, shape, seed):
    n, d = shape
    q, k, pairs = draw(n, d, seed=seed), draw(n + 2, d, seed=seed + 1), relation_matrix(n, n + 2, seed)
    more = torch.cat([k, 100 * draw(7, d, seed=seed + 2)]), torch.cat([pairs, torch.full((n, 7), torch.nan)], 1)
    same(value(name, Problem((q, more[0]), {"pairs": more[1]}), d), value(name, Problem((q, k), {"pairs": pairs}), d))


@pytest.mark.parametrize("name", [name for name in PAIRWISE if KINDS[name] != "two-sided"])
@given(shape=shapes, seed=seeds, structure=structures)
def test_labels_are_a_relation(name, shape, seed, structure):
    """By label and by the matrix that says the same; unknown labels are its NaN."""
    z, labels = draw(*shape, seed=seed), label_structure(structure, shape[0], seed)
    unknown = (labels[:, None] < 0) | (labels[None] < 0)
    matrix = (labels[:, None] == labels).double().masked_fill(unknown, torch.nan)
    by_label = value(name, Problem((z,), {"labels": labels}), shape[1])
    same(value(name, Problem((z,), {"pairs": matrix}), shape[1]), by_label)


@pytest.mark.parametrize("name", ["SupConLoss", "InfoNCELoss", "ContrastiveLoss", "SigLIPLoss", "TripletLoss"])
@given(shape=shapes, seed=seeds)
def test_a_sparse_relation_is_the_dense_one(name, shape, seed):
    """Absent entries are negatives; weights are kept."""
    n, d = shape
    relation = relation_matrix(n, n + 2, seed, weighted=name in ("SupConLoss", "InfoNCELoss")).nan_to_num(0.0)
    q, k, loss = draw(n, d, seed=seed), draw(n + 2, d, seed=seed + 1), build(name, {}, d)
    with tiles():
        values = [loss(q, k, pairs=nf.Pairs.from_matrix(x)) for x in (relation.to_sparse(), relation)]
    same(*values)


@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
@given(shape=shapes, seed=seeds)
def test_views_stacked_or_side_by_side(name, shape, seed):
    views = draw(3, *shape, seed=seed)
    same(value(name, Problem((views.transpose(0, 1),)), shape[1]), value(name, Problem(tuple(views)), shape[1]))


@given(shape=shapes, seed=seeds, structure=structures)
def test_supcon_is_infonce_with_labels(shape, seed, structure):
    given = problem("SupConLoss", shape, seed, structure)
    same(value("SupConLoss", given, shape[1]), value("InfoNCELoss", given, shape[1]))


@given(shape=shapes, seed=seeds)
def test_scaled_weights_are_the_same_weights(shape, seed):
    """A relation's weights are normalised by row: only their ratios count."""
    n, d = shape
    pairs = relation_matrix(n, n + 2, seed, weighted=True)
    scale = draw(n, 1, seed=seed + 3).exp()
    given = Problem((draw(n, d, seed=seed), draw(n + 2, d, seed=seed + 1)), {"pairs": pairs})
    same(value("SupConLoss", replace(given, keywords={"pairs": pairs * scale}), d), value("SupConLoss", given, d))


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name] not in ("noise", "classes")])
@given(shape=shapes, seed=seeds, structure=structures)
def test_function_and_module_are_one(name, shape, seed, structure):
    given = problem(name, shape, seed, structure)
    with tiles():
        same(functional(name)(*given.tensors, **given.keywords), value(name, given, shape[1]))


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name] == "classes"])
def test_class_functions_take_the_table(name):
    z, labels = draw(7, 3, seed=0), label_structure("unknown", 7)
    own = evaluate(build(name, {}, 3), Problem((z,), {"labels": labels})).value
    same(functional(name)(z, labels, class_table(3)), own)
