"""Which rows are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from nearfar.data.config import DataConfig
from nearfar.data.copies import one_side
from nearfar.data.labelled import TEST_FRACTION, require, stratified_split
from nearfar.names import refuse_unused

# More would make every look at the held-out rows slower and tell little more.
MOST_TEST_ROWS = 5_000
# Of the rows that are tied to one another: more would decide alone how many are held out.
MOST_TIED = 0.1
# Of the groups that lie within a class: from here on they are drawn class by class.
MOSTLY = 0.9
# From so many classes on, some of them stand for others that are still to come. Fewer are all that there is to tell apart.
MANY_CLASSES = 20


@dataclass(frozen=True)
class Split:
    """Which rows are trained on, which are held out, and how that was decided."""

    train: Int64[Tensor, "train"]
    test: Int64[Tensor, "test"]
    by: Literal["rows", "classes"] | None = None
    """What is held out, where classes decide."""
    notes: tuple[str, ...] = ()
    """The decision in words, where it is not the usual one."""
    moved: int = 0
    """How many held-out rows are trained on instead, because they are copies of training rows."""


def refuse_classes(config: DataConfig, why: str) -> None:
    """Refuses to hold out whole classes where they do not decide. Rows are then held out all the same."""
    refuse_unused({"hold_out": config.hold_out} if config.hold_out == "classes" else {}, why)


def own_split(
    train: Int64[Tensor, "train"],
    test: Int64[Tensor, "test"],
    config: DataConfig,
    copies: Int64[Tensor, "n"] | None = None,
) -> Split:
    """The split that data come with, but for held-out rows that are copies of training rows.

    Raises:
        ValueError: If whole classes are to be held out besides.
    """
    refuse_classes(config, "the data come with a split of their own")
    before = len(train)
    train, test = one_side(train, test, copies)
    return Split(train, test, moved=len(train) - before)


def draw_split(
    count: int,
    labels: Int64[Tensor, "n"] | None,
    groups: Int64[Tensor, "n"] | None,
    values: Sequence[Int64[Tensor, "n"]],
    config: DataConfig,
    *,
    pairs: bool,
    copies: Int64[Tensor, "n"] | None = None,
) -> Split:
    """Draws the rows to hold out: whole ids, whole classes, or rows of every class.

    Args:
        count: How many rows there are.
        labels: Class ids, if known.
        groups: Ids, if there are any.
        values: Numbers of the values of each column: see ``tied_rows``.
        config: The part to hold out, of what, and the seed.
        pairs: Whether each row is a pair, so that classes are not what is looked for.
        copies: Numbers, equal for rows that hold the same bytes, which are not parted.

    Raises:
        ValueError: If nothing can be held out, or no whole classes where that is asked for.
    """
    fraction, seed = config.test_fraction, config.split_seed
    tied = tied_rows(values) if groups is None else None
    by_class = labels is not None and groups is None and not pairs
    if labels is None or not by_class:
        why = (
            "there are no classes" if labels is None else "each row is a pair" if pairs else "ids say what is held out"
        )
        refuse_classes(config, why)
        return Split(*split_rows(count, labels, tied if groups is None else groups, fraction, seed, copies))
    why = _too_few(labels, fraction, tied, copies)
    by = config.hold_out or ("classes" if why else "rows")
    if by == "rows":
        return Split(*split_rows(count, labels, tied, fraction, seed, copies), by)
    train, test = split_classes(labels, tied, fraction, seed, copies)
    held, all_of_them = (len(ids[ids >= 0].unique()) for ids in (labels[test], labels))
    note = f"whole classes are held out, {held:,} of {all_of_them:,}"
    if config.hold_out is None:
        note += f": {why} (--hold-out rows takes rows of every class)"
    return Split(train, test, by, (note,))


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
    fraction = usual_fraction(count) if fraction is None else fraction
    if groups is not None:
        return _by_group(_joined(groups, copies), labels, fraction, seed)
    if count < 2:
        raise ValueError(f"there are {count} rows: two are the least, one to train on and one to test on")
    return stratified_split(torch.zeros(count, dtype=torch.int64) if labels is None else labels, fraction, seed, copies)


def usual_fraction(count: int) -> float:
    """The part of so many rows that is held out: a third, at most 5,000 rows."""
    return min(TEST_FRACTION, MOST_TEST_ROWS / max(count, 1))


def usual_split(
    labels: Int64[Tensor, "n"],
    fraction: float | None = None,
    tied: Int64[Tensor, "n"] | None = None,
    copies: Int64[Tensor, "n"] | None = None,
) -> Literal["rows", "classes"]:
    """Whether rows of every class are held out, or whole classes.

    Of rows of every class, some may be left that show nothing. A training row that is alone of its class has nothing to be
    near to: where that is so of most rows, whole classes are held out. So they are where most held-out rows are alone of their
    class and there are 20 classes or more: people, products, places, of whom others will come. Of fewer than three classes
    with two rows none can be spared, nor of classes that ties hold together.

    Args:
        labels: Class ids; negative: unknown.
        fraction: The part to hold out; by default as in ``split_rows``.
        tied: As in ``split_classes``.
        copies: As in ``split_classes``.

    Example:
        >>> usual_split(torch.arange(160) % 40), usual_split(torch.arange(160) % 4), usual_split(torch.arange(16) % 4)
        ('classes', 'rows', 'rows')
        >>> usual_split(torch.arange(24) % 12), usual_split(torch.arange(36) % 12, 0.6), usual_split(torch.arange(4) % 2)
        ('classes', 'classes', 'rows')
    """
    return "classes" if _too_few(labels, fraction, tied, copies) else "rows"


def _too_few(
    labels: Int64[Tensor, "n"],
    fraction: float | None,
    tied: Int64[Tensor, "n"] | None,
    copies: Int64[Tensor, "n"] | None,
) -> str:
    """Why whole classes are held out, in words; empty: rows of every class are."""
    fraction = usual_fraction(len(labels)) if fraction is None else fraction
    classes, sizes = _distinct(labels, copies).unique(return_counts=True)
    sizes = sizes[(classes >= 0) & (sizes > 1)]
    held = (sizes * fraction).round().clamp_min(1).minimum(sizes - 1)
    lone = [2 * int(sizes[few].sum()) > int(sizes.sum()) for few in (sizes - held < 2, held < 2)]
    if len(sizes) < 3 or not (lone[0] or (lone[1] and len(sizes) >= MANY_CLASSES)):
        return ""
    largest = int(_whole(labels, tied, copies).bincount().max())
    if largest > max(fraction * len(labels), int(labels[labels >= 0].bincount().max())):
        return ""
    return "most have too few rows to hold out two of each" if lone[1] else "most would keep a single row to train on"


def split_classes(
    labels: Int64[Tensor, "n"],
    tied: Int64[Tensor, "n"] | None = None,
    fraction: float | None = None,
    seed: int = 0,
    copies: Int64[Tensor, "n"] | None = None,
) -> tuple[Int64[Tensor, "train"], Int64[Tensor, "test"]]:
    """Splits rows so that whole classes are held out. A class of one row is trained on, as is a row of no known class.

    Args:
        labels: Class ids; negative: unknown.
        tied: Groups of rows that must not be parted: classes that share one go to one side.
        fraction: The part to hold out, of the rows whose class has two or more; by default as in ``split_rows``.
        seed: Of the draw.
        copies: Numbers, equal for rows that hold the same bytes: they are not parted either, and count as one row of a class.

    Returns:
        The rows to train on and those held out, ascending.

    Raises:
        ValueError: If fewer than two classes have two rows: none could be held out.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3])
        >>> train, test = split_classes(labels)
        >>> len(train), len(test), bool(torch.isin(labels[test], labels[train]).any())
        (5, 2, False)
    """
    fraction = usual_fraction(len(labels)) if fraction is None else fraction
    known, sizes = _distinct(labels, copies).unique(return_counts=True)
    several = torch.isin(labels, known[(known >= 0) & (sizes > 1)])
    whole = _whole(labels, tied, copies)
    there = len(whole[several].unique())
    if there < 2:
        raise ValueError(
            f"{len(labels[several].unique())} classes have two rows or more and can be told apart by their rows: to hold out "
            "whole classes, two at least were wanted; hold out rows of every class (hold_out=rows)"
        )
    held = _by_group(whole[several], None, fraction, seed, least=2 if there > 3 else 1, kept=2 if there > 2 else 1)[1]
    tested = torch.isin(whole, whole[several][held])
    return (~tested).nonzero().squeeze(1), tested.nonzero().squeeze(1)


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


def _distinct(labels: Int64[Tensor, "n"], copies: Int64[Tensor, "n"] | None) -> Int64[Tensor, "m"]:
    """The labels of rows that differ: copies within a class are one."""
    return labels if copies is None else torch.stack([labels, copies]).unique(dim=1)[0]


def _whole(
    labels: Int64[Tensor, "n"], tied: Int64[Tensor, "n"] | None, copies: Int64[Tensor, "n"] | None
) -> Int64[Tensor, "n"]:
    """A number a row, equal for rows of a class, and for all that hangs together with them; a row of no known class has its own."""
    unknown = int(labels.max()) + 1 + torch.arange(len(labels))
    return _joined(torch.where(labels < 0, unknown, labels), tied, copies)


def _joined(groups: Int64[Tensor, "n"], *more: Int64[Tensor, "n"] | None) -> Int64[Tensor, "n"]:
    """Groups of rows that hang together by any of some numbers."""
    for column in more:
        if column is not None:
            groups = _components([groups, int(groups.max()) + 1 + column.unique(return_inverse=True)[1]])
    return groups


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
    groups: Int64[Tensor, "n"],
    labels: Int64[Tensor, "n"] | None,
    fraction: float,
    seed: int,
    least: int = 1,
    kept: int = 1,
) -> tuple[Int64[Tensor, "train"], Int64[Tensor, "test"]]:
    ids, of_row, sizes = groups.unique(return_inverse=True, return_counts=True)
    if len(ids) < 2:
        raise ValueError(f"all {len(groups)} rows have one id: two are the least, one to train on and one to test on")
    held = None
    if labels is not None:
        lowest = torch.zeros_like(ids).scatter_reduce_(0, of_row, labels, "amin", include_self=False)
        highest = torch.zeros_like(ids).scatter_reduce_(0, of_row, labels, "amax", include_self=False)
        within = float((lowest == highest).double().mean())
        classes, groups_of = lowest.unique(return_counts=True)
        several = 2 * int((groups_of > 1).sum()) >= len(classes)
        if within >= MOSTLY and (several or len(ids) >= 2 * len(labels.unique())):
            held = stratified_split(lowest, fraction, seed)[1]
    if held is None:
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
        enough = int((sizes[order].cumsum(0) < fraction * len(groups)).sum()) + 1
        held = order[: min(max(enough, least), len(ids) - kept)]
    tested = torch.isin(of_row, held)
    return (~tested).nonzero().squeeze(1), tested.nonzero().squeeze(1)
