"""Rows that look for their neighbours among themselves: a product serves both of its rows, so that half of them suffice.

Candidates of all rows are held meanwhile, 12 bytes each, and at the end once more. What a tile adds to a row that has seen few
others costs more than the product that is spared, and the more candidates a row has, the longer that lasts: so it is for many rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from nearfar.evaluation.scoring import Keys
from nearfar.evaluation.selection import Largest, see_from_both_sides

BLOCK = 2048
"""Rows a block: large enough that a tile's products take longer than its lists, small enough that its lists are short."""
_MOST = 64
"""Candidates a row: half of the groups of a tile."""
_HELD = 2**29
"""Bytes of candidates: those of all rows are held at once."""


def serves(keys: Keys, candidates: int) -> bool:
    """Whether values are the same from either side, on a CPU, and rows are many enough, and not too many for memory."""
    alike = keys.metric != "euclidean" and keys.rows.device.type == "cpu"
    least = max(4, candidates // 2) * BLOCK
    return alike and candidates <= _MOST and least <= len(keys.rows) <= _HELD // (12 * candidates)


def rough_candidates(
    keys: Keys, candidates: int, run: Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]]
) -> tuple[Float32[Tensor, " n"], Int64[Tensor, "n c"]]:
    """The largest float32 values of each row with all others: the worst of them, and their columns.

    Args:
        keys: The rows, in a metric that :func:`serves`.
        candidates: How many of each row.
        run: Runs a function on each of a list, maybe side by side.
    """
    rows = keys.rows
    blocks = [slice(at, min(at + BLOCK, len(rows))) for at in range(0, len(rows), BLOCK)]
    with torch.inference_mode(False):  # which other threads could not write to
        found = [Largest(block.stop - block.start, candidates, torch.float32, rows.device) for block in blocks]

    def visit(pair: tuple[int, int]) -> None:
        i, j = pair
        queries = keys.queries(rows[blocks[i]], keys.norms[blocks[i]], torch.float32)
        if i == j:
            found[i].see(keys.tile(queries, blocks[j]).fill_diagonal_(-torch.inf), blocks[j].start)
        else:
            strip = lambda some: keys.tile(queries[some], blocks[j])  # noqa: E731
            see_from_both_sides(found[i], found[j], strip, blocks[i].start, blocks[j].start)

    own = [(i, i) for i in range(len(blocks))]  # first, since little is let in by a row that has seen some
    with torch.no_grad():
        for _ in run(visit, own + list(combinations(range(len(blocks)), 2))):
            pass
    for best in found:
        best.settle()
    return torch.cat([best.worst for best in found]), torch.cat([best.columns for best in found])
