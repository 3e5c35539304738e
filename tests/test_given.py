"""What users pass in place of tensors and whole numbers: read where it can be, or refused by the package's own words."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import nearfar as nf
from harness import KINDS, PAIRWISE, build
from nearfar.data.samplers import EpisodeSampler
from nearfar.given import as_tensor, at_least
from oracles import ORACLES
from problems import draw

pytestmark = pytest.mark.usefixtures("unchecked")  # what users pass is no tensor, as the types in the package have it

Z, OTHER = draw(6, 3, seed=0), draw(6, 3, seed=1)
Y = torch.tensor([2, 0, 1, 0, 2, 2])
NUMBERS = [3.0, 1.0, 0.5, 2.0, 1.0, 0.25]
SOFTMAX = ["InfoNCELoss", "NTXentLoss", "SupConLoss", "NPairsLoss", "NCALoss", "DCLLoss"]


def refused(call: Callable[[], object], *words: str, error: Any = (TypeError, ValueError)) -> None:
    """The call raises, and its message has every word, in this order."""
    with pytest.raises(error, match=re.compile(".*".join(re.escape(w) for w in words), re.S)):
        call()


# ---- arrays -------------------------------------------------------------------------------------------------------------


def test_arrays_that_torch_cannot_share_are_copied():
    for array in (
        np.arange(3.0)[::-1],
        np.arange(3.0, dtype=">f4"),
        np.arange(3.0, dtype=np.longdouble),
        np.arange(6.0)[::2],
    ):
        assert as_tensor("x", array, "numbers").tolist() == array.tolist()
    fixed = np.arange(3.0)
    fixed.flags.writeable = False
    as_tensor("x", fixed, "numbers")[0] = 7.0
    assert fixed[0] == 0.0
    shared = np.arange(3.0)
    as_tensor("x", shared, "numbers")[0] = 7.0
    assert shared[0] == 7.0


@pytest.mark.parametrize(
    "make", [list, tuple, np.array, lambda x: np.array(x)[::-1].copy()[::-1], lambda x: torch.tensor(x).half()]
)
@pytest.mark.parametrize("name", SOFTMAX)
def test_weights_and_offsets_of_every_form(name, make):
    exact = torch.tensor(NUMBERS, dtype=torch.float64)
    for option in ("weights", "offsets"):
        wanted = ORACLES[name](Z, labels=Y, **{option: exact})
        torch.testing.assert_close(nf.LOSSES[name].loss()(Z, labels=Y, **{option: make(NUMBERS)}), wanted)
        torch.testing.assert_close(nf.LOSSES[name].loss(**{option: make(NUMBERS)})(Z, labels=Y), wanted)


def test_weights_of_the_other_kinds():
    weights = torch.tensor(NUMBERS, dtype=torch.float64)
    for loss, rows in (
        (build("ArcFaceLoss", {}, 3).double(), (Z, Y)),
        (nf.ContrastiveLoss(), (Z, OTHER, Y % 2)),
        (nf.TripletLoss(), (Z, OTHER, Z.flip(0))),
    ):
        wanted = (loss.per_query(*rows) * weights).sum() / weights.sum()
        torch.testing.assert_close(loss(*rows, weights=NUMBERS), wanted)
        refused(lambda loss=loss, rows=rows: loss(*rows, weights=NUMBERS[:5]), "weights", "(5,)", "(6,)")


COLUMNS: list[tuple[Any, tuple[str, ...]]] = [
    (["a"] * 6, ("'a'",)), ("x", ("'x'",)), ([1.0, None, 1.0, 1.0, 1.0, 1.0], ("None",)), ([1] * 5, ("(5,)", "(6,)")),
    (torch.ones(6, 2).long(), ("(6, 2)", "(6,)")), (1, ("()", "(6,)")), (torch.ones(6) + 0j, ("complex",)),
    (torch.ones(6, device="meta"), ("meta",)), ([[1.0], [1.0, 2.0]], ("list",)),
]  # fmt: skip


@pytest.mark.parametrize(("column", "words"), COLUMNS, ids=lambda x: str(x)[:20])
@pytest.mark.parametrize("option", ["weights", "offsets", "query_rows"])
def test_columns_that_are_none_are_refused(option, column, words):
    both = {"query_rows": column, "key_rows": Y} if option == "query_rows" else {option: column}
    refused(lambda: nf.SupConLoss()(Z, labels=Y, **both), option, *words)


def test_rows_of_samples_are_integers():
    refused(lambda: nf.InfoNCELoss()(Z, OTHER, query_rows=NUMBERS, key_rows=Y), "query_rows", "float", "integers")
    wanted = nf.InfoNCELoss()(Z, OTHER, query_rows=torch.arange(6), key_rows=torch.arange(6) + 3)
    assert nf.InfoNCELoss()(Z, OTHER, query_rows=list(range(6)), key_rows=np.arange(3, 9)) == wanted


EMBEDDINGS: list[tuple[Any, tuple[str, ...]]] = [
    (None, ("NoneType", "(n, d)")), (Z.tolist(), ("list", "torch.as_tensor")), (Z.numpy(), ("ndarray", "torch.as_tensor")),
    ("z", ("str",)), (Z.to_sparse(), ("sparse",)), (Z.to("meta"), ("meta",)), (Z + 0j, ("complex128", "floats")),
    (Z > 0, ("bool", "floats")), (Z[:, None, None], ("(6, 1, 1, 3)", "(n, d)")), (torch.tensor(1.0), ("()", "(n, d)")),
    (torch.nested.nested_tensor([Z, OTHER[:3]]), ("nested",)),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "words"), EMBEDDINGS, ids=lambda x: str(x)[:20])
@pytest.mark.parametrize("name", [name for name in KINDS if name != "NCELoss"])
def test_embeddings_that_are_none_are_refused(name, rows, words):
    loss = build(name, {}, 3).double()
    if KINDS[name] == "classes":
        refused(lambda: loss(rows, labels=Y), *words)
        refused(lambda: nf.LOSSES[name].function(Z, Y, rows), *words)
        return
    known = {} if KINDS[name] in ("two-sided", "moments", "information") else {"labels": Y}
    if name == "MutualInformationLoss" and getattr(rows, "ndim", 0) == 4:  # a map
        return
    refused(lambda: loss(rows, **known) if known else loss(rows, Z), *words)
    if rows is not None:
        refused(lambda: loss(Z, rows), *words)
    if name in ("InfoNCELoss", "TripletLoss") and rows is not None:
        refused(lambda: loss(Z, OTHER, rows), *(words if words[-1] != "(n, d)" else words[:1]))


def test_sides_on_different_devices_are_refused():
    """Told before anything is multiplied; a machine with one device has the meta device for another."""
    from nearfar.losses.arguments import as_floats

    class Elsewhere:
        device = torch.device("cuda", 1)

    refused(lambda: as_floats("keys", Z, Elsewhere()), "keys lies on cpu", "cuda:1", "same device")  # pyright: ignore[reportArgumentType]


def test_noise_of_every_form():
    table = draw(4, 3, seed=2)
    wanted = nf.NCELoss(torch.ones(4), k=1)(Z, Y, table, bias=torch.arange(4.0), samples=torch.tensor([1]))
    assert nf.NCELoss([1, 1, 1, 1], k=1)(Z, Y, table, bias=[0, 1, 2, 3], samples=[1]) == wanted
    for weights in ([], "x", [["a"]], 3, None, torch.ones(2, 2)):
        refused(lambda weights=weights: nf.NCELoss(weights), "noise")
    loss = nf.NCELoss(np.ones(4), k=2)
    refused(lambda: loss(Z, Y, table, bias=[1.0, 2.0]), "bias", "(2,)", "(4,)")
    refused(lambda: loss(Z, Y, table, samples=[0, 9]), "samples", "9", "0 to 3")
    refused(lambda: loss(Z, Y, table, samples=[0, 1, 2]), "samples", "(3,)", "(2,) or (6, 2)")
    refused(lambda: loss(Z, Y.float(), table), "targets", "float32", "integers (6,)")
    refused(lambda: loss(Z, ["a"] * 6, table), "targets", "'a'", "np.unique")
    refused(lambda: loss(Z, Y, table, generator=0), "generator is 0", "torch.Generator()")
    refused(lambda: nf.CenterLoss(3, 2, generator=0), "generator is 0", "torch.Generator()")


# ---- relations ----------------------------------------------------------------------------------------------------------


def test_relations_in_every_form():
    table = "+ -\n- +"
    for matrix in (
        [[1, 0], [0, 1]],
        np.eye(2),
        np.eye(2)[::-1].copy()[::-1],
        np.eye(2) > 0,
        [[True, False], [False, True]],
    ):
        assert nf.Pairs.from_matrix(matrix).table() == table
    twice = torch.sparse_coo_tensor(
        torch.tensor([[0, 0, 1], [0, 0, 1]]), torch.ones(3, dtype=torch.int64), (2, 2), check_invariants=True
    )
    assert nf.Pairs.from_matrix(twice).table() == table  # an edge that a list has twice is one
    assert nf.Pairs.aligned(2).excluding([0, 1], np.array([1, 2])).table() == "+ -\n. +"
    assert nf.Pairs.by_label([0, 1, 0]).take([2, 0], [1]).table() == "-\n-"
    assert nf.Pairs.sparing([[0, 5]], [[1, 5], [0, 1]]).table() == ". +"
    assert nf.Pairs.views(np.int64(2), torch.tensor(2)).shape == (4, 4)


RELATIONS: list[tuple[Callable[[], object], tuple[str, ...]]] = [
    (lambda: nf.Pairs.from_matrix(torch.tensor([[3, 0], [0, 1]])), ("integers other than 0 and 1", "relation.float()")),
    (lambda: nf.Pairs.from_matrix(torch.tensor([[-1, 0]])), ("below 0",)),
    (lambda: nf.Pairs.from_matrix(torch.eye(2) + 0j), ("complex64",)),
    (lambda: nf.Pairs.from_matrix([["a", "b"]]), ("'a'", "matrix")),
    (lambda: nf.Pairs.from_matrix(None), ("NoneType", "matrix")),
    (lambda: nf.Pairs.from_matrix([[1], [1, 2]]), ("list", "matrix")),
    (lambda: nf.Pairs.from_ids(["a"], ["b"]), ("'a'", "np.unique")),
    (lambda: nf.Pairs.sparing([0, 1], [0, 1]), ("(2,)", "(n, k)")),
    (lambda: nf.Pairs.sparing(torch.ones(2, 2), torch.ones(2, 2)), ("float32", "integers")),
    (lambda: nf.Pairs.aligned(2).excluding(None, [0, 1]), ("query_rows", "NoneType")),
    (lambda: nf.Pairs.aligned(2).excluding([0.5, 1], [0, 1]), ("query_rows", "float", "integers")),
    (lambda: nf.Pairs.aligned(2) | torch.eye(2), ("Tensor", "nf.Pairs")),
    (lambda: nf.Pairs.views("2"), ("n is '2'", "whole number")),
    (lambda: nf.Pairs.views(2, 0), ("views is 0", "at least 1")),
    (lambda: nf.Pairs.aligned(-1), ("n is -1", "at least 0")),
    (lambda: nf.Pairs.aligned(2.5), ("n is 2.5", "whole number")),
    (lambda: nf.SupConLoss()(Z, pairs=torch.eye(6)), ("Tensor", "from_matrix")),
]


@pytest.mark.parametrize(("make", "words"), RELATIONS)
def test_relations_that_are_none_are_refused(make, words):
    refused(make, *words)


# ---- whole numbers, options, functions --------------------------------------------------------------------------------


def test_whole_numbers_of_every_form():
    for value in (2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), torch.tensor([2])):
        assert at_least("k", value, 2) == 2
    for value in (
        2.0,
        "2",
        None,
        True,
        np.True_,
        torch.tensor(True),
        torch.tensor(2.0),
        [2],
        math.nan,
        np.array([2]),
        1,
    ):
        refused(lambda value=value: at_least("k", value, 2), "k is", "whole number of at least 2", error=ValueError)


WHOLE: list[tuple[str, Callable[[Any], object]]] = [
    ("p", lambda v: nf.PKSampler(Y, v, 2)), ("k", lambda v: nf.PKSampler(Y, 2, v)),
    ("seed", lambda v: nf.PKSampler(Y, 2, 2, seed=v)),
    ("rank", lambda v: nf.PKSampler(Y, 2, 2, rank=v, world_size=2)), ("ways", lambda v: EpisodeSampler(Y, v, 1, 1, 1)),
    ("size", lambda v: nf.MemoryBank(v, 3)), ("dim", lambda v: nf.MemoryBank(3, v)),
    ("start_after", lambda v: nf.MemoryBank(3, 3, start_after=v)),
    ("chunk", lambda v: nf.cached_step(nf.SupConLoss(), nn.Identity(), Z, chunk=v, labels=Y)),
    ("num_classes", lambda v: nf.Joint(nn.CrossEntropyLoss(), nf.SupConLoss(), readout="prototypes", num_classes=v or "0")),
    ("positives", lambda v: nf.PairDataset(TensorDataset(Z, Y), positives=v or "0")),
]  # fmt: skip


@pytest.mark.parametrize("value", [-1, 2.5, "2", True, None, [2], math.nan], ids=str)
@pytest.mark.parametrize(("name", "make"), WHOLE, ids=[name for name, _ in WHOLE])
def test_whole_numbers_are_refused_by_name(name, make, value):
    if (name, value) != ("positives", True):
        refused(lambda: make(value), f"{name} is" if name != "rank" or value is not None else "rank", error=ValueError)


@pytest.mark.parametrize(
    "option",
    [
        {"normalize": "yes"},
        {"normalize": None},
        {"validate": 1},
        {"backend": ["dense"]},
        {"precision": torch.bfloat16},
        {"gather": "no"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", PAIRWISE)
def test_options_of_another_kind_are_refused(name, option):
    (word,) = option
    refused(lambda: nf.LOSSES[name].loss(**option), word)
    refused(lambda: nf.LOSSES[name].function(Z, *[OTHER] * (KINDS[name] == "two-sided"), labels=Y, **option), word)


def test_what_is_called_can_be_called():
    model = nn.Linear(3, 2).double()
    for thing in (None, "loss", 3):
        refused(lambda t=thing: nf.MemoryBank(8, 3).loss(t, Z, Y), "criterion", "nf.SupConLoss()", error=TypeError)
        refused(
            lambda t=thing: nf.cached_step(t, model, Z, chunk=2, labels=Y),
            "criterion",
            "nf.SupConLoss()",
            error=TypeError,
        )
        refused(
            lambda t=thing: nf.cached_step(nf.SupConLoss(), t, Z, chunk=2, labels=Y), "model", "module", error=TypeError
        )
        refused(lambda t=thing: nf.Joint(t, nf.SupConLoss()), "task loss", error=TypeError)
        refused(lambda t=thing: nf.Joint(nn.CrossEntropyLoss(), t), "contrastive loss", error=TypeError)
    for option in ("encode", "scaler"):
        refused(
            lambda o=option: nf.cached_step(nf.SupConLoss(), model, Z, chunk=2, labels=Y, **{o: 3}),
            option,
            error=TypeError,
        )
    refused(lambda: nf.Joint(nn.CrossEntropyLoss(), nf.SupConLoss), "type", "nf.SupConLoss()", error=TypeError)


@pytest.mark.parametrize("rows", [None, Z.tolist(), Z.to_sparse(), Z.to("meta"), "z"], ids=lambda x: str(x)[:20])
def test_a_bank_takes_tensors(rows):
    bank = nf.MemoryBank(8, 3)
    for call in (lambda: bank.add(rows), lambda: bank.sides(rows, Y)):
        refused(call, "rows are", "tensor of embeddings (n, 3)", error=TypeError)
    refused(lambda: nf.MemoryBank(8, 3, dtype="float16"), "dtype is float16", "float type", error=TypeError)  # pyright: ignore[reportArgumentType]
    assert len(copy.deepcopy(bank).rows) == 0


@pytest.mark.parametrize("features", [Z.tolist(), Z.numpy(), Y, "z", (Z,)], ids=lambda x: str(x)[:20])
def test_features_are_tensors_of_floats(features):
    criterion = nf.Joint(lambda o, t: o.sum(), nf.SupConLoss(), readout="prototypes", num_classes=3)
    criterion(Z, Y, features=Z)
    refused(lambda: criterion(Z, Y, features=features), "features are", "floats in a tensor", error=TypeError)
    refused(lambda: criterion.predict(features), "features are", "floats in a tensor", error=TypeError)
