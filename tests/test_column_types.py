"""Ids and rows in every type that arrays and columns have: unsigned and narrow integers, Arrow's, NumPy's views."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import nearfar as nf
from nearfar.compare.config import CompareConfig
from nearfar.compare.inputs import make_task
from nearfar.encoders.embedder import Embedder
from nearfar.encoders.prototypes import class_sums
from nearfar.encoders.towers import build_tower
from nearfar.estimator import ContrastiveEncoder

pa = pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("unchecked")  # what users pass is no tensor, as the types in the package have it

Z = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
NAMES = ["cat", "dog", "bee"] * 4
LARGE = Y.numpy().astype(np.uint64) + np.uint64(2**63)


def knn(labels) -> float:
    return nf.evaluate(Z, labels, tasks=["knn"], k=2).measures[0].value


# ---- integers of 64 bits without a sign -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [LARGE, torch.from_numpy(LARGE), LARGE.tolist(), LARGE[:, None]], ids=["array", "tensor", "list", "column"]
)
def test_ids_beyond_int64_are_refused_with_the_remedy_and_never_wrap(given):
    joint = nf.Joint(nn.CrossEntropyLoss(), nf.SupConLoss(), readout="prototypes", num_classes=3)
    calls = (
        lambda: nf.SupConLoss()(Z, labels=given),
        lambda: nf.TripletLoss()(Z, labels=given),
        lambda: nf.ArcFaceLoss(3, 6)(Z, labels=given),
        lambda: nf.CenterLoss(3, 6)(Z, labels=given),
        lambda: nf.Pairs.by_label(given),
        lambda: nf.Pairs.from_ids(given, given),
        lambda: nf.PKSampler(given, 2, 2),
        lambda: joint(Z[:, :3], Y, labels=given, features=Z),
        lambda: joint.fit_prototypes(Z, given),
        lambda: nf.evaluate(Z, pairs=Z + 0.1, ids=given),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"2\*\*63 or more.*np\.unique\(ids, return_inverse=True\)\[1\]"):
            call()
    assert knn(given) == knn(Y)  # where names are taken, they are names


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.uint64]
)
@pytest.mark.parametrize("column", [False, True])
def test_every_type_of_integers_is_class_ids(dtype, column):
    given = Y.to(dtype)[:, None] if column else Y.to(dtype)
    assert float(nf.SupConLoss()(Z, labels=given)) == float(nf.SupConLoss()(Z, labels=Y))
    unit = nn.functional.normalize(Z)
    wanted = torch.stack([unit[k == Y].sum(0) for k in range(3)])
    torch.testing.assert_close(class_sums(Z, given, 3), wanted)
    joint = nf.Joint(lambda outputs, _: outputs.sum(), nf.SupConLoss(), readout="prototypes", num_classes=3)
    joint(Z[:, :3], given, features=Z)
    torch.testing.assert_close(joint.prototypes.sums, wanted)
    joint.fit_prototypes(Z, given)
    torch.testing.assert_close(joint.prototypes.sums, wanted)
    assert nf.Pairs.from_ids(given.reshape(-1), given.reshape(-1)).shape == (12, 12)


# ---- columns in which some are missing --------------------------------------------------------------------------------------


def test_columns_of_arrow_are_labels_and_nulls_are_unknown():
    whole = [pa.array(NAMES), pa.array(Y.numpy()), pa.chunked_array([NAMES]), pa.array(NAMES).dictionary_encode()]
    assert {knn(column) for column in whole} == {knn(Y)}
    wanted = nf.evaluate(Z[1:], Y[1:], tasks=["knn"], k=2).measures[0].value
    some = [None, *NAMES[1:]]
    for column in (
        pa.array(some),
        pa.array(some).dictionary_encode(),
        pa.array([None, *Y[1:].tolist()]),
        np.array([float("nan"), *NAMES[1:]], object),
    ):
        found = nf.evaluate(Z, column, tasks=["knn"], k=2)
        assert found.measures[0].value == wanted
        assert "1 rows without a label were left out" in found.notes
    for batch in nf.PKSampler(pa.array([None, *Y[1:].tolist()]), 3, 2, seed=0):
        assert 0 not in batch
        assert Y[batch].bincount().tolist() == [2, 2, 2]
    assert float(nf.SupConLoss()(Z, labels=pa.array(Y.numpy()))) == float(nf.SupConLoss()(Z, labels=Y))
    with pytest.raises(TypeError, match=r"'dog'.*np\.unique"):
        nf.SupConLoss()(Z, labels=pa.array(some))


def test_what_is_missing_has_its_own_remedy():
    missing = pd.Series([pd.NA, *Y[1:].tolist()], dtype="Int64")
    for labels in (missing, [None, *Y[1:].tolist()], [float("nan"), *Y[1:].tolist()]):
        with pytest.raises(TypeError, match=r"fillna\(-1\)"):
            nf.SupConLoss()(Z, labels=labels)
    expected = nf.SupConLoss()(Z, labels=torch.cat([torch.tensor([-1]), Y[1:]]))
    assert float(nf.SupConLoss()(Z, labels=missing.fillna(-1).astype(int))) == float(expected)
    grades = [0.1 * i for i in range(11)]
    for scores in ([None, *grades], [pd.NA, *grades], pd.array([pd.NA, *grades], dtype="Float64")):
        with pytest.raises((TypeError, ValueError), match=r"leave (out|such)") as told:
            nf.evaluate(Z, pairs=Z + 0.1, scores=scores)
        assert "−1" not in str(told.value)
        assert "filled" not in str(told.value)


# ---- rows -----------------------------------------------------------------------------------------------------------------


def test_views_of_numpy_are_rows_like_their_copies():
    rows = Z.numpy()
    for view in (rows[:, ::-1], rows[::-1], rows.astype(">f4"), np.asfortranarray(rows), rows.astype(np.longdouble)):
        copied = np.ascontiguousarray(view).astype(np.float32)
        assert nf.evaluate(view, Y, tasks=["knn"]).measures == nf.evaluate(copied, Y, tasks=["knn"]).measures
        first, second = (make_task((held, Y), CompareConfig()) for held in (view, copied))
        assert torch.equal(first.train.inputs, second.train.inputs)
        assert len(make_task((view, Y, view, Y), CompareConfig()).test) == 12
        encoder = ContrastiveEncoder(dim=4, epochs=1, hidden=8, random_state=0)
        np.testing.assert_allclose(
            encoder.fit(view, Y).transform(view), encoder.fit(copied, Y).transform(copied), atol=1e-6
        )
    frame = pd.DataFrame(rows)
    assert torch.equal(
        make_task((frame, Y), CompareConfig()).train.inputs, make_task((rows, Y), CompareConfig()).train.inputs
    )
    with pytest.raises(TypeError, match=r"complex.* wanted real numbers"):
        make_task((rows.astype(complex), Y), CompareConfig())


def test_an_encoder_takes_flipped_images():
    images = np.random.default_rng(0).random((12, 6, 6, 3), dtype=np.float32)
    encoder = ContrastiveEncoder(dim=4, epochs=1, random_state=0, views="none")
    for view in (images[..., ::-1], images[:, ::-1]):
        np.testing.assert_allclose(
            encoder.fit(view, Y).transform(view), encoder.fit(view.copy(), Y).transform(view.copy()), atol=1e-6
        )


def test_vectors_of_other_lengths_and_complex_ones_are_refused():
    towers = Embedder([build_tower("vector", {"name": "mlp", "shape": [6], "outputs": 4})])
    torch.testing.assert_close(towers.embed(Z.numpy()[:, ::-1]), towers.embed(Z.flip(1)))
    with pytest.raises(ValueError, match=r"items have shapes \(6,\) and \(5,\)"):
        towers.embed([Z[0], Z[0, :5]])
    with pytest.raises(TypeError, match="complex128: wanted real numbers"):
        towers.embed(Z.numpy().astype(complex))
