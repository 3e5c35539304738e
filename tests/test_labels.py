"""Labels in every form that users have them: one rule for losses, relations, joint objectives, samplers, banks and measures."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nearfar as nf
from harness import KINDS, PAIRWISE, build, class_table
from nearfar.data.samplers import ClassBalancedSampler, EpisodeSampler
from nearfar.encoders.prototypes import Prototypes
from nearfar.evaluation.knn import knn_accuracy
from oracles import ORACLES
from problems import draw

pytestmark = pytest.mark.usefixtures("unchecked")  # what users pass is no tensor, as the types in the package have it

Z, OTHER = draw(6, 3, seed=0), draw(6, 3, seed=1)
Y = torch.tensor([2, 0, 1, 0, 2, 2])
NAMES = ["cat", "ant", "bee", "ant", "cat", "cat"]
TABLE = nf.Pairs.from_matrix(Y[:, None] == Y).table()

READ_ONLY = np.array(Y)
READ_ONLY.flags.writeable = False
FORMS: dict[str, Any] = {
    "a list": Y.tolist(),
    "a tuple": tuple(Y.tolist()),
    "an array": Y.numpy(),
    "an array turned round": np.array([2, 2, 0, 1, 0, 2])[::-1],
    "an array of read-only memory": READ_ONLY,
    "an array of another byte order": Y.numpy().astype(">i4"),
    "unsigned": Y.numpy().astype(np.uint16),
    "objects": np.array(Y.tolist(), dtype=object),
    "tensors in a list": list(Y),
    "a data frame's column": pd.Series(Y.numpy()),
    "a data frame": pd.DataFrame({"y": Y.numpy()}),
    "a column": Y[:, None],
    "a column of int32": Y[:, None].int(),
    "a column of an array": Y.numpy()[:, None],
    "a column of lists": [[y] for y in Y.tolist()],
}
EACH_FORM = pytest.mark.parametrize("labels", FORMS.values(), ids=list(FORMS))


def views(name: str) -> tuple[Tensor, ...]:
    return (Z, OTHER) if KINDS[name] == "two-sided" else (Z,)


def refused(call: Callable[[], object], *words: str, error: Any = (TypeError, ValueError)) -> None:
    """The call raises, and its message has every word, in this order."""
    with pytest.raises(error, match=re.compile(".*".join(re.escape(w) for w in words), re.S)):
        call()


# ---- relations --------------------------------------------------------------------------------------------------------


@EACH_FORM
def test_relations_read_every_form(labels):
    assert nf.Pairs.by_label(labels).table() == TABLE
    assert nf.Pairs.by_label(labels, Y).table() == TABLE
    assert nf.Pairs.from_ids(labels, Y).table() == TABLE


@pytest.mark.parametrize(
    "sets", [[[1, 0], [0, 1], [1, 1]], [[True, False], [False, True], [True, True]]], ids=["0 and 1", "booleans"]
)
def test_a_matrix_of_0_and_1_is_sets(sets):
    for given in (sets, np.array(sets), torch.tensor(sets)):
        assert nf.Pairs.by_label(given).table() == "+ - +\n- + +\n+ + +"


def test_a_column_of_integers_is_ids_and_one_of_booleans_is_one_set():
    """Rows 0 and 2 of class 0 belong together; a set that a row is not in says nothing of it."""
    column = torch.tensor([[0], [1], [0]])
    assert nf.Pairs.by_label(column).table() == "+ - +\n- + -\n+ - +"
    assert nf.Pairs.by_label(column == 0).table() == "+ - +\n- - -\n+ - +"


def test_sets_of_one_side_and_weights_of_the_other_are_weighted():
    pairs = nf.Pairs.by_label(torch.tensor([[True, False], [True, True]]), torch.tensor([[0.5, 0.5], [0.2, 0.8]]))
    weight = pairs.whole().weight
    assert weight is not None
    torch.testing.assert_close(weight, torch.tensor([[0.5, 0.2], [1.0, 1.0]]))


UNREADABLE: list[tuple[str, Any, tuple[str, ...]]] = [
    ("tokens", torch.arange(18).view(6, 3), ("(6, 3)", "from 0 to 17", "0 and 1", "(n,)", "one_hot")),
    ("counts", torch.tensor([[0, 2]] * 6), ("from 0 to 2", "labels > 0", "labels.float()")),
    ("below 0", torch.tensor([[0, -100]] * 6), ("from -100 to 0", "below 0")),
    ("floats", Y.float(), ("float32", "labels.long()")),
    ("floats of an array", Y.numpy() * 1.0, ("float64", "labels.long()")),
    ("a column of floats", Y[:, None].float(), ("column (6, 1)", "float32", "labels.long()")),
    ("names", NAMES, ("'cat'", "integer", "np.unique(names, return_inverse=True)")),
    ("names of an array", np.array(NAMES), ("'cat'", "np.unique")),
    ("names of a data frame", pd.Series(NAMES, dtype="category"), ("'cat'", "np.unique")),
    ("a name", "cat", ("'cat'", "integer")),
    ("a gap", [0, None, 1, 1, 2, 2], ("None", "−1")),
    ("rows of several lengths", [[0], [0, 1], [1], [1], [2], [2]], ("list", "integer")),
    ("a dict", {"y": 1}, ("dict", "integer")),
    ("three dimensions", Y[:, None, None], ("(6, 1, 1)", "(n,)")),
    ("complex", Y + 0j, ("complex64",)),
    ("no numbers", Y.to("meta"), ("meta",)),
    ("sparse", torch.eye(6).to_sparse(), ("sparse", "to_dense()")),
]


@pytest.mark.parametrize(("labels", "words"), [row[1:] for row in UNREADABLE], ids=[row[0] for row in UNREADABLE])
def test_what_is_no_labels_is_refused_in_words(labels, words):
    refused(lambda: nf.Pairs.by_label(labels), *words)
    refused(lambda: nf.SupConLoss()(Z, labels=labels), *words)
    refused(lambda: nf.SupConLoss()(Z, OTHER, labels=labels), *words)
    refused(lambda: nf.CLIPLoss()(Z, OTHER, labels=labels), *words)


# ---- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRWISE)
def test_labels_in_a_column_are_labels(name):
    """The value is that of the paper's formula over rows of the same label."""
    given, wanted = views(name), ORACLES[name](*views(name), labels=Y)
    for labels in (Y[:, None], Y.numpy()[::-1].copy()[::-1], Y.tolist()):
        torch.testing.assert_close(nf.LOSSES[name].loss()(*given, labels=labels), wanted, rtol=1e-9, atol=1e-11)
        found = nf.LOSSES[name].function(*given, labels=labels)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name] == "classes"])
@EACH_FORM
def test_class_losses_read_every_form(name, labels):
    loss, wanted = build(name, {}, 3).double(), ORACLES[name](Z, Y, class_table(3))
    torch.testing.assert_close(loss(Z, labels=labels), wanted, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(loss(Z, labels), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in PAIRWISE if KINDS[name] != "two-sided"])
@EACH_FORM
def test_labels_may_be_given_by_place(name, labels):
    """As pytorch-metric-learning and SupContrast are called: ``loss(z, y)``."""
    wanted = ORACLES[name](Z, labels=Y)
    torch.testing.assert_close(nf.LOSSES[name].loss()(Z, labels), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["SupConLoss", "NTXentLoss", "InfoNCELoss", "TripletLoss"])
def test_labels_may_follow_two_views(name):
    wanted = ORACLES[name](Z, OTHER, labels=Y)
    torch.testing.assert_close(nf.LOSSES[name].loss()(Z, OTHER, Y), wanted, rtol=1e-9, atol=1e-11)


def test_labels_may_follow_views_in_one_tensor():
    wanted = ORACLES["SupConLoss"](Z, OTHER, labels=Y)
    both = torch.stack([Z, OTHER], 1)
    for labels in (Y, Y[:, None]):
        torch.testing.assert_close(nf.SupConLoss()(both, labels), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (NAMES, ("'cat'", "np.unique")),
        (Y.float(), ("(6,)", "float32", "floats (n, d)", "labels are integers")),
        (Y[:, None].repeat(1, 3), ("(6, 3)", "int64", "labels=", "pairs=")),
        (Y[:5], ("labels have 5", "6 samples")),
        (None, ("NoneType", "tensor")),
        ((Z > 0), ("bool", "labels=")),
    ],
)
def test_what_is_neither_embeddings_nor_labels_says_where_labels_go(given, words):
    refused(lambda: nf.SupConLoss()(Z, given), *words)


def test_a_pair_has_one_label_in_a_column_too():
    wanted = ORACLES["ContrastiveLoss"](Z, OTHER, Y % 2)
    for label in (Y % 2, (Y % 2)[:, None], (Y % 2).tolist(), (Y % 2).numpy()):
        torch.testing.assert_close(nf.ContrastiveLoss()(Z, OTHER, label), wanted, rtol=1e-9, atol=1e-11)


def test_words_of_noise_contrast_in_a_column():
    loss, table = nf.NCELoss(torch.ones(4), k=2), draw(4, 3, seed=2)
    samples = torch.tensor([0, 3])
    flat = loss(Z, Y, table, samples=samples)
    for targets in (Y[:, None], Y.tolist(), Y.numpy()):
        assert loss(Z, targets, table, samples=samples.tolist()) == flat


# ---- the joint objective ------------------------------------------------------------------------------------------------


def joint(contrast: nn.Module | None = None, **options: Any) -> nf.Joint:
    return nf.Joint(
        lambda outputs, targets: outputs.sum() * 0, contrast or nf.SupConLoss(), weights=[1.0, 1.0], **options
    )


@EACH_FORM
def test_a_joint_objective_reads_every_form(labels):
    wanted = ORACLES["SupConLoss"](Z, labels=Y)
    torch.testing.assert_close(joint()(Z, None, labels=labels, features=Z), wanted)


def test_targets_in_a_column_are_labels():
    targets = torch.tensor([[0], [1], [1], [0], [0], [1]])
    wanted = ORACLES["SupConLoss"](Z, labels=targets[:, 0])
    torch.testing.assert_close(joint()(Z, targets, features=Z), wanted)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.randn(6, 5, 7), torch.arange(42).view(6, 7) % 5),  # tokens: classes stand second for cross-entropy
        (torch.randn(6, 7, 5), torch.arange(42).view(6, 7) % 2),  # of two classes, which would pass for sets
        (torch.randn(6, 5, 4, 4), torch.zeros(6, 4, 4, dtype=torch.int64)),  # segmentation
        (torch.randn(6, 5, 7), torch.full((6, 7), -100)),  # all ignored
        (torch.randn(6, 7), torch.arange(42).view(6, 7) % 5),
    ],
)
def test_targets_of_tokens_or_places_say_nothing_of_samples(outputs, targets):
    features = draw(6, 3, 7, seed=2)
    refused(
        lambda: joint()(outputs, targets, features=features), "do not say what belongs together", "tokens", "labels="
    )
    assert joint()(outputs, targets, labels=Y, features=features).isfinite()
    assert joint()(outputs, targets, pairs=nf.Pairs.by_label(Y), features=features).isfinite()


def test_tokens_are_contrasted_where_features_are_flattened_alike():
    targets, features = torch.arange(8).view(2, 4) % 3, draw(2, 4, 3, seed=2)
    flat = features.flatten(0, 1)
    wanted = ORACLES["SupConLoss"](flat, labels=targets.flatten())
    torch.testing.assert_close(joint()(flat, targets.flatten(), features=flat), wanted)
    refused(
        lambda: joint()(flat, targets.flatten(), features=features), "2 rows", "8 labels", "features=f.flatten(0, 1)"
    )


def test_mixed_targets_and_sets_are_labels_still():
    for targets in (F.one_hot(Y), F.one_hot(Y).bool(), F.one_hot(Y).double(), torch.tensor([[0.5, 0.5]] * 6)):
        assert joint()(torch.randn(6, 3), targets, features=Z).isfinite()


def test_prototypes_of_every_form():
    wanted = torch.stack([F.normalize(Z, dim=1)[c == Y].sum(0) for c in range(3)])
    for labels in (Y[:, None], Y.tolist(), F.one_hot(Y)):
        criterion = joint(readout="prototypes")
        criterion.fit_prototypes(Z, labels)
        torch.testing.assert_close(criterion._kept_prototypes().sums, wanted)
        criterion.fit_prototypes([(Z, labels)])
        torch.testing.assert_close(criterion._kept_prototypes().sums, wanted)
        prototypes = Prototypes(3)
        prototypes.update(Z, labels)
        torch.testing.assert_close(prototypes.sums, wanted)


# ---- samplers, banks, measures ------------------------------------------------------------------------------------------


@EACH_FORM
def test_samplers_read_every_form(labels):
    for make in (
        lambda y: nf.PKSampler(y, np.int64(2), torch.tensor(2)),
        ClassBalancedSampler,
        lambda y: EpisodeSampler(y, 2, 1, 1, 3),
    ):
        assert list(make(labels)) == list(make(Y))


@EACH_FORM
def test_a_bank_remembers_every_form(labels):
    bank = nf.MemoryBank(8, 3, dtype=torch.float64)
    bank.add(Z, labels=labels, ids=labels)
    assert bank.labels.tolist() == bank.ids.tolist() == Y.tolist()
    wanted = ORACLES["SupConLoss"](Z, labels=Y)
    torch.testing.assert_close(nf.MemoryBank(8, 3).loss(nf.SupConLoss(), Z, labels), wanted)


def test_a_bank_compares_nothing_without_labels():
    refused(lambda: nf.MemoryBank(8, 3).loss(nf.SupConLoss(), Z, None), "labels are None", "one integer a row")


@EACH_FORM
def test_measures_read_every_form(labels):
    """Rows of a class are the same row, so that all but the one that is alone in its class have it as their nearest."""
    z = F.one_hot(Y).double()
    assert nf.evaluate(z, labels, tasks="knn", k=1)["accuracy"] == pytest.approx(5 / 6)
    assert knn_accuracy(z, labels, 1) == pytest.approx(5 / 6)
    found = nf.evaluate(z, labels, gallery=(z, labels), train=(z, labels), tasks=("knn", "retrieval"), ks=1)
    assert found["knn/accuracy"] == found["recall@1"] == 1.0
