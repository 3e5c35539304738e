"""Triton kernels of the softmax questions: a tile of scores becomes statistics, or its own gradient, where it is made.

Both kernels walk a tile block by block. A block's scores come from the rows by a product in registers (``FUSED``), so that
they never reach memory, or are read from a tile that a library product has written. Which pairs count is worked out from
places and integer ids, never from a mask in memory. No atomics: every number has one writer.

Triton is imported with this module, and this module only where a GPU, or Triton's interpreter, is asked for.
"""

# Triton reads the code of a kernel itself: names in capitals are fixed when it is compiled.

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

RULES = {"candidates": 0, "negatives": 1, "positives": 2}
"""Rules as kernels know them."""


@triton.jit
def _product(
    x, y, i, j, n, m, d, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, HOW: tl.constexpr
):
    """⟨x_i, y_j⟩ in float32. Places beyond the tile read its last row again, and are dropped later."""
    rows = x + tl.minimum(i, n - 1).to(tl.int64)[:, None] * d
    columns = y + tl.minimum(j, m - 1).to(tl.int64)[None, :] * d
    total = tl.zeros((BI, BJ), tl.float64 if HOW == "float64" else tl.float32)
    for k in range(0, d, BK):
        f = k + tl.arange(0, BK)
        if EVEN:
            a = tl.load(rows + f[None, :])
            b = tl.load(columns + f[:, None])
        else:
            a = tl.load(rows + f[None, :], mask=f[None, :] < d, other=0.0)
            b = tl.load(columns + f[:, None], mask=f[:, None] < d, other=0.0)
        # the interpreter: NumPy knows no bfloat16, and rounds a float32 product by its place
        if HOW == "float64":  # noqa: SIM108
            total = tl.dot(a.to(tl.float64), b.to(tl.float64), total)
        else:
            total = tl.dot(a, b, total, input_precision=HOW)
    return total.to(tl.float32)


@triton.jit
def _block(
    x, y, tile, offsets, query, key, query_row, key_row, i, j, n, m, d, shift,
    RULE: tl.constexpr, IDS: tl.constexpr, UNKNOWN: tl.constexpr, ITSELF: tl.constexpr, ROWS: tl.constexpr,
    UPPER: tl.constexpr, OFFSETS: tl.constexpr, FUSED: tl.constexpr, EVEN: tl.constexpr, HOW: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Scores of a block, and which of its pairs count. Query ``i`` and key ``j`` are one row where ``i + shift = j``."""
    here = (i < n)[:, None] & (j < m)[None, :]
    if FUSED:
        scores = _product(x, y, i, j, n, m, d, BI, BJ, BK, EVEN, HOW)
    else:
        scores = tl.load(tile + i.to(tl.int64)[:, None] * m + j[None, :], mask=here, other=0.0)
    if OFFSETS:
        scores += tl.load(offsets + j, mask=j < m, other=0.0)[None, :]
    kept = here
    if ITSELF:
        kept = kept & ((i + shift)[:, None] != j[None, :])
    if UPPER:
        kept = kept & ((i + shift)[:, None] < j[None, :])
    if ROWS:
        own = tl.load(query_row + i, mask=i < n, other=0)[:, None] == tl.load(key_row + j, mask=j < m, other=0)[None, :]
        kept = kept & ~own
    if IDS:
        left = tl.load(query + i, mask=i < n, other=0)[:, None]
        right = tl.load(key + j, mask=j < m, other=0)[None, :]
        if UNKNOWN:
            kept = kept & (left >= 0) & (right >= 0)
        if RULE == 1:
            kept = kept & (left != right)
        if RULE == 2:
            kept = kept & (left == right)
    return scores, kept


@triton.jit
def statistics(
    x, y, tile, offsets, query, key, query_row, key_row, row_parts, column_parts, n, m, d, shift,
    RULE: tl.constexpr, IDS: tl.constexpr, UNKNOWN: tl.constexpr, ITSELF: tl.constexpr, ROWS: tl.constexpr,
    UPPER: tl.constexpr, OFFSETS: tl.constexpr, FUSED: tl.constexpr, EVEN: tl.constexpr, HOW: tl.constexpr,
    COLUMNS: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Maximum ``h`` and ``Σ e^{s − h}`` of each row and, if wanted, each column of a block (both 0 where nothing counts).

    They go to ``row_parts (2, blocks, n)`` and ``column_parts (2, blocks, m)``.
    ``UPPER`` leaves out pairs on or below the diagonal, since those above it serve both of their rows.
    """
    block_i, block_j = tl.program_id(0), tl.program_id(1)
    i, j = block_i * BI + tl.arange(0, BI), block_j * BJ + tl.arange(0, BJ)
    row_parts += block_j.to(tl.int64) * n
    column_parts += block_i.to(tl.int64) * m
    row_sums = row_parts + tl.num_programs(1).to(tl.int64) * n
    column_sums = column_parts + tl.num_programs(0).to(tl.int64) * m
    if UPPER and block_i * BI + shift >= block_j * BJ + BJ - 1:  # nothing of the block lies above the diagonal
        nothing = tl.zeros((BI,), row_parts.dtype.element_ty)
        tl.store(row_parts + i, nothing, mask=i < n)
        tl.store(row_sums + i, nothing, mask=i < n)
        if COLUMNS:
            nothing = tl.zeros((BJ,), column_parts.dtype.element_ty)
            tl.store(column_parts + j, nothing, mask=j < m)
            tl.store(column_sums + j, nothing, mask=j < m)
    else:
        scores, kept = _block(
            x, y, tile, offsets, query, key, query_row, key_row, i, j, n, m, d, shift,
            RULE, IDS, UNKNOWN, ITSELF, ROWS, UPPER, OFFSETS, FUSED, EVEN, HOW, BI, BJ, BK,
        )  # fmt: skip
        empty = float("-inf")
        scores = tl.where(kept, scores, empty)
        high = tl.max(scores, 1)
        base = tl.where(high == empty, 0.0, high)
        tl.store(row_parts + i, base, mask=i < n)
        tl.store(row_sums + i, tl.sum(tl.exp(scores - base[:, None]), 1), mask=i < n)
        if COLUMNS:
            high = tl.max(scores, 0)
            base = tl.where(high == empty, 0.0, high)
            tl.store(column_parts + j, base, mask=j < m)
            tl.store(column_sums + j, tl.sum(tl.exp(scores - base[None, :]), 0), mask=j < m)


@triton.jit
def slopes(
    x, y, tile, offsets, query, key, query_row, key_row, row_lse, row_slope, column_lse, column_slope, out, n, m, d, shift,
    RULE: tl.constexpr, IDS: tl.constexpr, UNKNOWN: tl.constexpr, ITSELF: tl.constexpr, ROWS: tl.constexpr,
    UPPER: tl.constexpr, OFFSETS: tl.constexpr, FUSED: tl.constexpr, EVEN: tl.constexpr, HOW: tl.constexpr,
    COLUMNS: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``g_i·e^{s_ij − lse_i} + g_j·e^{s_ij − lse_j}``, 0 where a pair doesn't count; ``out`` may be the tile itself.

    A row where nothing counts comes with ``lse = ∞``.
    """
    block_i, block_j = tl.program_id(0), tl.program_id(1)
    i, j = block_i * BI + tl.arange(0, BI), block_j * BJ + tl.arange(0, BJ)
    scores, kept = _block(
        x, y, tile, offsets, query, key, query_row, key_row, i, j, n, m, d, shift,
        RULE, IDS, UNKNOWN, ITSELF, ROWS, UPPER, OFFSETS, FUSED, EVEN, HOW, BI, BJ, BK,
    )  # fmt: skip
    scores = tl.where(kept, scores, float("-inf"))
    lse = tl.load(row_lse + i, mask=i < n, other=float("inf"))
    slope = tl.exp(scores - lse[:, None]) * tl.load(row_slope + i, mask=i < n, other=0.0)[:, None]
    if COLUMNS:
        lse = tl.load(column_lse + j, mask=j < m, other=float("inf"))
        slope += tl.exp(scores - lse[None, :]) * tl.load(column_slope + j, mask=j < m, other=0.0)[None, :]
    where = out + i.to(tl.int64)[:, None] * m + j[None, :]
    tl.store(where, slope.to(out.dtype.element_ty), mask=(i < n)[:, None] & (j < m)[None, :])


def launch(kernel: Any, shape: tuple[int, int], blocks: tuple[int, int], *arguments: Any, **options: Any) -> None:
    """Run a kernel over the blocks of a tile."""
    kernel[triton.cdiv(shape[0], blocks[0]), triton.cdiv(shape[1], blocks[1])](*arguments, **options)
