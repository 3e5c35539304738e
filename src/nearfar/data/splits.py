"""Which rows are held out."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from nearfar.data.labelled import TEST_FRACTION, stratified_split

# More would make every look at the held-out rows slower and tell little more.
MOST_TEST_ROWS = 5_000


def split_rows(
    count: int,
    labels: Int64[Tensor, "n"] | None = None,
    groups: Int64[Tensor, "n"] | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> tuple[Int64[Tensor, "train"], Int64[Tensor, "test"]]:
    """Splits rows: whole groups go to one side where there are groups; otherwise each class gives its part.

    Args:
        count: How many rows there are.
        labels: Class ids, if known. Groups that each lie within a class are drawn class by class, too.
        groups: Ids of what must not be parted, such as the person on a picture.
        fraction: The part to hold out; by default a third, at most 5,000 rows.
        seed: Of the draw.

    Returns:
        The rows to train on and those held out, ascending.

    Raises:
        ValueError: If there are fewer than two rows or groups: nothing could be held out.

    Example:
        >>> train, test = split_rows(6, groups=torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> len(train), len(test), bool(test[0] // 2 == test[1] // 2)
        (4, 2, True)
    """
    fraction = fraction or min(TEST_FRACTION, MOST_TEST_ROWS / max(count, 1))
    if groups is not None:
        return _by_group(groups, labels, fraction, seed)
    if count < 2:
        raise ValueError(f"there are {count} rows: two are the least, one to train on and one to test on")
    return stratified_split(torch.zeros(count, dtype=torch.int64) if labels is None else labels, fraction, seed)


def _by_group(
    groups: Int64[Tensor, "n"], labels: Int64[Tensor, "n"] | None, fraction: float, seed: int
) -> tuple[Int64[Tensor, "train"], Int64[Tensor, "test"]]:
    ids, of_row, sizes = groups.unique(return_inverse=True, return_counts=True)
    if len(ids) < 2:
        raise ValueError(f"all {len(groups)} rows have one id: two are the least, one to train on and one to test on")
    held = None
    if labels is not None:
        lowest = torch.zeros_like(ids).scatter_reduce_(0, of_row, labels, "amin", include_self=False)
        highest = torch.zeros_like(ids).scatter_reduce_(0, of_row, labels, "amax", include_self=False)
        if bool((lowest == highest).all()) and len(ids) >= 2 * len(labels.unique()):
            held = stratified_split(lowest, fraction, seed)[1]
    if held is None:
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
        enough = int((sizes[order].cumsum(0) < fraction * len(groups)).sum()) + 1
        held = order[: min(enough, len(ids) - 1)]
    tested = torch.isin(of_row, held)
    return (~tested).nonzero().squeeze(1), tested.nonzero().squeeze(1)
