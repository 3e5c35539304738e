"""What measures are given: arrays as they come, cut-offs of every form, and refusals that say what was wanted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import nearfar as nf
from nearfar.diagnostics.collapse import collapse
from nearfar.diagnostics.geometry import class_alignment, similarity_histogram
from nearfar.evaluation.clustering import clustering
from nearfar.evaluation.knn import knn_predict, nearest
from nearfar.evaluation.probe import linear_probe
from nearfar.evaluation.retrieval import pair_retrieval, relevance_retrieval, retrieval
from nearfar.evaluation.similarity import pearson, spearman, sts
from nearfar.evaluation.verification import calibrate, listed_scores, pair_scores, roc

pytestmark = pytest.mark.usefixtures("unchecked")  # what users pass is no tensor, as the types in the package have it

Z, OTHER = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0)).double()
Y = torch.arange(12) % 3
TASKS = ("knn", "retrieval")


def refused(call: Callable[[], object], *words: str, error: Any = (TypeError, ValueError)) -> None:
    """The call raises, and its message has every word, in this order."""
    with pytest.raises(error, match=re.compile(".*".join(re.escape(w) for w in words), re.S)):
        call()


@pytest.mark.parametrize(
    "make",
    [
        lambda z: np.ascontiguousarray(z[::-1])[::-1],
        lambda z: z.astype(">f8"),
        lambda z: z.astype(np.longdouble),
        np.asfortranarray,
        lambda z: np.broadcast_to(z, z.shape),
    ],
    ids=["turned round", "another byte order", "long double", "columns first", "read only"],
)
def test_arrays_of_every_layout_are_measured_alike(make):
    rows, others = make(Z.numpy()), make(OTHER.numpy())
    wanted, found = nf.evaluate(Z, Y, tasks=TASKS, k=3), nf.evaluate(rows, Y.numpy(), tasks=TASKS, k=3)
    assert found.to_dict() == wanted.to_dict()
    wanted = nf.evaluate(Z, Y, gallery=(OTHER, Y), train=(OTHER, Y), tasks=TASKS, k=3)
    assert nf.evaluate(rows, Y, gallery=(others, Y), train=[others, Y], tasks=TASKS, k=3).to_dict() == wanted.to_dict()
    assert nf.evaluate(rows, pairs=others).to_dict() == nf.evaluate(Z, pairs=OTHER).to_dict()


@pytest.mark.parametrize(
    "ks",
    [np.array([5, 1]), torch.tensor([1, 5]), [np.int64(5), 1, 5], {1, 5}, (k for k in (1, 5))],
    ids=["array", "tensor", "list", "set", "generator"],
)
def test_cut_offs_of_every_form(ks):
    found = nf.evaluate(Z, Y, ks=ks, k=np.int64(3), tasks="retrieval")
    wanted = nf.evaluate(Z, Y, ks=(1, 5), tasks=("retrieval",))
    assert found.to_dict() == wanted.to_dict()
    assert retrieval(Z, Y, ks=np.int64(2)).scores == retrieval(Z, Y, ks=(2,)).scores


@pytest.mark.parametrize(
    "ks", [0, (0,), [], "15", None, 2.5, [1.0], [True], -1, ["1"], math.nan, [[1]], {"1": 1}], ids=str
)
def test_cut_offs_that_are_none_are_refused(ks):
    refused(lambda: nf.evaluate(Z, Y, ks=ks), "ks is", "whole numbers of 1 or more", error=ValueError)
    refused(lambda: retrieval(Z, Y, ks=ks), "ks is", "whole numbers of 1 or more", error=ValueError)


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, [3], math.nan], ids=str)
def test_whole_numbers_are_refused_by_name(value):
    refused(lambda: nf.evaluate(Z, Y, k=value), "k is", "whole number of at least 1", error=ValueError)
    refused(lambda: nf.evaluate(Z, Y, queries=value), "queries is", "whole number of at least 1", error=ValueError)
    refused(lambda: nearest(Z, k=value), "k is", error=ValueError)
    if value != 0:
        refused(lambda: nf.evaluate(Z, Y, seed=value), "seed is", "whole number of at least 0", error=ValueError)
        refused(lambda: calibrate(Z, torch.arange(12) % 6, seed=value), "seed is", error=ValueError)
        refused(lambda: pair_scores(Z, Y, seed=value), "seed is", error=ValueError)


WRONG: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"tasks": "knnn"}, ("tasks='knnn'", "'knn'")), ({"tasks": 3}, ("tasks=3",)), ({"metric": "cos"}, ("metric='cos'", "cosine")),
    ({"metric": None}, ("metric=None",)), ({"gallery": (OTHER,)}, ("gallery is a tuple of 1", "(rows, labels)")),
    ({"gallery": (OTHER, None)}, ("gallery labels", "NoneType")), ({"gallery": (None, Y)}, ("gallery is a NoneType",)),
    ({"gallery": (OTHER, Y[:5])}, ("gallery labels has shape (5,)", "12 rows")), ({"gallery": "x"}, ("gallery is a str",)),
    ({"train": OTHER}, ("train is a Tensor", "(rows, labels)")), ({"train": (OTHER, Y, Y)}, ("train is a tuple of 3",)),
    ({"train": (OTHER, Y.float())}, ("train labels", "float32", "integer class ids")),
    ({"prototypes": [[1.0]]}, ("prototypes is a list", "tensor")),
]  # fmt: skip


@pytest.mark.parametrize(("options", "words"), WRONG, ids=lambda x: str(x)[:30])
def test_what_goes_with_the_rows_is_refused_in_words(options, words):
    refused(lambda: nf.evaluate(Z, Y, **options), *words)


def test_scores_and_ids_of_every_form():
    scores, ids = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    wanted = nf.evaluate(Z, pairs=OTHER, scores=torch.tensor(scores).double()).to_dict()
    for given in (scores, np.array(scores)[::-1].copy()[::-1], pd.Series(scores)):
        assert nf.evaluate(Z, pairs=OTHER, scores=given).to_dict() == wanted
        assert sts(Z, OTHER, given) == sts(Z, OTHER, torch.tensor(scores).double())
    wanted = nf.evaluate(Z, pairs=OTHER, ids=torch.tensor(ids)).to_dict()
    for given in (ids, np.array(ids), torch.tensor(ids)[:, None], torch.tensor([ids, ids]).T):
        assert nf.evaluate(Z, pairs=OTHER, ids=given).to_dict() == wanted
    assert spearman([1, 2, 3], np.array([1.0, 5.0, 7.0])) == pearson([1, 2, 3], [2, 4, 6]) == 1.0  # pyright: ignore[reportArgumentType]
    assert roc([3, 2], [1, 0]).auc == 1.0  # pyright: ignore[reportArgumentType]
    assert len(listed_scores(Z, OTHER, [True, False] * 6).genuine) == 6  # pyright: ignore[reportArgumentType]
    for given, words in (
        (["a"] * 12, ("'a'",)), (torch.ones(12, 1), ("(12, 1)", "(n,)")), ([1.0, None] * 6, ("None",)),
        (torch.ones(12) + 0j, ("complex",)),
        (np.ma.array(np.ones(12), mask=[1] + [0] * 11), ("masked",)),
    ):  # fmt: skip
        refused(lambda given=given: nf.evaluate(Z, pairs=OTHER, scores=given), "scores", *words)
    refused(lambda: pair_retrieval(Z, OTHER, torch.ones(12, 2)), "ids are torch.float32 (12, 2)", "or (12, k)")  # pyright: ignore[reportArgumentType]


def test_lists_of_relevant_keys_of_every_form():
    wanted = relevance_retrieval(Z, OTHER, [[k] for k in range(12)], ks=(1,)).scores
    for relevant in (
        np.arange(12)[:, None],
        torch.arange(12)[:, None],
        [{np.int64(k): np.float32(1)} for k in range(12)],
    ):
        assert relevance_retrieval(Z, OTHER, relevant, ks=(1,)).scores == wanted  # pyright: ignore[reportArgumentType]
    for given in (0, None, ["a"], [0.5], {0: "a"}, {"a": 1.0}):
        refused(
            lambda given=given: relevance_retrieval(Z, OTHER, [given] * 12), "query 0", "rows of keys", error=ValueError
        )


def test_classes_of_diagnostics_of_every_form():
    wanted, counts = class_alignment(Z, Y), similarity_histogram(Z, Y, bins=5).positives.tolist()
    for labels in (Y.tolist(), Y.numpy(), Y[:, None], pd.Series(Y.numpy())):
        assert class_alignment(Z, labels) == wanted  # pyright: ignore[reportArgumentType]
        assert similarity_histogram(Z, labels, bins=5).positives.tolist() == counts  # pyright: ignore[reportArgumentType]
        assert collapse(Z, labels) == collapse(Z, Y)  # pyright: ignore[reportArgumentType]
    for labels, words in (
        (["a"] * 12, ("'a'",)),
        (Y[:5], ("(5,)", "(12,)")),
        (Y.float(), ("float32", "integer class ids")),
    ):
        for call in (class_alignment, similarity_histogram, collapse):
            refused(lambda call=call, labels=labels: call(Z, labels), "labels", *words)
    refused(lambda: collapse(Z, loss="1", candidates=4), "loss is '1'")  # pyright: ignore[reportArgumentType]
    refused(lambda: collapse(Z, loss=1.0, candidates=2.5), "candidates is 2.5")  # pyright: ignore[reportArgumentType]


def test_seeds_strengths_and_tasks_of_every_form():
    assert clustering(Z, Y, seeds=np.arange(3)) == clustering(Z, Y, seeds=(0, 1, 2))  # pyright: ignore[reportArgumentType]
    refused(lambda: clustering(Z, Y, seeds=(0.5,)), "seeds is 0.5")  # pyright: ignore[reportArgumentType]
    assert nf.evaluate(Z, Y, tasks=np.array(["knn"])).to_dict() == nf.evaluate(Z, Y, tasks="knn").to_dict()  # pyright: ignore[reportArgumentType]
    refused(lambda: nf.evaluate(Z, Y, ks=b"ab"), "ks is b'ab'")  # pyright: ignore[reportArgumentType]
    refused(lambda: linear_probe(Z, Y, Z, Y, strengths=[]), "no strengths")
    refused(lambda: linear_probe(Z, Y, Z, Y, strengths=["a"]), "strengths is 'a'")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("scale", [1e160, 1e-165])
def test_a_probe_of_rows_of_any_scale(scale):
    rows = torch.eye(3, dtype=torch.float64)[Y]
    assert linear_probe(scale * rows, Y, scale * rows, Y).accuracy == 1.0


def test_rows_that_query_and_keys_that_do_not_vote_in_every_form():
    wanted = retrieval(Z, Y, rows=torch.arange(6)).scores
    for rows in (pd.Series(range(6)), list(range(6)), np.arange(6)):
        assert retrieval(Z, Y, rows=rows).scores == wanted  # pyright: ignore[reportArgumentType]
    votes = knn_predict(Z, OTHER, Y, k=3, exclude=torch.arange(12))
    assert torch.equal(knn_predict(Z, OTHER, Y, k=3, exclude=np.arange(12)), votes)  # pyright: ignore[reportArgumentType]
    refused(lambda: knn_predict(Z, OTHER, Y, exclude=torch.arange(5)), "exclude has shape (5,)", "12 rows")
    refused(lambda: knn_predict(Z, OTHER, Y, exclude=torch.full((12,), 12)), "exclude names key 12", "0 to 11")
    assert nf.evaluate(Z, Y, tasks=np.array(TASKS)).to_dict() == nf.evaluate(Z, Y, tasks=TASKS).to_dict()  # pyright: ignore[reportArgumentType]
