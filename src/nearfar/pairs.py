"""Who belongs with whom: a relation between queries and keys that is never held as a matrix.

Every (query, key) pair is *positive* (weight > 0), *negative*, or *ignored* (left out of both). The relation is a
rule over integer ids (or a matrix that the user already holds), evaluated a tile at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearfar.counts import Counts
from nearfar.given import are_sets, as_labels, as_tensor, at_least, ids_of, is_integer
from nearfar.rules import Ids, Matrix, Overlap, Relation, Sparing
from nearfar.types import Rule

EXACT = 2**24
"""Below it, floats tell all integers apart."""


Sides = tuple[Bool[Tensor, " n"] | None, Bool[Tensor, " m"] | None]
"""Some of the queries, and some of the keys; ``None``: none of them."""


def _any_negative(ids: Tensor) -> bool:
    return len(ids) > 0 and int(ids.min()) < 0


def _beyond_floats(ids: Tensor) -> bool:
    return len(ids) > 0 and not -EXACT < int(ids.min()) <= int(ids.max()) < EXACT


def _numbers(n: int, times: int, device: torch.device) -> Int[Tensor, " rows"]:
    numbers = torch.arange(n, device=device)
    return torch.cat([numbers] * times) if times > 1 else numbers  # in half the time of ``repeat``


@dataclass(frozen=True, eq=False)
class Pairs(Counts):
    """Who belongs with whom among ``n`` queries and ``m`` keys.

    Build one with :meth:`by_label`, :meth:`views`, :meth:`aligned`, :meth:`from_ids`, :meth:`sparing` or
    :meth:`from_matrix`; ``a | b`` unites positives (a pair that one side ignores and neither calls positive is ignored).

    Example:
        >>> import torch
        >>> from nearfar import Pairs
        >>> print((Pairs.by_label(torch.tensor([0, 0, 1, -1])) | Pairs.views(2)).table())
        + + + .
        + + - +
        + - + .
        . + . +

    Attributes:
        shape: ``(n, m)``.
    """

    shape: tuple[int, int]
    parts: tuple[Ids | Sparing | Overlap | Matrix, ...]
    rows: tuple[Int[Tensor, " n"], Int[Tensor, " m"]] | None = None
    own: int | None = None  # the key that is the first query's own sample, the next one the next query's: no partners
    missing: Sides | None = None  # queries and keys that are padding: all their pairs are ignored
    layout: int | None = None  # how many views of each sample stand behind one another (1: aligned), if that is all

    # ---- constructors -----------------------------------------------------------------------------------------------

    @classmethod
    def by_label(
        cls, labels: Tensor, keys: Tensor | None = None, *, unknown: Literal["ignore", "negative"] = "ignore"
    ) -> Pairs:
        """Rows with the same label belong together.

        Args:
            labels: Integer labels ``(n,)`` of the queries, or a column of them ``(n, 1)``; negative means unknown. Or
                ``(n, classes)``: label sets (booleans, or integers 0 and 1; positive where two rows share a class) or soft
                labels (floats; weighted by the inner product).
            keys: The keys' labels, same form; the queries' own by default.
            unknown: What becomes of pairs with an unknown label: ``"ignore"`` (default: nothing is known about them) or
                ``"negative"``.

        Raises:
            TypeError: For names, and for float labels ``(n,)``, which collide above 2²⁴.
            ValueError: For other shapes, integers other than 0 and 1 in a matrix, negative or NaN entries of soft labels, or an
                unknown name.
        """
        query = as_labels(labels)
        key = query if keys is None else as_labels(keys, query.device)
        if key.ndim != query.ndim:
            raise ValueError(
                f"labels have shape {tuple(query.shape)} and {tuple(key.shape)}; (n,) ids or (n, classes) weights of both "
                "sides were wanted"
            )
        if unknown not in ("ignore", "negative"):
            raise ValueError(f"unknown={unknown!r} is not known: 'ignore' or 'negative'")
        shape = (len(query), len(key))
        if query.ndim == 2:
            if query.shape[1] != key.shape[1]:
                raise ValueError(f"labels have {query.shape[1]} and {key.shape[1]} classes: both sides need the same")
            soft = query.is_floating_point() or key.is_floating_point()
            dtype = torch.promote_types(query.dtype, key.dtype) if soft else torch.float32
            query = query.to(dtype)
            return cls(shape, (Overlap(query, query if keys is None else key.to(dtype), soft),))
        query, key = query.long(), key.long()
        key = query if keys is None else key
        if unknown == "ignore":
            return cls.from_ids(query, key)
        # each unknown row gets an id of its own, below 0 where no label is
        own = keys is None
        query = torch.where(query < 0, -1 - torch.arange(shape[0], device=query.device), query)
        key = query if own else torch.where(key < 0, -1 - shape[0] - torch.arange(shape[1], device=key.device), key)
        return cls(shape, (Ids(query, key, False),))

    @classmethod
    def views(cls, n: int, views: int = 2, device: torch.device | str | None = None) -> Pairs:
        """The views of a sample belong together; rows are view-major (all first views, then all second ones)."""
        n, views = at_least("n", n, 0), at_least("views", views, 1)
        ids = _numbers(n, views, torch.device("cpu" if device is None else device))
        return cls((n * views, n * views), (Ids(ids, ids, False),), layout=views)

    @classmethod
    def aligned(cls, n: int, device: torch.device | str | None = None) -> Pairs:
        """Query ``i`` belongs with key ``i`` and with no other."""
        n = at_least("n", n, 0)
        ids = _numbers(n, 1, torch.device("cpu" if device is None else device))
        return cls((n, n), (Ids(ids, ids, False),), layout=1)

    @classmethod
    def from_ids(cls, query: Int[Tensor, " n"], key: Int[Tensor, " m"]) -> Pairs:
        """A query belongs with the keys that carry its id; a negative id is unknown, and its pairs are ignored."""
        own = key is query
        query = ids_of("query ids", query)
        key = query if own else ids_of("key ids", key, query.device)
        if (
            query.ndim != 1
            or key.ndim != 1
            or not all(is_integer(side) or side.dtype == torch.bool for side in (query, key))
        ):
            raise TypeError(
                f"ids are {query.dtype} {tuple(query.shape)} and {key.dtype} {tuple(key.shape)}; "
                "integers (n,) and (m,) were wanted"
            )
        unknown = torch.compiler.is_compiling() or _any_negative(query) or (key is not query and _any_negative(key))
        longs = query.long()
        return cls((len(query), len(key)), (Ids(longs, longs if key is query else key.long(), unknown),))

    @classmethod
    def sparing(cls, query: Int[Tensor, "n k"], key: Int[Tensor, "m k"]) -> Pairs:
        """A query belongs with the keys that carry its first id; those that share another of its ids are ignored.

        Ids are compared column by column; a negative one is carried by nobody else.

        Example:
            >>> print(Pairs.sparing(torch.tensor([[0, 5], [1, 5]]), torch.tensor([[0, -1], [2, 5], [2, -1]])).table())
            + . -
            - . -
        """
        own = key is query
        query = as_tensor("query ids", query, "integers (n, k)")
        key = query if own else as_tensor("key ids", key, "integers (m, k)", query.device)
        if query.ndim != 2 or key.ndim != 2 or query.shape[1] != key.shape[1]:
            raise ValueError(
                f"ids have shape {tuple(query.shape)} and {tuple(key.shape)}; (n, k) and (m, k) were wanted, a column a kind of id"
            )
        if not (is_integer(query) and is_integer(key)):
            raise TypeError(f"ids are {query.dtype} and {key.dtype}; integers were wanted")
        query, key = query.long(), key.long()
        return cls((len(query), len(key)), (Sparing(query, query if own else key),))

    @classmethod
    def from_matrix(cls, relation: Tensor) -> Pairs:
        """A relation that is at hand as a matrix ``(n, m)``, dense or sparse.

        Args:
            relation: Booleans or integers 0 and 1: negative or positive. Floats: above 0 is positive with that weight (softmax
                losses normalise the weights by row), 0 is negative, NaN is ignored.

        Raises:
            TypeError: If it holds no numbers.
            ValueError: If it is no matrix, a weight is negative or infinite, or an integer other than 0 and 1.
        """
        relation = as_tensor(
            "the relation", relation, "a matrix (queries, keys), such as a torch tensor, dense or sparse"
        )
        if relation.is_complex():
            raise TypeError(f"the relation is {relation.dtype}: booleans or real weights were wanted")
        if relation.ndim != 2:
            raise ValueError(f"the relation has shape {tuple(relation.shape)}; a matrix (queries, keys) was wanted")
        shape, sparse = (relation.shape[0], relation.shape[1]), relation.layout != torch.strided
        relation = relation.to_sparse_coo() if sparse else relation
        if is_integer(relation) and not are_sets(relation._values() if sparse else relation):
            raise ValueError(
                "the relation has integers other than 0 and 1, perhaps below 0: pass relation.float() for weights, relation > 0 "
                "where any of them belongs together"
            )
        relation = relation.coalesce() if sparse else relation
        entries = relation.values() if relation.is_sparse else relation
        known = False
        if entries.is_floating_point() and entries.numel():
            low, high = (float(end) for end in entries.detach().aminmax())  # NaN if there is any
            known = low >= 0 and high < math.inf
        if not known and ((entries < 0).any() or (entries.is_floating_point() and entries.isinf().any())):
            raise ValueError("the relation has a weight below 0 or infinite: use 0 for negative, NaN for ignored")
        return cls(shape, (Matrix(relation, _weighted(entries), known),))

    def __or__(self, other: Pairs) -> Pairs:
        """Unite the positives of two relations of one shape."""
        if not isinstance(other, Pairs):
            raise TypeError(f"cannot unite pairs with a {type(other).__name__}: build an nf.Pairs of it first")
        if self.shape != other.shape:
            raise ValueError(f"cannot unite pairs of shape {self.shape} with {other.shape}: both need the same rows")
        if self.rows is not None and other.rows is not None:
            raise ValueError("both relations leave out pairs by their rows: unite first, then call excluding(…) once")
        if None not in (self.own, other.own) and self.own != other.own:
            raise ValueError(f"own samples start at key {self.own} and at key {other.own}: both need the same")
        own = other.own if self.own is None else self.own
        missing = self.missing if other.missing is None else other.without(*(self.missing or (None, None))).missing
        parts = self.parts + other.parts
        return replace(self, parts=parts, rows=self.rows or other.rows, own=own, missing=missing, layout=None)

    def excluding(self, query_rows: Int[Tensor, " n"], key_rows: Int[Tensor, " m"]) -> Pairs:
        """Leave out the pairs whose rows are equal: there, the key is the query's own sample."""
        query_rows, key_rows = _row_ids("query_rows", query_rows), _row_ids("key_rows", key_rows)
        if (len(query_rows), len(key_rows)) != self.shape:
            raise ValueError(
                f"query_rows and key_rows have {len(query_rows)} and {len(key_rows)} entries but the pairs are "
                f"{self.shape[0]} × {self.shape[1]}: pass one id a query and one a key"
            )
        return replace(self, rows=(query_rows, key_rows))

    def excluding_self(self) -> Pairs:
        """The keys are the queries: leave out the diagonal."""
        if self.shape[0] != self.shape[1]:
            raise ValueError(f"pairs of shape {self.shape} were given for rows paired with themselves")
        return replace(self, own=0)

    def without(self, queries: Bool[Tensor, " n"] | None = None, keys: Bool[Tensor, " m"] | None = None) -> Pairs:
        """Leave out every pair of some rows, such as padding: they are nobody's positive, negative or candidate.

        Example:
            >>> print(Pairs.aligned(3).without(keys=torch.tensor([False, False, True])).table())
            + - .
            - + .
            - - .

        Args:
            queries: True for each query to leave out, ``(n,)``.
            keys: True for each key to leave out, ``(m,)``.

        Raises:
            ValueError: If they are no booleans, or not one a row.
        """
        queries, keys = (
            None if rows is None else as_tensor(name, rows, "one boolean a row", self.device)
            for name, rows in (("queries", queries), ("keys", keys))
        )
        for name, rows, size in zip(("queries", "keys"), (queries, keys), self.shape):
            if rows is not None and (rows.shape != (size,) or rows.dtype != torch.bool):
                raise ValueError(
                    f"{name} are {rows.dtype} {tuple(rows.shape)}; one boolean a row, ({size},), was wanted"
                )
        given = zip(self.missing or (None, None), (queries, keys))
        both = [new if old is None else old if new is None else old | new for old, new in given]
        return replace(self, missing=(both[0], both[1]))

    # ---- what the engine reads --------------------------------------------------------------------------------------

    @property
    def T(self) -> Pairs:
        """The relation seen from the keys."""
        rows = None if self.rows is None else self.rows[::-1]
        own = None if self.own is None else -self.own
        parts = tuple(part.flip() for part in self.parts)
        missing = None if self.missing is None else self.missing[::-1]
        return replace(self, shape=self.shape[::-1], parts=parts, rows=rows, own=own, missing=missing)

    @property
    def symmetric(self) -> bool:
        """Whether the relation is known to be its own transpose, as ids of one set of rows are."""
        return self.own == 0 and self.rows is None and self.missing is None and all(part.own for part in self.parts)

    @property
    def row_by_row(self) -> bool:
        """Whether query ``i`` belongs with key ``i``, and with no other, and no pair is ignored."""
        return self.layout == 1 and self.own is None and self.rows is None and self.missing is None

    @property
    def matrix(self) -> Float[Tensor, "n m"] | None:
        """The weights of all pairs, where they are at hand and no pair is ignored, but a sample with itself."""
        part = self.parts[0]
        if len(self.parts) > 1 or self.rows is not None or self.missing is not None or not isinstance(part, Matrix):
            return None
        return part.values if part.known and part.weighted and not part.values.is_sparse else None

    def classes(self, dtype: torch.dtype) -> tuple[Float[Tensor, " n"], Float[Tensor, " m"]] | None:
        """The ids as floats, where they alone define the relation: tiles compare these four times as fast.

        ``None`` if there are other rules, or more ids than the floats can tell apart; or if a query's own sample
        carries another id than the query, so that ids would take it for a negative.
        """
        if self.ids is None or not self._own_carry_their_ids:
            return None
        query, key = self.ids
        own = key is query
        if self.layout is None and any(_beyond_floats(side) for side in ((query,) if own else (query, key))):
            _, codes = torch.unique(query if own else torch.cat([query, key]), return_inverse=True)
            query, key = codes[: len(query)], codes if own else codes[len(query) :]
        if max(self.shape) >= EXACT and dtype != torch.float64:
            return None
        query = query.to(dtype)
        return query, query if own else key.to(dtype)

    @property
    def _own_carry_their_ids(self) -> bool:
        """Whether ids that alone define the relation are those of their own samples, where there are any."""
        if self.itself is None or self.layout is not None:
            return True
        assert self.ids is not None
        (query, key), (i, j) = self.ids, self.itself
        return (query is key and self.own == 0) or torch.equal(query[i], key[j])

    def to(self, device: torch.device) -> Pairs:
        """The same relation on a device."""
        if self.device == device:
            return self

        def move(part: Ids | Sparing | Overlap | Matrix) -> Ids | Sparing | Overlap | Matrix:
            if isinstance(part, Matrix):
                return replace(part, values=part.values.to(device))
            query = part.query.to(device)
            return replace(part, query=query, key=query if part.own else part.key.to(device))

        rows = None if self.rows is None else (self.rows[0].to(device), self.rows[1].to(device))
        missing = None
        if self.missing is not None:
            queries, keys = (None if side is None else side.to(device) for side in self.missing)
            missing = queries, keys
        return replace(self, parts=tuple(move(part) for part in self.parts), rows=rows, missing=missing)

    def take(self, queries: Int[Tensor, " a"], keys: Int[Tensor, " b"]) -> Pairs:
        """The relation among some of the rows."""
        same = keys is queries
        queries = _row_ids("queries", queries)
        keys = queries if same else _row_ids("keys", keys)
        rows = None if self.rows is None else (self.rows[0][queries], self.rows[1][keys])
        own = self.own if self.own == 0 and queries is keys else None
        if self.own is not None and own is None:  # own samples no longer lie on a diagonal
            if rows is not None:
                raise ValueError("rows that leave out pairs both by place and by id: take the same of queries and keys")
            rows = queries + self.own, keys
        parts = [part.take(queries, keys) for part in self.parts]
        if queries is keys:  # keep the knowledge that both sides are one
            parts = [
                new if isinstance(new, Matrix) or not old.own else replace(new, key=new.query)
                for new, old in zip(parts, self.parts)
            ]
        shape, missing = (len(queries), len(keys)), self._missing_among(queries, keys)
        return replace(self, shape=shape, parts=tuple(parts), rows=rows, own=own, missing=missing, layout=None)

    def among(self, keys: slice) -> Pairs:
        """The relation with a run of the keys."""
        every = slice(None)
        rows = None if self.rows is None else (self.rows[0], self.rows[1][keys])
        own = None if self.own is None else self.own - keys.start
        parts = tuple(part.take(every, keys) for part in self.parts)
        return Pairs((self.shape[0], keys.stop - keys.start), parts, rows, own, self._missing_among(every, keys))

    def _missing_among(self, queries: Tensor | slice, keys: Tensor | slice) -> Sides | None:
        if self.missing is None:
            return None
        of_queries, of_keys = self.missing
        return None if of_queries is None else of_queries[queries], None if of_keys is None else of_keys[keys]

    def diagonal(self, i: slice, j: slice) -> int | None:
        """Which diagonal of the tile of queries ``i`` and keys ``j`` pairs samples with themselves; ``None``: none does."""
        if self.own is None or i.start + self.own >= j.stop or j.start >= i.stop + self.own:
            return None
        return self.own + i.start - j.start

    def lines(self, i: slice, j: slice, over: Rule) -> list[int] | None:
        """The diagonals of a tile that a rule leaves out, if it leaves out nothing else and they are known without a look."""
        if self.ids is None or (over == "negatives" and self.layout is None):
            return None
        if over == "candidates":
            own = self.diagonal(i, j)
            return [] if own is None else [own]
        assert self.layout is not None
        step = self.shape[0] // self.layout  # the views of a sample stand whole batches apart
        lines = [k * step + i.start - j.start for k in range(1 - self.layout, self.layout)]
        return [line for line in lines if i.start - i.stop < line < j.stop - j.start]

    def relation(self, i: slice, j: slice) -> Relation:
        """The tile of queries ``i`` and keys ``j``."""
        positive, ignored, weight = self.parts[0].relation(i, j)
        for part in self.parts[1:]:
            there = part.relation(i, j)
            assert positive is not None
            assert there.positive is not None
            if weight is not None or there.weight is not None:
                sides = [
                    w if w is not None else p.float() for p, w in ((positive, weight), (there.positive, there.weight))
                ]
                weight = torch.maximum(*sides)
            positive = positive | there.positive
            if ignored is not None or there.ignored is not None:
                ignored = torch.zeros_like(positive) if ignored is None else ignored
                ignored = ignored if there.ignored is None else ignored | there.ignored
                ignored = ignored & ~positive
        plain = self.rows is None and self.missing is None
        if self.own == 0 and plain and i == j and ignored is None and positive is not None:
            # the commonest tile, in three operations: a diagonal block of rows paired with themselves
            own = torch.eye(positive.shape[0], dtype=torch.bool, device=positive.device)
            weight = None if weight is None else weight.masked_fill(own, 0)
            return Relation(positive & ~own, own, weight)
        same = None
        if self.rows is not None:
            same = self.rows[0][i, None] == self.rows[1][None, j]
        diagonal = self.diagonal(i, j)
        if diagonal is not None:
            query, key = (torch.arange(s.stop - s.start, device=self.device) for s in (i, j))
            own = query[:, None] + diagonal == key
            same = own if same is None else same | own
        missing = self._missing_among(i, j)
        if missing is not None:
            assert positive is not None
            same = torch.zeros_like(positive) if same is None else same
            same = same if missing[0] is None else same | missing[0][:, None]
            same = same if missing[1] is None else same | missing[1]
        if same is not None:
            assert positive is not None
            positive = positive & ~same
            ignored = same if ignored is None else ignored | same
            weight = None if weight is None else weight.masked_fill(same, 0)
        return Relation(positive, ignored, weight)

    def table(self) -> str:
        """A small relation as text: ``+`` positive, ``-`` negative, ``.`` ignored."""
        positive, ignored, _ = self.whole()
        assert positive is not None
        marks = torch.where(positive, 2, 1)
        marks = marks if ignored is None else marks.masked_fill(ignored, 0)
        return "\n".join(" ".join(".-+"[mark] for mark in row) for row in marks.tolist())


def _row_ids(what: str, rows: Any) -> Int[Tensor, " n"]:
    """Rows by their numbers."""
    rows = ids_of(what, rows)
    if rows.ndim != 1 or not is_integer(rows):
        raise TypeError(f"{what} are {rows.dtype} {tuple(rows.shape)}; integers (n,) were wanted")
    return rows


def _weighted(entries: Tensor) -> bool:
    """Whether any weight is neither 0 nor 1: some at a time, for most matrices tell soon."""
    if not entries.is_floating_point():
        return False
    row = max(entries.numel() // max(len(entries), 1), 1)
    first, rows = max(1, 2**11 // row), max(1, 2**18 // row)
    parts = entries.detach()[:first], *entries.detach()[first:].split(rows)
    return any(bool(((some > 0) & (some != 1)).any()) for some in parts)
