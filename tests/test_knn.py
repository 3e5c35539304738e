"""Nearest neighbours: exact, the same however they are searched, with defined ties."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from nearfar.evaluation import among, neighbours
from nearfar.evaluation.knn import knn_accuracy, knn_predict, nearest

METRICS = ("cosine", "euclidean", "dot")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(neighbours.__file__).parents[2])}


def rows(n: int, d: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_definition(x: torch.Tensor, y: torch.Tensor, metric: str, k: int, exclude_self: bool = False, digits: int = 10):
    """Everything in float64 by NumPy, one stable sort a row: equal scores keep the order of their rows."""
    x, y = x.double().numpy(), y.double().numpy()
    products = (x[:, None] * y[None]).sum(2)
    scores = -np.sqrt(((x[:, None] - y[None]) ** 2).sum(2)) if metric == "euclidean" else products
    if metric == "cosine":
        lengths = np.sqrt((x**2).sum(1))[:, None] * np.sqrt((y**2).sum(1))[None]
        scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    if exclude_self:
        np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-np.round(scores, digits), axis=1, kind="stable")[:, :k]
    taken = np.take_along_axis(scores, order, 1)
    return (-taken if metric == "euclidean" else taken), order


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "m", "k"), [(1, 1, 1), (7, 5, 5), (40, 300, 20), (600, 900, 3)])
def test_they_are_the_definitions(metric, n, m, k):
    x, y = rows(n), rows(m, seed=1)
    scores, indices = nearest(x, y, k, metric)
    wanted, order = by_definition(x, y, metric, k)
    assert torch.equal(indices, torch.from_numpy(order))
    torch.testing.assert_close(scores.double(), torch.from_numpy(wanted), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("metric", "theirs"), [("cosine", "cosine"), ("euclidean", "euclidean")])
def test_they_are_scikit_learns(metric, theirs):
    z = rows(500)
    distances, order = NearestNeighbors(n_neighbors=11, algorithm="brute", metric=theirs).fit(z).kneighbors(z)
    scores, indices = nearest(z, k=10, metric=metric)
    assert torch.equal(indices, torch.from_numpy(order[:, 1:]))
    found = 1 - scores if metric == "cosine" else scores
    np.testing.assert_allclose(found, distances[:, 1:], atol=2e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_tiles_of_any_size_give_the_same(metric, monkeypatch):
    z = rows(700, dtype=torch.float32)
    z[350:] = z[:350]  # every row twice: ties everywhere
    whole = nearest(z, k=9, metric=metric)
    for columns, queries in ((64, 700), (97, 13), (8192, 1)):
        monkeypatch.setattr(neighbours, "_COLUMNS", columns)
        found = nearest(z, k=9, metric=metric, rows=queries)
        assert torch.equal(found.indices, whole.indices)
        assert torch.equal(found.scores, whole.scores)
    assert torch.equal(whole.indices, torch.from_numpy(by_definition(z, z, metric, 9, True)[1]))


@pytest.mark.parametrize("k", [3, 1500])
def test_threads_change_nothing_and_leave_nothing(k):
    z = rows(2100, 8).round(decimals=1)
    alone = nearest(z, k=k)
    try:
        torch.set_num_threads(2)
        together = nearest(z, k=k)
        some = neighbours.neighbour_blocks(z, z, 3)
        next(some)
        some.close()  # a search that is given up
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(alone.indices, together.indices)
    assert torch.equal(alone.scores, together.scores)


def test_a_mistake_in_a_thread_is_told(monkeypatch):
    def fail(*_):
        raise RuntimeError("no luck")

    monkeypatch.setattr(neighbours.Search, "_found", fail)
    try:
        torch.set_num_threads(2)
        with pytest.raises(RuntimeError, match="no luck"):
            nearest(rows(2000), k=1)
    finally:
        torch.set_num_threads(1)


def in_clusters(n):
    centres = rows(n // 50 + 1, seed=1).repeat_interleave(50, 0)[:n]
    return torch.nn.functional.normalize(centres + 0.3 * rows(n), dim=1)


def drifting(n):
    """Neighbours of a row stand beside it, and the last rows are the longest."""
    angle = torch.linspace(0, 3, n)
    return torch.stack([angle.cos(), angle.sin()], 1) * (1 + angle[:, None])


def with_twins_and_zeros(n):
    z = rows(n).round(decimals=1)
    z[n // 2 :] = z[: n - n // 2]
    z[::97] = 0.0
    return z


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("make", [in_clusters, drifting, with_twins_and_zeros])
@pytest.mark.parametrize("n", [1100, 1152])
def test_rows_among_themselves_find_what_queries_find(n, make, metric, threads, monkeypatch):
    z, seen = make(n), []
    both_sides = among.see_from_both_sides
    monkeypatch.setattr(among, "BLOCK", 192)
    monkeypatch.setattr(among, "see_from_both_sides", lambda *tile: seen.append(tile) or both_sides(*tile))
    try:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            found = nearest(z, k=3, metric=metric)
        assert len(seen) == 15  # pairs of six blocks
        asked = nearest(z, z.clone(), k=3, metric=metric, exclude_self=True)
    finally:
        torch.set_num_threads(1)
    assert len(seen) == 15
    assert torch.equal(found.indices, asked.indices)
    assert torch.equal(found.scores, asked.scores)
    if make is not drifting:  # whose cosines are told apart beyond the digits that the definition rounds to
        assert torch.equal(found.indices, torch.from_numpy(by_definition(z, z, metric, 3, True)[1]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [5, 60])
def test_all_rows_the_same_gives_the_lowest_indices(metric, k):
    z = torch.ones(5000, 8)
    found = nearest(z[:3], z, k, metric).indices
    assert torch.equal(found, torch.arange(k).expand(3, k))
    left = nearest(z, k=2, metric=metric).indices
    assert left[:3].tolist() == [[1, 2], [0, 2], [0, 1]]
    assert left[-1].tolist() == [0, 1]


@pytest.mark.parametrize("metric", METRICS)
def test_float32_products_do_not_decide_what_they_cannot(metric):
    """Keys apart by less than their rounding: the candidates of the rough search are not enough."""
    torch.manual_seed(0)
    base = torch.nn.functional.normalize(rows(1, 64, dtype=torch.float64), dim=1)
    z = base + 1e-4 * torch.randn(3000, 64, dtype=torch.float64)
    found = nearest(base, z, 7, metric)
    wanted, order = by_definition(base, z, metric, 7, digits=14)
    assert found.indices.tolist() == order.tolist()
    torch.testing.assert_close(found.scores, torch.from_numpy(wanted), rtol=0, atol=1e-14)


@pytest.mark.parametrize("metric", METRICS)
def test_fewer_neighbours_are_the_first_of_more(metric):
    z = rows(1500).round(decimals=0)  # many ties
    many = nearest(z, k=1499, metric=metric).indices  # by the other way: the whole order in float64
    for k in (1, 20, 200):
        assert torch.equal(nearest(z, k=k, metric=metric).indices, many[:, :k])


def test_distances_far_from_the_origin():
    z = rows(400, 8) + 1000.0
    assert torch.equal(
        nearest(z, k=5, metric="euclidean").indices, torch.from_numpy(by_definition(z, z, "euclidean", 5, True)[1])
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype):
    z = rows(200, dtype=dtype)
    found = nearest(z, k=3)
    assert found.scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(found.indices, torch.from_numpy(by_definition(z, z, "cosine", 3, True)[1]))


def test_huge_and_tiny_values():
    z = rows(300)
    for scale in (1e25, 1e-25):
        assert torch.equal(nearest(z * scale, k=5, metric="cosine").indices, nearest(z, k=5).indices)
        assert torch.equal(nearest(z * scale, k=5, metric="dot").indices, nearest(z, k=5, metric="dot").indices)


def test_a_zero_row_has_cosine_zero_with_all():
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    scores, indices = nearest(z, k=2)
    assert scores.tolist() == [[0.0, 0.0], [0.0, -1.0], [0.0, -1.0]]
    assert indices.tolist() == [[1, 2], [0, 2], [0, 1]]


@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from(METRICS))
def test_small_whole_numbers(seed, n, metric):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(-2, 3, (n, 3), generator=generator).float()
    k = int(torch.randint(1, n, (), generator=generator))
    assert torch.equal(
        nearest(z, k=k, metric=metric).indices, torch.from_numpy(by_definition(z, z, metric, k, True)[1])
    )


def test_autocast_changes_nothing():
    z = rows(300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest(z, k=5).indices, nearest(z.clone(), k=5).indices)
    found = nearest(z, k=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest(z, k=5).scores, found.scores)


def test_no_gradient_is_kept():
    assert not nearest(rows(10).requires_grad_(), k=2).scores.requires_grad


@pytest.mark.parametrize("metric", METRICS)
def test_faiss_finds_the_same(metric):
    pytest.importorskip("faiss", reason="faiss is not installed")
    z = rows(900)
    z[450:] = z[:450]
    assert torch.equal(nearest(z, k=5, metric=metric, backend="faiss").indices, nearest(z, k=5, metric=metric).indices)
    y = rows(50, seed=2)
    assert torch.equal(
        nearest(y, z, k=5, metric=metric, backend="faiss").indices, nearest(y, z, k=5, metric=metric).indices
    )


def test_memory_stays_far_below_the_score_matrix():
    """4,000 queries with 40,000 keys: the scores would take 640 MB, what is found 0.6 MB."""
    code = """
import resource, sys, torch
from nearfar.evaluation.knn import nearest
torch.set_num_threads(1)
z = torch.randn(40_000, 16)
nearest(z[:300], z, k=20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest(z[:4000], z, k=20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100e6


class TestWrongInput:
    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (lambda z: nearest(z, k=0), r"k is 0, but a query has 9 keys beside itself: pass k=1 to 9"),
            (lambda z: nearest(z, k=10), r"k is 10, but a query has 9 keys"),
            (lambda z: nearest(z, z[:5], k=6), r"k is 6, but a query has 5 keys"),
            (lambda z: nearest(z[:1], k=1), r"0 keys beside itself"),
            (lambda z: nearest(z, z[:, :3], k=1), r"the same width"),
            (lambda z: nearest(z, k=1, metric="cos"), r"did you mean 'cosine'"),
            (lambda z: nearest(z, k=1, backend="fais"), r"did you mean 'faiss'"),
            (lambda z: nearest(z[:0], z, k=1), r"at least one row"),
            (lambda z: nearest(z / 0, k=1), r"NaN or infinity in 10 of 10 rows, first in row 0"),
            (lambda z: nearest(z, z[:5], k=1, exclude_self=True), r"key i is query i"),
            (lambda z: nearest(z, k=1, rows=0), r"rows is 0"),
        ],
    )
    def test_says_what_is_wrong(self, call, says, unchecked):
        with pytest.raises(ValueError, match=says):
            call(rows(10))

    def test_no_tensor(self, unchecked):
        with pytest.raises(TypeError, match="queries is a ndarray"):
            nearest(np.zeros((3, 2)))

    def test_without_faiss(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "faiss", None)
        with pytest.raises(ImportError, match=r"pip install \"nearfar\[faiss\]\""):
            nearest(rows(10), k=1, backend="faiss")


class TestClassifier:
    def test_majority_is_scikit_learns(self):
        z, y = rows(400, 4), torch.arange(400) % 2  # two classes and an odd number of votes: no ties
        theirs = KNeighborsClassifier(15, algorithm="brute").fit(z[:300], y[:300]).predict(z[300:])
        ours = knn_predict(z[300:], z[:300], y[:300], 15, weights="uniform", metric="euclidean")
        assert ours.tolist() == theirs.tolist()

    def test_weights_are_the_papers(self):
        """Instance discrimination's reference code: one-hot votes times exp(sim / T), summed."""
        torch.manual_seed(0)
        z, y = torch.nn.functional.normalize(rows(200, 8), dim=1), torch.randint(0, 5, (200,))
        ours = knn_predict(z[100:], z[:100], y[:100], 20)
        similar, index = (z[100:] @ z[:100].T).topk(20, 1)
        votes = (torch.nn.functional.one_hot(y[index], 5) * (similar / 0.07).exp()[:, :, None]).sum(1)
        assert torch.equal(ours, votes.argmax(1))

    def test_equal_votes_go_to_the_nearest(self):
        keys = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
        assert knn_predict(keys[:1], keys, torch.tensor([5, 3, 3, 5]), 4, weights="uniform").tolist() == [5]
        assert knn_predict(keys[:1], keys, torch.tensor([3, 5, 5, 3]), 4, weights="uniform").tolist() == [3]

    def test_low_temperatures_do_not_overflow(self):
        z = rows(50)
        assert torch.equal(
            knn_predict(z, None, torch.arange(50) % 3, 5, temperature=1e-6),
            knn_predict(z, None, torch.arange(50) % 3, 1),
        )

    def test_leave_one_out_is_each_row_by_the_others(self):
        z, y = rows(60, 4), torch.arange(60) % 3
        others = [torch.arange(60) != i for i in range(60)]
        alone = torch.cat([knn_predict(z[i : i + 1], z[o], y[o], 7) for i, o in enumerate(others)])
        assert torch.equal(knn_predict(z, None, y, 7), alone)

    def test_unknown_labels_do_not_vote(self):
        z, y = rows(60, 4), torch.arange(60) % 3
        hidden = y.clone()
        hidden[::2] = -1
        seen = hidden >= 0
        found = knn_predict(z, None, hidden, 5)
        assert torch.equal(found[seen], knn_predict(z[seen], None, y[seen], 5))
        assert torch.equal(found[~seen], knn_predict(z[~seen], z[seen], y[seen], 5))

    def test_large_ids_stay_apart(self):
        """2²⁴ and 2²⁴ + 1 are one number in float32."""
        z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        y = torch.tensor([2**24, 2**24, 2**24 + 1, 2**24 + 1])
        assert knn_predict(z, None, y, 1).tolist() == y.tolist()

    def test_accuracy_leaves_out_what_is_unknown(self):
        z = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.5, 0.5]])
        assert knn_accuracy(z, torch.tensor([0, 0, 1, 1, -1]), k=1) == 1.0

    def test_more_voters_than_there_are(self):
        assert knn_predict(torch.eye(3), None, torch.tensor([0, 1, 1]), 50).shape == (3,)

    @pytest.mark.parametrize(
        ("labels", "says"),
        [
            (torch.tensor([-1, -1, -1]), "0 of 3 keys have a label"),
            (torch.tensor([1, -1, -1]), "1 of 3 keys have a label"),
            (torch.tensor([0.0, 1.0, 1.0]), "integer class ids were wanted"),
            (torch.tensor([0, 1]), "one id a row"),
        ],
    )
    def test_labels_that_will_not_do(self, labels, says, unchecked):
        with pytest.raises(ValueError, match=says):
            knn_predict(torch.eye(3), None, labels, 1)
