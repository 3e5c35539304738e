"""Labelled data in memory, its class names and its split: what every source and every file ends as."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from nearfar.data.classes import class_name

# A third: the accuracy of a small set (digits: about 600 test rows) is then known to about one point.
TEST_FRACTION = 1 / 3


@dataclass(frozen=True)
class LabelledData:
    """A classification task held in memory, split in training and test rows.

    Args:
        train_inputs: Images ``(n, channels, height, width)`` in [0, 1], or features ``(n, d)``.
        train_labels: Class ids ``(n,)``, rows of ``class_names``.
        test_inputs: The same for the test rows.
        test_labels: The same for the test rows.
        class_names: The name of each class, as text.
        name: What the data are called in reports.
        bad: What could not be read and was left out, one line each: path, line and reason.
        notes: What was passed over or decided while reading, one line each.
        copies: Numbers of the training rows, equal for those that hold the same bytes; None: no two do.

    Example:
        >>> from nearfar.data.sources import load_data
        >>> data = load_data("digits")
        >>> data.kind, tuple(data.train_inputs.shape), data.num_classes
        ('image', (1198, 1, 8, 8), 10)
    """

    train_inputs: Float32[Tensor, "n ..."]
    train_labels: Int64[Tensor, "n"]
    test_inputs: Float32[Tensor, "t ..."]
    test_labels: Int64[Tensor, "t"]
    class_names: tuple[str, ...]
    name: str
    bad: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    copies: Int64[Tensor, "n"] | None = None

    @property
    def kind(self) -> str:
        """``"image"`` for ``(n, c, h, w)`` inputs, ``"tabular"`` for ``(n, d)``."""
        return "image" if self.train_inputs.ndim == 4 else "tabular"

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


def class_ids(labels: Sequence[str]) -> tuple[Int64[Tensor, "n"], tuple[str, ...]]:
    """Numbers text labels in the order of their names, in one spelling; names that are all numbers are ordered as numbers.

    Example:
        >>> class_ids(["10", "9", "10"])
        (tensor([1, 0, 1]), ('9', '10'))
    """
    labels = [class_name(label) for label in labels]
    names = sorted(set(labels))
    with contextlib.suppress(ValueError):
        names.sort(key=float)
    ids = {name: position for position, name in enumerate(names)}
    return torch.tensor([ids[label] for label in labels], dtype=torch.int64), tuple(names)


def stratified_split(
    labels: Int64[Tensor, "n"],
    fraction: float = TEST_FRACTION,
    seed: int = 0,
    copies: Int64[Tensor, "n"] | None = None,
) -> tuple[Int64[Tensor, "train"], Int64[Tensor, "test"]]:
    """Splits rows so that each class gives the same fraction of its own to the test rows.

    A class keeps at least one training row, and from two rows on gives at least one test row.

    Args:
        labels: Class ids ``(n,)``.
        fraction: The part of each class that is tested, in (0, 1).
        seed: Of the draw; the same seed gives the same split.
        copies: Numbers, equal for rows that are copies of one another. The first of each is drawn, and the others follow it.

    Returns:
        The indices of the training rows and of the test rows, ascending.

    Raises:
        ValueError: If the fraction is not in (0, 1).

    Example:
        >>> train, test = stratified_split(torch.tensor([0, 0, 0, 1, 1, 1]))
        >>> len(train), len(test)
        (4, 2)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the test fraction is {fraction}: pass a number between 0 and 1, both excluded")
    if copies is not None:
        first, of_row = first_rows(copies)
        sides = stratified_split(labels[first], fraction, seed)
        train, test = (torch.isin(of_row, side).nonzero().squeeze(1) for side in sides)
        return train, test
    generator = torch.Generator().manual_seed(seed)
    tested = torch.zeros(len(labels), dtype=torch.bool)
    by_class, counts = labels.argsort(stable=True), labels.unique(return_counts=True)[1]
    for rows in by_class.split(counts.tolist()):
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        tested[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return (~tested).nonzero().squeeze(1), tested.nonzero().squeeze(1)


def first_rows(ids: Int64[Tensor, "n"]) -> tuple[Int64[Tensor, "m"], Int64[Tensor, "n"]]:
    """The first row of each id, ascending, and for each row the place of its id's among them."""
    known, of_row = ids.unique(return_inverse=True)
    first = torch.full((len(known),), len(ids)).scatter_reduce_(0, of_row, torch.arange(len(ids)), "amin")
    order = first.argsort()
    return first[order], order.argsort()[of_row]


def split_data(
    inputs: Float32[Tensor, "n ..."],
    labels: Int64[Tensor, "n"],
    class_names: tuple[str, ...],
    name: str,
    *,
    bad: Sequence[str] = (),
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
) -> LabelledData:
    """Makes ``LabelledData`` of rows that came without a test split of their own: see ``stratified_split``."""
    train, test = stratified_split(labels, test_fraction, seed)
    return LabelledData(inputs[train], labels[train], inputs[test], labels[test], class_names, name, tuple(bad))


def require(module: str, why: str, extra: str = "cli") -> ModuleType:
    """Imports a package of an extra, or says which command installs it.

    Args:
        module: The module to import.
        why: What needs it, for the message.
        extra: The extra of ``nearfar`` that brings it.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn", "PIL": "pillow"}.get(module.split(".")[0], module.split(".")[0])
        raise ImportError(f'{why} needs {package}: pip install "nearfar[{extra}]"') from error
