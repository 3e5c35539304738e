"""Relations of every kind, drawn at random, and their masks filled in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import Relation
from problems import noise

NAN = math.nan


def filled(relation: Relation) -> list[Tensor | None]:
    """Positives, ignored (nowhere where it is not said), and weights if there are any."""
    positive, ignored, weight = relation
    assert positive is not None
    return [positive, torch.zeros_like(positive) if ignored is None else ignored, weight]


def some_pairs(kind: str, n: int, m: int, seed: int) -> Pairs:
    random = noise(seed)

    def ids(count: int) -> Tensor:
        return torch.randint(-1, 3, (count,), generator=random)

    def matrix() -> Tensor:
        u = torch.rand(n, m, generator=random)
        return torch.where(u < 0.4, u + 0.5, 0.0).masked_fill(u > 0.8, NAN)

    return {
        "ids": lambda: Pairs.from_ids(ids(n), ids(m)),
        "known ids": lambda: Pairs.from_ids(ids(n) + 1, ids(m) + 1),
        "several ids": lambda: Pairs.sparing(
            torch.stack([ids(n), ids(n)], 1), torch.stack([ids(m), ids(m)], 1)
        ),
        "own labels": lambda: Pairs.by_label(ids(n), unknown="negative"),
        "matrix": lambda: Pairs.from_matrix(matrix()),
        "sparse": lambda: Pairs.from_matrix(matrix().to_sparse()),
        "sets": lambda: Pairs.by_label(torch.rand(n, 3, generator=random) < 0.4, torch.rand(m, 3, generator=random) < 0.4),
        "soft": lambda: Pairs.by_label(torch.rand(n, 3, generator=random), torch.rand(m, 3, generator=random)),
    }[kind]()  # fmt: skip
