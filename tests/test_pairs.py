"""Who belongs with whom: every constructor against a table written by hand, and tiles against the whole."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import Relation
from pair_cases import NAN, filled, some_pairs

pytestmark = pytest.mark.usefixtures("unchecked")  # the package's own errors, not those of the shapes in its types

THREE = torch.tensor([0, 0, 1])
SOFT = torch.tensor([[0.0, 0.5, NAN], [2.0, 0.0, 1.0]])
TABLES: list[tuple[str, Pairs, str]] = [
    # by label
    ("labels", Pairs.by_label(torch.tensor([0, 1, 0])), "+ - + / - + - / + - +"),
    ("labels of both", Pairs.by_label(torch.tensor([0, 1]), torch.tensor([1, 1, 0])), "- - + / + + -"),
    ("unknown", Pairs.by_label(torch.tensor([0, -1, 0, -1])), "+ . + . / . . . . / + . + . / . . . ."),
    ("unknown of different kinds", Pairs.by_label(torch.tensor([-1, -2, 3])), ". . . / . . . / . . +"),
    (
        "unknown are negatives",
        Pairs.by_label(torch.tensor([0, -1, 0, -1]), unknown="negative"),
        "+ - + - / - + - - / + - + - / - - - +",
    ),
    (
        "unknown are negatives, of both",
        Pairs.by_label(torch.tensor([5, -1]), torch.tensor([-1, 5, -1]), unknown="negative"),
        "- + - / - - -",
    ),
    ("all unknown", Pairs.by_label(torch.tensor([-1, -1]), unknown="negative"), "+ - / - +"),
    ("one-hot", Pairs.by_label(torch.tensor([[1, 0], [0, 1], [1, 0]])), "+ - + / - + - / + - +"),
    ("multi-hot", Pairs.by_label(torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1]])), "+ + - / + + + / - + +"),
    ("booleans", Pairs.by_label(torch.tensor([[True, False], [True, True], [False, True]])), "+ + - / + + + / - + +"),
    ("no class at all", Pairs.by_label(torch.tensor([[0, 0], [0, 1]])), "- - / - +"),
    ("soft", Pairs.by_label(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])), "+ + + / + + - / + - +"),
    # by place
    ("views", Pairs.views(2), "+ - + - / - + - + / + - + - / - + - +"),
    ("three views", Pairs.views(1, 3), "+ + + / + + + / + + +"),
    ("aligned", Pairs.aligned(3), "+ - - / - + - / - - +"),
    # some rows of a batch with all of it
    ("own rows further on", replace(Pairs.from_ids(torch.tensor([0, 1]), torch.tensor([1, 0, 1, 0])), own=1), "- . - + / + - . -"),
    ("some have none", replace(Pairs.from_ids(torch.tensor([0, 1, 0]), torch.tensor([1, 0, 0])), own=2), "- + . / + - - / - + +"),
    ("own rows before", replace(Pairs.from_ids(torch.tensor([0, 1, 0, 0]), torch.tensor([1, 0])), own=-1), "- + / . - / - . / - +"),
    ("no own rows", replace(Pairs.from_ids(THREE, THREE[:2]), own=5), "+ + / + + / - -"),
    # by id
    ("ids", Pairs.from_ids(torch.tensor([7, 8]), torch.tensor([8, 8, 7])), "- - + / + + -"),
    ("ids, unknown", Pairs.from_ids(torch.tensor([7, -3]), torch.tensor([-3, 7])), ". + / . ."),
    (
        "ids, and others that spare",
        Pairs.sparing(torch.tensor([[7, 1], [8, -1]]), torch.tensor([[7, 2], [9, 1], [8, -1], [-1, -1]])),
        "+ . - - / - - + -",
    ),
    # by matrix
    ("matrix of booleans", Pairs.from_matrix(torch.tensor([[True, False], [False, False]])), "+ - / - -"),
    ("matrix of integers", Pairs.from_matrix(torch.tensor([[0, 1, 1]])), "- + +"),
    ("matrix of weights", Pairs.from_matrix(SOFT), "- + . / + - +"),
    (
        "sparse matrix",
        Pairs.from_matrix(
            torch.sparse_coo_tensor(
                torch.tensor([[1, 0, 1], [0, 1, 2]]), [2.0, NAN, 0.5], (2, 3), check_invariants=True
            )
        ),
        "- . - / + - +",
    ),
    ("sparse booleans", Pairs.from_matrix(torch.tensor([[True, False], [False, True]]).to_sparse()), "+ - / - +"),
    (
        "sparse, said twice",
        Pairs.from_matrix(torch.sparse_coo_tensor(torch.tensor([[0, 0], [1, 1]]), [1.0, 1.0], (1, 2), check_invariants=True)),
        "- +",
    ),
    # unions
    ("label or view", Pairs.by_label(torch.tensor([0, 0, 1, 1])) | Pairs.views(2), "+ + + - / + + - + / + - + + / - + + +"),
    (
        "positive wins over ignored",
        Pairs.by_label(torch.tensor([0, 0, 1, -1])) | Pairs.views(2),
        "+ + + . / + + - + / + - + . / . + . +",
    ),
    ("ignored wins over negative", Pairs.from_matrix(SOFT) | Pairs.from_matrix(SOFT.nan_to_num(0.0)), "- + . / + - +"),
    (
        "ignored by either",
        Pairs.from_matrix(torch.tensor([[NAN, 0.0, NAN]])) | Pairs.from_matrix(torch.tensor([[0.0, NAN, 1.0]])),
        ". . +",
    ),
    ("of three", Pairs.aligned(2) | Pairs.from_matrix(torch.tensor([[0, 1], [0, 0]])) | Pairs.aligned(2), "+ + / - +"),
    # without one's own sample
    ("itself", Pairs.by_label(torch.tensor([0, 1, 0])).excluding_self(), ". - + / - . - / + - ."),
    ("itself, with other ids", Pairs.from_ids(torch.tensor([0, 1, 0]), torch.tensor([1, 1, 0])).excluding_self(),
     ". - + / + . - / - - ."),
    (
        "own rows",
        Pairs.aligned(3).excluding(torch.tensor([4, 5, 6]), torch.tensor([6, 5, 9])),
        "+ - - / - . - / . - +",
    ),
    (
        "itself and own rows",
        Pairs.views(2).excluding(torch.arange(4), torch.tensor([1, 9, 9, 0])).excluding_self(),
        ". - + . / . . - + / + - . - / - + - .",
    ),
    (
        "a union keeps what is left out",
        Pairs.aligned(3).excluding(torch.arange(3), torch.tensor([1, 7, 7])) | Pairs.by_label(torch.zeros(3, dtype=torch.long)),
        "+ + + / . + + / + + +",
    ),
    # nothing at all
    ("no rows", Pairs.by_label(torch.zeros(0, dtype=torch.long)), ""),
]  # fmt: skip
EACH = pytest.mark.parametrize("pairs", [pairs for _, pairs, _ in TABLES], ids=[name for name, *_ in TABLES])


def rows(table: str) -> str:
    return table.replace(" / ", "\n")


@pytest.mark.parametrize(("pairs", "table"), [row[1:] for row in TABLES], ids=[name for name, *_ in TABLES])
def test_table(pairs, table):
    assert pairs.table() == rows(table)


@EACH
def test_seen_from_the_keys(pairs):
    marks = [row.split(" ") for row in pairs.table().split("\n")]
    if pairs.shape[0]:
        assert pairs.T.table() == "\n".join(" ".join(row) for row in zip(*marks))
        assert_same(pairs.T.whole(), [None if x is None else x.T for x in filled(pairs.whole())])
    assert pairs.T.shape == pairs.shape[::-1]


@EACH
def test_symmetric_only_where_it_is(pairs):
    """It need not know, but may not be wrong: half of the tiles would be skipped."""
    if pairs.symmetric:
        assert pairs.T.table() == pairs.table()


@EACH
def test_among_some_of_the_rows(pairs):
    n, m = pairs.shape
    if not n:
        return
    for run in (slice(0, m), slice(1, m), slice(1, 2), slice(m, m)):
        if run.start <= run.stop <= m:
            assert_same(pairs.among(run).whole(), [None if x is None else x[:, run] for x in filled(pairs.whole())])
    if not (pairs.itself and pairs.rows):
        queries, keys = torch.tensor([n - 1, 0, 0]), torch.arange(m).flip(0)[:2]
        wanted = [None if x is None else x[queries][:, keys] for x in filled(pairs.whole())]
        assert_same(pairs.take(queries, keys).whole(), wanted)
    if n == m:  # a permutation of both sides keeps everything, one's own sample included
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        taken = pairs.take(order, order)
        assert_same(taken.whole(), [None if x is None else x[order][:, order] for x in filled(pairs.whole())])
        assert taken.symmetric == pairs.symmetric


def assert_same(relation: Relation, wanted: list[Tensor | None]) -> None:
    for a, b in zip(filled(relation), wanted):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


class TestWeights:
    def test_of_a_matrix(self):
        weight = Pairs.from_matrix(SOFT).whole().weight
        assert weight is not None
        assert weight.tolist() == [[0.0, 0.5, 0.0], [2.0, 0.0, 1.0]]

    @pytest.mark.parametrize("matrix", [torch.eye(2), torch.eye(2).to_sparse(), torch.eye(2) > 0, torch.eye(2).long()])
    def test_none_where_all_are_one(self, matrix):
        assert Pairs.from_matrix(matrix).whole().weight is None

    def test_of_soft_labels(self):
        weight = Pairs.by_label(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).whole().weight
        assert weight is not None
        assert weight.tolist() == [[0.5, 0.5], [0.5, 1.0]]

    def test_sets_of_labels_have_none(self):
        assert Pairs.by_label(torch.tensor([[1, 1], [1, 1]])).whole().weight is None

    def test_the_larger_counts_in_a_union(self):
        """And 1 where a side without weights is positive."""
        united = Pairs.from_matrix(SOFT) | Pairs.from_ids(torch.tensor([1, 2]), torch.tensor([2, 1, 2]))
        weight = united.whole().weight
        assert weight is not None
        assert weight.tolist() == [[0.0, 1.0, 0.0], [2.0, 0.0, 1.0]]

    def test_of_a_union_in_float64(self):
        """Weights keep their precision."""
        third = torch.tensor([[1.0, 1.0 / 3.0]], dtype=torch.float64)
        weight = (Pairs.from_matrix(third) | Pairs.from_matrix(third / 2)).whole().weight
        assert weight is not None
        torch.testing.assert_close(weight, third, rtol=0, atol=0)

    def test_what_is_left_out_weighs_nothing(self):
        weight = Pairs.from_matrix(3.0 * torch.ones(2, 2)).excluding_self().whole().weight
        assert weight is not None
        assert weight.tolist() == [[0.0, 3.0], [3.0, 0.0]]


class TestIds:
    def test_large_ones_are_not_confused(self):
        """As they would be in float32: above 2²⁴ its integers are even."""
        ids = torch.tensor([2**24, 2**24 + 1, 2**53, 2**53 + 1, 2**62, 2**62 + 1])
        assert Pairs.by_label(ids).table() == Pairs.aligned(6).table()

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
    def test_of_every_integer_type(self, dtype):
        assert Pairs.by_label(torch.tensor([0, 1, 0]).to(dtype)).table() == rows("+ - + / - + - / + - +")

    def test_of_different_types_on_the_two_sides(self):
        pairs = Pairs.by_label(torch.tensor([0, 200], dtype=torch.uint8), torch.tensor([200, 0], dtype=torch.int32))
        assert pairs.table() == rows("- + / + -")

    def test_of_a_list(self):
        assert Pairs.by_label([0, 1, 0]).table() == rows("+ - + / - + - / + - +")  # pyright: ignore[reportArgumentType]

    def test_fresh_ones_for_the_unknown_are_unlike_all_others(self):
        """Even where the labels are the largest integers that there are."""
        labels = torch.tensor([2**63 - 1, -1, -1, 0])
        assert Pairs.by_label(labels, unknown="negative").table() == rows("+ - - - / - + - - / - - + - / - - - +")

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64])
    def test_label_sets_of_every_integer_type(self, dtype):
        """Their overlap is counted without overflow."""
        sets = torch.ones(2, 256, dtype=dtype)
        assert Pairs.by_label(sets).table() == rows("+ + / + +")


# ---- tiles ----------------------------------------------------------------------------------------------------------

size = st.integers(1, 9)
seed = st.integers(0, 2**16)


kinds = st.lists(st.sampled_from(["ids", "several ids", "matrix", "sparse", "sets", "soft"]), min_size=1, max_size=3)


@given(
    kinds=kinds,
    n=size,
    m=size,
    high=size,
    wide=size,
    seed=seed,
    first=st.none() | st.integers(-4, 4),
    own=st.booleans(),
)
def test_tiles_are_the_whole(kinds, n, m, high, wide, seed, first, own):
    """Whatever the relation is made of, and however it is cut."""
    pairs = some_pairs(kinds[0], n, m, seed)
    for k, kind in enumerate(kinds[1:]):
        pairs = pairs | some_pairs(kind, n, m, seed + k + 1)
    pairs = replace(pairs, own=first)
    pairs = pairs.excluding(torch.arange(n) % 4, torch.arange(m) % 3) if own else pairs
    whole = filled(pairs.whole())
    positive, ignored, weight = whole
    assert positive is not None
    assert ignored is not None
    assert not (positive & ignored).any()
    assert weight is None or torch.equal(weight > 0, positive)
    for top in range(0, n, high):
        for left in range(0, m, wide):
            i, j = slice(top, min(top + high, n)), slice(left, min(left + wide, m))
            assert_same(pairs.relation(i, j), [None if x is None else x[i, j] for x in whole])


@given(kind=st.sampled_from(["ids", "matrix", "sparse", "sets", "soft"]), n=size, m=size, seed=seed)
def test_union_is_what_its_rule_says(kind, n, m, seed):
    """Entry by entry: positive where either is; else ignored where either is; else negative."""
    a, b = some_pairs(kind, n, m, seed), some_pairs("ids", n, m, seed + 1)
    marks = [[row.split(" ") for row in pairs.table().split("\n")] for pairs in (a, b, a | b)]
    for left, right, united in zip(*([x for row in mark for x in row] for mark in marks)):
        assert united == ("+" if "+" in (left, right) else "." if "." in (left, right) else "-")


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_rows_and_columns():
    matrix = torch.tensor([[0.0, 1.0, NAN], [3.0, 0.0, 0.0]])
    for sparse in (matrix.to_sparse_csr(), matrix.to_sparse_csc()):
        assert_same(Pairs.from_matrix(sparse).whole(), filled(Pairs.from_matrix(matrix).whole()))


def test_relation_of_ids_is_no_matrix():
    """The constructors by id hold O(n)."""
    labels = torch.tensor([3, -1, 3, 0, 1])
    for pairs in (
        Pairs.views(5), Pairs.aligned(5), Pairs.by_label(labels), Pairs.by_label(labels, unknown="negative")
    ):  # fmt: skip
        (part,) = pairs.parts
        assert all(x.ndim == 1 for x in vars(part).values() if isinstance(x, Tensor))


@EACH
@pytest.mark.parametrize("rule", ["candidates", "positives", "negatives"])
def test_counts(pairs, rule):
    """What the fast counts by id say is what the table shows (weights for positives)."""
    positive, ignored, weight = filled(pairs.whole())
    assert positive is not None
    assert ignored is not None
    wanted = {
        "candidates": ~ignored,
        "negatives": ~ignored & ~positive,
        "positives": positive if weight is None else weight,
    }
    torch.testing.assert_close(pairs.count(rule), wanted[rule].sum(1).float(), rtol=1e-6, atol=0)


# ---- errors ---------------------------------------------------------------------------------------------------------

ERRORS: list[tuple[Callable[[], object], type[Exception], tuple[str, ...]]] = [
    (lambda: Pairs.by_label(THREE.float()), TypeError, ("float32", "integers", "labels.long()")),
    (lambda: Pairs.by_label(THREE, THREE.double()), TypeError, ("float64", "integers")),
    (lambda: Pairs.by_label(THREE.view(1, 1, 3)), ValueError, ("(1, 1, 3)", "(n,)", "(n, classes)")),
    (lambda: Pairs.by_label(THREE, torch.eye(3)), ValueError, ("(3, 3)", "(n,)")),
    (lambda: Pairs.by_label(torch.eye(3), torch.eye(4)), ValueError, ("3", "4", "classes")),
    (lambda: Pairs.by_label(THREE, unknown="positive"), ValueError, ("positive", "'ignore'", "'negative'")),  # pyright: ignore[reportArgumentType]
    (lambda: Pairs.by_label(torch.tensor([[0.5, NAN]])), ValueError, ("soft labels", "NaN or below 0")),
    (lambda: Pairs.by_label(torch.tensor([[0.5, -0.5]])), ValueError, ("soft labels", "below 0")),
    (lambda: Pairs.by_label(torch.tensor([[1, -1]])), ValueError, ("below 0",)),
    (lambda: Pairs.from_ids(THREE.float(), THREE), TypeError, ("float32", "integers (n,)")),
    (lambda: Pairs.from_ids(THREE, THREE[None]), TypeError, ("(1, 3)", "(m,)")),
    (lambda: Pairs.from_matrix(THREE), ValueError, ("(3,)", "matrix")),
    (lambda: Pairs.from_matrix(torch.tensor([[-1.0]])), ValueError, ("below 0", "NaN for ignored")),
    (lambda: Pairs.from_matrix(torch.tensor([[math.inf]])), ValueError, ("infinite",)),
    (lambda: Pairs.from_matrix(torch.tensor([[-1.0]]).to_sparse()), ValueError, ("below 0",)),
    (lambda: Pairs.aligned(3) | Pairs.aligned(4), ValueError, ("(3, 3)", "(4, 4)", "same rows")),
    (
        lambda: Pairs.aligned(3).excluding(THREE, THREE) | Pairs.aligned(3).excluding(THREE, THREE),
        ValueError,
        ("both", "unite first"),
    ),
    (
        lambda: Pairs.aligned(3).excluding(THREE, THREE).excluding_self().take(THREE, THREE[:2]),
        ValueError,
        ("by place and by id", "the same of queries and keys"),
    ),
    (lambda: Pairs.aligned(3).excluding_self() | replace(Pairs.aligned(3), own=1), ValueError, ("key 0", "key 1")),
    (lambda: Pairs.aligned(3).excluding(THREE, THREE[:2]), ValueError, ("3 and 2", "3 × 3", "one id a query")),
    (lambda: Pairs.by_label(THREE, THREE[:2]).excluding_self(), ValueError, ("(3, 2)", "themselves")),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), ERRORS)
def test_errors_say_what_was_wanted(call, error, words):
    with pytest.raises(error, match=re.compile(".*".join(re.escape(word) for word in words), re.S)):
        call()
