"""Which rows are held out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from nearfar.data.labelled import TEST_FRACTION, require, stratified_split

# More would make every look at the held-out rows slower and tell little more.
MOST_TEST_ROWS = 5_000
# Of the rows that are tied to one another: more would decide alone how many are held out.
MOST_TIED = 0.1
# Of the groups that lie within a class: from here on they are drawn class by class.
MOSTLY = 0.9


def split_rows(
    count: int,
    labels: Int64[Tensor, "n"] | None = None,
    groups: Int64[Tensor, "n"] | None = None,
    fraction: float | None = None,
    seed: int = 0,
    copies: Int64[Tensor, "n"] | None = None,
) -> tuple[Int64[Tensor, "train"], Int64[Tensor, "test"]]:
    """Splits rows: whole groups go to one side where there are groups; otherwise each class gives its part.

    Args:
        count: How many rows there are.
        labels: Class ids, if known. Groups that nearly all lie within a class are drawn class by class, too.
        groups: Ids of what must not be parted, such as the person on a picture.
        fraction: The part to hold out; by default a third, at most 5,000 rows.
        seed: Of the draw.
        copies: Numbers, equal for rows that hold the same bytes: a split is drawn of the first of each, and the others follow.

    Returns:
        The rows to train on and those held out, ascending.

    Raises:
        ValueError: If there are fewer than two rows or groups: nothing could be held out.

    Example:
        >>> train, test = split_rows(6, groups=torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> len(train), len(test), bool(test[0] // 2 == test[1] // 2)
        (4, 2, True)
    """
    if copies is not None and groups is not None:
        groups = _components([groups, copies + int(groups.max()) + 1])
    fraction = fraction or min(TEST_FRACTION, MOST_TEST_ROWS / max(count, 1))
    if groups is not None:
        return _by_group(groups, labels, fraction, seed)
    if count < 2:
        raise ValueError(f"there are {count} rows: two are the least, one to train on and one to test on")
    return stratified_split(torch.zeros(count, dtype=torch.int64) if labels is None else labels, fraction, seed, copies)


def tied_rows(values: Sequence[Int64[Tensor, "n"]]) -> Int64[Tensor, "n"] | None:
    """Groups of the rows that share a value, directly or through others: a picture and its five captions, a conversation.

    Where that ties more than a tenth of the rows to one another (buyers and what they bought, or "yes" for an answer), one
    column alone ties: the first that ties fewer.

    Args:
        values: Numbers of the values, by column: equal where the values are, also across columns.

    Returns:
        A number a row, equal for rows that hang together; None: no two do, or too many by any column.

    Example:
        >>> first, second = torch.arange(40), torch.arange(40, 80)
        >>> second[[3, 5]] = 7  # row 7's first value is the second of rows 3 and 5
        >>> len(tied_rows([first, second]).unique()), tied_rows([torch.zeros(40, dtype=torch.int64)])
        (38, None)
    """
    for columns in (values, *((alone,) for alone in values)) if len(values) else ():
        groups = _components(columns)
        largest = int(groups.bincount().max())
        if 1 < largest < len(groups) and largest <= max(2, MOST_TIED * len(groups)):
            return groups
    return None


def _components(columns: Sequence[Int64[Tensor, "n"]]) -> Int64[Tensor, "n"]:
    """Which component of the graph of rows and values each row lies in."""
    sparse, csgraph = (require(f"scipy.{name}", "splitting rows") for name in ("sparse", "sparse.csgraph"))
    known, at = torch.cat([*columns]).unique(return_inverse=True)
    rows = torch.arange(len(columns[0]))
    size = len(rows) + len(known)
    edges = torch.ones(len(at)).numpy(), (rows.repeat(len(columns)).numpy(), (at + len(rows)).numpy())
    found = csgraph.connected_components(sparse.coo_matrix(edges, (size, size)), directed=False)[1]
    return torch.from_numpy(found[: len(rows)]).long()


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
        within = float((lowest == highest).double().mean())
        if within >= MOSTLY and len(ids) >= 2 * len(labels.unique()):
            held = stratified_split(lowest, fraction, seed)[1]
    if held is None:
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
        enough = int((sizes[order].cumsum(0) < fraction * len(groups)).sum()) + 1
        held = order[: min(enough, len(ids) - 1)]
    tested = torch.isin(of_row, held)
    return (~tested).nonzero().squeeze(1), tested.nonzero().squeeze(1)
