"""Class ids of any integers, and names: as many outputs as there are classes, whatever the classes are called."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import nearfar as nf
from nearfar.compare import CompareConfig
from nearfar.compare.inputs import make_task
from nearfar.data.corpus import Column, Corpus, TensorPart
from nearfar.encoders.prototypes import Prototypes
from nearfar.methods.base import Batch, Setting
from nearfar.methods.config import MethodConfig
from nearfar.methods.labels import JointMethod
from nearfar.training.assemble import class_ids
from studies import SMALL, blobs, tiny

INPUTS, PLAIN = blobs(60)
FAR = torch.tensor([10, 30, 20])[PLAIN]  # classes in another order than their numbers
NAMES = [("ant", "cat", "bee")[i] for i in PLAIN.tolist()]
CONFIG = CompareConfig()


class Named(Dataset):
    def __len__(self):
        return len(NAMES)

    def __getitem__(self, i):
        return INPUTS[i], NAMES[i]


def sizes(part):
    return part.labels.bincount(minlength=3).tolist()


# ---- nf.compare -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        FAR,
        FAR.numpy(),
        FAR.tolist(),
        pd.Series(FAR.tolist(), dtype="Int64"),
        FAR.numpy().astype(object),
        FAR.to(torch.uint8),
        FAR[:, None],
        FAR.numpy().astype("uint16"),
    ],
)
def test_any_whole_numbers_are_classes_counted_through(labels):
    task = make_task((INPUTS, labels), CONFIG)
    assert task.class_names == ("10", "20", "30")
    assert sizes(task.train) == sizes(make_task((INPUTS, PLAIN), CONFIG).train)
    # the rows of 30 are those of class 1, in the order of their numbers now class 2
    plain = make_task((INPUTS, PLAIN), CONFIG)
    thirty, one = task.test.inputs[task.test.labels == 2], plain.test.inputs[plain.test.labels == 1]
    assert len(thirty) == len(one)


@pytest.mark.parametrize("labels", [NAMES, np.array(NAMES), np.array(NAMES, dtype=object)])
def test_names_are_classes(labels):
    task = make_task((INPUTS, labels), CONFIG)
    assert task.class_names == ("ant", "bee", "cat")
    split = make_task((INPUTS[:40], labels[:40], INPUTS[40:], labels[40:]), CONFIG)
    expected = torch.tensor([("ant", "bee", "cat").index(name) for name in NAMES[40:]])
    assert split.test.labels.tolist() == expected.tolist()
    assert make_task(Named(), CONFIG).fingerprint() == task.fingerprint()


def test_classes_of_both_parts_are_numbered_together():
    task = make_task((INPUTS[:40], FAR[:40], INPUTS[40:], torch.full((20,), 40)), CONFIG)
    assert task.class_names == ("10", "20", "30", "40")
    assert task.test.labels.unique().tolist() == [3]
    whole = make_task((TensorDataset(INPUTS[:40], FAR[:40]), TensorDataset(INPUTS[40:], FAR[40:])), CONFIG)
    assert whole.test.labels.tolist() == [{10: 0, 20: 1, 30: 2}[y] for y in FAR[40:].tolist()]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.where(PLAIN == 2, -1, PLAIN), "training labels run from -1 to 1: a negative one is an unknown class"),
        ([*NAMES[:-1], 3.5], "wanted whole class ids, such as labels.long.., or names"),
        (PLAIN > 1, r"labels are torch\.bool: wanted whole class ids"),
        (PLAIN.double(), "labels are torch.float64: wanted whole class ids"),
        (nn.functional.one_hot(PLAIN), r"labels \(60, 3\): wanted one class a row"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        make_task((INPUTS, labels), CONFIG)


class Partly(Named):
    """Of its last row nobody knows the class."""

    def __getitem__(self, i):
        return INPUTS[i], (None if i == 59 else NAMES[i])


@pytest.mark.parametrize(
    "data",
    [
        (INPUTS, [*NAMES[:-1], None]),
        (INPUTS, np.array([*NAMES[:-1], float("nan")], dtype=object)),
        (INPUTS, pd.Series([*NAMES[:-1], pd.NA])),
        Partly(),
    ],
)
def test_rows_without_a_name_are_left_out_and_told(data):
    task = make_task(data, CONFIG)
    assert task.bad == ("row 59 has no label",)
    assert task.fingerprint() == make_task((INPUTS[:-1], NAMES[:-1]), CONFIG).fingerprint()


@pytest.mark.parametrize(
    ("labels", "outputs", "classes"),
    [
        (FAR, 3, 3),  # an output a class
        (FAR, 31, 31),  # an output an id, as a network that was made for them has
        (torch.tensor([0, 1, 4])[PLAIN], 5, 5),
        (FAR, None, 3),
        (NAMES, 3, 3),
    ],
)
def test_a_network_has_an_output_a_class_or_one_an_id(tmp_path, labels, outputs, classes):
    model = tiny if outputs is None else tiny((6,), outputs)
    result = nf.compare((INPUTS, labels), model, **SMALL | {"seeds": 1}, out=str(tmp_path / "run"))
    assert len(result.about["data"]["classes"]) == classes
    assert result.complete


@pytest.mark.parametrize("outputs", [2, 4, 30, 1000])
def test_a_network_with_other_outputs_is_told_of_the_classes(tmp_path, outputs):
    with pytest.raises(ValueError, match=rf"\(2, {outputs}\): wanted logits \(2, 3\), one for .* \(10, 20, 30\)"):
        nf.compare((INPUTS, FAR), tiny((6,), outputs), **SMALL, out=str(tmp_path / "run"))


# ---- nf.train -------------------------------------------------------------------------------------------------------


def corpus(labels, names=()):
    part = TensorPart({"v": INPUTS}, labels)
    return Corpus("made", (Column("v", "vector"),), part, part, names)


def test_the_class_ids_of_a_corpus():
    assert class_ids(corpus(FAR)).tolist() == [10, 20, 30]
    assert class_ids(corpus(torch.where(FAR == 30, -1, FAR))).tolist() == [10, 20]
    assert class_ids(corpus(PLAIN, ("a", "b", "c", "d"))).tolist() == [0, 1, 2, 3]  # one that no row has
    assert class_ids(corpus(None)).tolist() == []


class Line(nn.Linear):
    def forward(self, kind, inputs):
        return super().forward(inputs)


def test_the_joint_method_s_classifier_has_an_output_a_class():
    terms = {}
    for labels, ids in ((PLAIN, torch.arange(3)), (torch.tensor([10, 20, 30])[PLAIN], torch.tensor([10, 20, 30]))):
        torch.manual_seed(0)
        setting = Setting("joint", (Column("v", "vector"),), MethodConfig(), 3, ids=ids)
        method = JointMethod(Line(6, 4), 4, setting)
        assert method.network.head.weight.shape == (3, 4)
        assert "ids" not in method.state_dict()
        known = labels.clone()
        known[:5] = -1
        terms[len(terms)] = method(Batch(torch.arange(60), {"v": INPUTS}, known))
    torch.testing.assert_close(terms[0], terms[1])


@pytest.mark.parametrize("method", ["joint", "supcon"])
def test_training_with_ids_far_apart_is_training_with_ids_from_0(tmp_path, method):
    found = {}
    for name, labels in (("near", PLAIN), ("far", torch.tensor([10, 20, 30])[PLAIN])):
        run = nf.train(
            corpus=corpus(labels), method=method, steps=4, batch_size=30, show=False, out=str(tmp_path / name)
        )
        found[name] = run.metrics, run.environment["model"]
    assert found["near"] == found["far"]


# ---- prototypes -----------------------------------------------------------------------------------------------------


def test_a_class_that_no_row_was_seen_of_is_never_predicted():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    prototypes = Prototypes(31)
    prototypes.update(z, torch.tensor([10, 20]))
    scores = prototypes(-z)  # opposite to one, at right angles to the other
    assert scores.argmax(1).tolist() == [20, 10]
    assert scores[:, [10, 20]].tolist() == [[-10.0, 0.0], [0.0, -10.0]]
    assert scores[:, 0].tolist() == [-20.0, -20.0]


def test_joint_s_prototypes_of_ids_far_apart_predict_those_alone():
    z = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) + 3
    criterion = nf.Joint(nn.CrossEntropyLoss(), nf.SupConLoss(), readout="prototypes")
    criterion.fit_prototypes(z, FAR)
    assert set(criterion.predict(-z).tolist()) <= {10, 20, 30}
    assert criterion.logits(z, torch.randn(60, 31)).isfinite().all()
