"""Tensors in nested tuples, lists and dicts: what models take and return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def leaves_of(tree: Any) -> list[Tensor]:
    """The tensors, in order; whatever else is there is passed over."""
    if isinstance(tree, Tensor):
        return [tree]
    branches = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, tuple | list) else ()
    return [leaf for branch in branches for leaf in leaves_of(branch)]


def rebuilt(tree: Any, leaves: Iterator[Tensor]) -> Any:
    """The same tree with other tensors; a mapping becomes a dict."""
    if isinstance(tree, Tensor):
        return next(leaves)
    if isinstance(tree, Mapping):
        return {name: rebuilt(branch, leaves) for name, branch in tree.items()}
    if not isinstance(tree, tuple | list):
        return tree
    branches = [rebuilt(branch, leaves) for branch in tree]
    return type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)


def split_rows(name: str, tree: Any, size: int) -> list[tuple[Any, int, int, int]]:
    """Chunks of so many rows, each ``(tree, start, stop, rows in all)``; no rows are one empty chunk.

    Args:
        name: What the tree is, for errors.
        tree: Its tensors have the same number of rows, or no dimension: then they go to every chunk.
        size: Rows of a chunk; the last may have fewer.

    Raises:
        TypeError: If there is no tensor with rows.
        ValueError: If tensors differ in their number of rows, or hang on a graph.

    Example:
        >>> import torch
        >>> [rows["ids"] for rows, *_ in split_rows("text", {"ids": torch.arange(5), "pad": 0}, 2)]
        [tensor([0, 1]), tensor([2, 3]), tensor([4])]
    """
    leaves = leaves_of(tree)
    counts = {len(leaf) for leaf in leaves if leaf.ndim}
    if not counts:
        raise TypeError(f"{name} is a {type(tree).__name__} without a tensor that has rows: there is nothing to split")
    if len(counts) > 1:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise ValueError(f"{name} has tensors of {shapes}: each needs one row a sample, or no dimension at all")
    if any(leaf.grad_fn is not None for leaf in leaves):
        raise ValueError(
            f"{name} hangs on a graph, which the first chunk's backward pass would use up: detach it, or move what made it "
            "into the model"
        )
    (count,) = counts
    return [
        (rebuilt(tree, (leaf[start:stop] if leaf.ndim else leaf for leaf in leaves)), start, stop, count)
        for start in range(0, max(count, 1), size)
        for stop in [min(start + size, count)]
    ]
