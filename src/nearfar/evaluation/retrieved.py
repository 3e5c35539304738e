"""What queries find among keys: rankings, their measures, and what a random order would reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.evaluation import ranking
from nearfar.evaluation.inputs import as_ks, lost_digits
from nearfar.evaluation.neighbours import ROWS, Block, Metric, Search
from nearfar.evaluation.ranking import Places

COMPLETE = 4 * 10**8
"""Queries times keys up to which whole rankings are made, for MAP and MRR: some seconds, ten at the most."""


@dataclass(frozen=True, eq=False)
class Retrieval:
    """How well queries find their keys. Means run over queries that have any relevant key.

    Keys of the same score have no order: each figure is then its mean over all their orders, so that a constant embedding
    scores what chance does.
    """

    scores: dict[str, float]
    """``recall@k``: queries with a relevant key among the first k (metric learning's and CLIP's meaning). ``found@k``: share of
    the relevant keys among the first k (information retrieval's recall). ``precision@r``, ``map@r``, ``map`` (whole
    rankings only), ``ndcg@k``, ``mrr``."""
    queries: int
    """How many the means run over."""
    left_out: int
    """Queries without a relevant key, or without a label."""
    keys: int
    depth: int
    """Places looked at; ``mrr`` counts a first relevant key beyond as 0."""
    chance: dict[str, float]
    """What a random order would be expected to reach, for ``recall@k``, ``precision@r`` and ``found@k``."""
    per_query: dict[str, Float[Tensor, "q"]]
    """The values behind the means."""
    tied: int = 0
    """Queries for which relevant keys and others have the same score."""
    notes: tuple[str, ...] = ()
    """What was left out, what ties decided, and where digits are missing, in words."""

    def __getitem__(self, name: str) -> float:
        return self.scores[name]


Gains = Callable[[Tensor, Tensor], Tensor]
"""How relevant keys ``(b, k)`` are to queries ``(b,)``."""


@dataclass(frozen=True, eq=False)
class Task:
    """Queries, keys, and which belong together."""

    queries: Tensor
    keys: Tensor
    itself: Tensor | None
    """The key to leave out for each query."""
    relevant: Tensor
    """How many keys are, of each query."""
    gains: Gains
    ideal: Callable[[Tensor, int], Tensor]
    """The largest gains of some queries, descending."""

    def measure(
        self,
        ks: Sequence[int],
        metric: Metric,
        complete: bool | None,
        given: int | None = None,
        notes: Sequence[str] = (),
    ) -> Retrieval:
        """Ranks, and measures what a query finds, block by block."""
        ks, asked, given = as_ks("ks", ks), self.relevant > 0, len(self.queries) if given is None else given
        if not bool(asked.any()):
            raise ValueError(f"none of {given} queries has a relevant key: nothing to retrieve")
        count = len(self.keys) - (self.itself is not None)
        complete = len(self.queries) * count <= COMPLETE if complete is None else complete
        depth = count if complete else min(count, max(*ks, int(self.relevant.max())))
        held: dict[str, list[Tensor]] = {}
        tied = 0
        step = max(16, min(ROWS, 2**22 // count)) if depth >= ROWS else ROWS
        # one more place than is looked at tells whether ties reach beyond
        search = Search(self.queries, self.keys, min(depth + 1, count), metric, self.itself, step)
        for block in search.blocks():
            rows = torch.arange(block.place.start, block.place.stop, device=asked.device)
            some = asked[rows].nonzero()[:, 0]
            if not len(some):
                continue
            rows, block = rows[some], Block(block.place, *(part[some] for part in block[1:]))
            places, several = self._places(search, block, rows, depth)
            tied += several
            best, many = self.ideal(rows, min(max(ks), count)), self.relevant[rows]
            values = {f"recall@{k}": ranking.hit(places, k) for k in ks}
            values |= {f"found@{k}": ranking.found(places, many, k) for k in ks}
            values |= {"precision@r": ranking.precision_at_r(places, many)}
            values |= {"map@r": ranking.average_precision(places, many, at_r=True)}
            values |= {"map": ranking.average_precision(places, many)} if depth == count else {}
            values |= {f"ndcg@{k}": ranking.ndcg(places, best, k) for k in ks}
            values |= {"mrr": ranking.reciprocal_rank(places)}
            for name, value in values.items():
                held.setdefault(name, []).append(value.cpu())
        per_query = {name: torch.cat(parts) for name, parts in held.items()}
        queries = int(asked.sum())
        if 100 * tied >= queries:  # fewer may be chance, and move no figure
            notes = (
                *notes,
                f"for {tied:,} of {queries:,} queries, relevant keys and others have the same score: each figure is the mean over "
                "all their orders",
            )
        return Retrieval(
            scores={name: float(values.mean()) for name, values in per_query.items()},
            queries=queries,
            left_out=given - queries,
            keys=count,
            depth=depth,
            chance=_chance(self.relevant[asked].double().cpu(), count, ks),
            per_query=per_query,
            tied=tied,
            notes=(*notes, *lost_digits(self.keys, metric)),
        )

    def _places(self, search: Search, block: Block, rows: Tensor, depth: int) -> tuple[Places, int]:
        """What is expected at each place, and for how many queries ties decide it."""
        got, tied = self.gains(rows, block.indices[:, :depth]), block.tied[:, :depth]
        places = Places.certain(got)
        across = block.tied[:, depth] if block.tied.shape[1] > depth else torch.zeros_like(rows, dtype=torch.bool)
        open_ = (((got[:, 1:] != got[:, :-1]) & tied[:, 1:]).any(1) | across).nonzero()[:, 0]
        if not len(open_):
            return places, 0
        beyond = torch.zeros(3, len(open_), dtype=torch.float64, device=rows.device)
        over = across[open_].nonzero()[:, 0]
        last = block.indices[open_[over], depth - 1]
        for part, near in search.as_near(rows[open_[over]], last):
            at = open_[over[part]]
            near.scatter_(1, block.indices[at, :depth], False)  # those are counted already
            gains = torch.where(near, self.gains(rows[at], self._every_key(len(at))), 0.0)
            beyond[:, over[part]] = torch.stack([near.sum(1), (gains > 0).sum(1), gains.sum(1)]).double()
        expected = Places.expected(got[open_], tied[open_], beyond)
        for field in fields(Places):
            getattr(places, field.name)[open_] = getattr(expected, field.name)
        return places, int(((expected.gain - got[open_]).abs() > 1e-9).any(1).sum())

    def _every_key(self, queries: int) -> Tensor:
        return torch.arange(len(self.keys), device=self.keys.device).expand(queries, -1)


def _chance(relevant: Float[Tensor, "q"], keys: int, ks: tuple[int, ...]) -> dict[str, float]:
    """What a random order reaches: none of R relevant keys is in the first k of m with probability ``C(m − R, k) / C(m, k)``."""

    def log_choose(n: Tensor, k: Tensor) -> Tensor:
        return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)

    total = torch.tensor(float(keys), dtype=torch.float64)
    chance = {"precision@r": float((relevant / keys).mean())}
    for k in ks:
        first = torch.tensor(float(min(k, keys)), dtype=torch.float64)
        none = (log_choose((total - relevant).clamp_min(first), first) - log_choose(total, first)).exp()
        chance[f"recall@{k}"] = float((1 - torch.where(total - relevant >= first, none, 0.0)).mean())
        chance[f"found@{k}"] = float(first / keys)
    return chance
