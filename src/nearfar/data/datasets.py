"""Datasets of pairs and triplets, made of any labelled map-style dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset, Subset

from nearfar.data.classes import Classes
from nearfar.data.drawing import ByClass, class_ids_of, generator_of
from nearfar.given import at_least

Labels = Classes


@runtime_checkable
class Items(Protocol):
    """A map-style dataset: a length, and items by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class Pair(NamedTuple):
    """Two items of a dataset, and whether they belong together; a batch of them collates field by field."""

    inputs: tuple[Any, Any]
    """The two inputs."""
    labels: Int64[Tensor, "2"]
    """Their classes."""
    pairs: Int64[Tensor, "2"]
    """Their rows in the dataset."""
    pair_labels: Int64[Tensor, ""]
    """1 if they are of one class, 0 if not."""


class Triplet(NamedTuple):
    """An anchor, another item of its class, an item of another class; a batch of them collates field by field."""

    inputs: tuple[Any, Any, Any]
    """Anchor, positive, negative."""
    labels: Int64[Tensor, "3"]
    """Their classes."""
    triplets: Int64[Tensor, "3"]
    """Their rows in the dataset."""


class _Drawn(Dataset, ABC):
    """Anchors with partners: a function of seed and epoch alone, whichever worker asks."""

    def __init__(self, dataset: Items, labels: Labels | None, keys: tuple[Any, Any], seed: int) -> None:
        self.dataset, self.keys, self.seed = dataset, keys, at_least("seed", seed, 0)
        self.labels = class_ids_of(read_labels(dataset, keys[1]) if labels is None else labels)
        if len(self.labels) != len(dataset):
            raise ValueError(
                f"the dataset has {len(dataset)} items but there are {len(self.labels)} labels: pass one each"
            )
        self._by_class = ByClass(self.labels)
        # In shared memory, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._plan: tuple[int, Int64[Tensor, "n k"]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Draws anew. Call it before each epoch, or every epoch is the same."""
        self._epoch.fill_(at_least("epoch", epoch, 0))

    @abstractmethod
    def _draw(self, generator: torch.Generator) -> Int64[Tensor, "n k"]:
        """The rows of each draw, the anchor's first."""

    def _rows(self, index: int) -> Int64[Tensor, "k"]:
        epoch = int(self._epoch)
        if self._plan is None or self._plan[0] != epoch:
            self._plan = epoch, self._draw(generator_of(self.seed, epoch))
        return self._plan[1][index]

    def _inputs(self, rows: Int64[Tensor, "k"]) -> tuple[Any, ...]:
        return tuple(read_item(self.dataset[row], self.keys[0], "input") for row in rows.tolist())


class PairDataset(_Drawn):
    """Pairs of items: ``(inputs, labels, pairs, pair_labels)``, see ``Pair``.

    Every item is the first of one pair an epoch; a fraction of the pairs, exact to within one, takes its second from
    the same class, the others from all items of other classes. An item alone in its class has no partner there: its
    pair is a different one, and another item's is the same.

    Args:
        dataset: Any map-style dataset of labelled items: tuples ``(input, label)``, or dicts (with ``keys``).
        labels: Class ids ``(n,)``; by default the dataset's own (``targets``, a ``TensorDataset``'s second tensor, a
            Hugging Face column), else read item by item. Items with a negative one (unknown) are left out.
        positives: The fraction of pairs of one class, in [0, 1]. One half: chance level is then one half.
        keys: Where an item holds its input and its label, such as ``("image", "label")``.
        seed: Of all draws; with ``set_epoch`` alone it says what is drawn, in any number of workers.

    Raises:
        ValueError: If the classes do not give so many pairs of either kind, or labels and items differ in number.
        TypeError: If items do not hold what ``keys`` say.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 1]))
        >>> (first, second), labels, pairs, same = next(iter(DataLoader(PairDataset(data), batch_size=6)))
        >>> first.shape, labels.shape, int(same.sum())
        (torch.Size([6, 4]), torch.Size([6, 2]), 3)
        >>> import nearfar as nf
        >>> loss = nf.ContrastiveLoss()(first, second, same)
    """

    def __init__(
        self,
        dataset: Items,
        labels: Labels | None = None,
        *,
        positives: float = 0.5,
        keys: tuple[Any, Any] = (0, 1),
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, labels, keys, seed)
        if not isinstance(positives, Real) or not 0 <= positives <= 1:
            raise ValueError(f"positives is {positives}: wanted a fraction from 0 to 1")
        self.positives = positives
        wanted, possible = round(positives * len(self)), int(self._by_class.paired.sum())
        if wanted > possible:
            raise ValueError(
                f"{wanted} pairs of one class were asked for, but only {possible} of {len(self)} items have another of "
                f"their class: pass positives={possible / len(self):.2g} or less"
            )
        if wanted < len(self) and len(self._by_class) < 2:
            raise ValueError("pairs of different classes were asked for, but there is one class: pass positives=1.0")

    def __len__(self) -> int:
        """Pairs an epoch: the items of known class."""
        return len(self._by_class.rows)

    def __getitem__(self, index: int) -> Pair:
        """The pair whose first item is the ``index``-th of known class."""
        rows = self._rows(index)
        labels = self.labels[rows]
        inputs: Any = self._inputs(rows)
        return Pair(inputs, labels, rows, (labels[0] == labels[1]).long())

    def _draw(self, generator: torch.Generator) -> Int64[Tensor, "n 2"]:
        groups, n = self._by_class, len(self)
        # A random order with the items that can have a partner first: the start of it gets one.
        order = torch.randperm(n, generator=generator)
        order = order[torch.argsort((~groups.paired[order]).long(), stable=True)]
        same = torch.zeros(n, dtype=torch.bool)
        same[order[: round(self.positives * n)]] = True
        second = torch.where(same, groups.mates(generator), groups.strangers(generator))
        return torch.stack([groups.rows, groups.rows[second]], 1)[groups.rows.argsort()]


class TripletDataset(_Drawn):
    """Triplets of items: ``(inputs, labels, triplets)``, see ``Triplet``.

    Every item that has another of its class is the anchor of one triplet an epoch; ``alone`` counts the others.

    Args:
        dataset: As for ``PairDataset``.
        labels: As for ``PairDataset``.
        keys: As for ``PairDataset``.
        seed: As for ``PairDataset``.

    Raises:
        ValueError: If no class has two items or there is one class only.
        TypeError: If items do not hold what ``keys`` say.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> triplets = TripletDataset(TensorDataset(torch.randn(5, 4), torch.tensor([0, 0, 1, 1, 2])))
        >>> len(triplets), triplets.alone, triplets[0].labels[:2]
        (4, 1, tensor([0, 0]))
    """

    def __init__(
        self, dataset: Items, labels: Labels | None = None, *, keys: tuple[Any, Any] = (0, 1), seed: int = 0
    ) -> None:
        super().__init__(dataset, labels, keys, seed)
        if not len(self) or len(self._by_class) < 2:
            raise ValueError(
                f"triplets want two classes and two items of one: there are {len(self._by_class)} classes, the largest "
                f"with {int(self._by_class.counts.max())} items"
            )

    @property
    def alone(self) -> int:
        """Items without another of their class, which are anchors of nothing."""
        return int((~self._by_class.paired).sum())

    def __len__(self) -> int:
        """Triplets an epoch."""
        return int(self._by_class.paired.sum())

    def __getitem__(self, index: int) -> Triplet:
        """The triplet of the ``index``-th item that can be an anchor."""
        rows = self._rows(index)
        inputs: Any = self._inputs(rows)
        return Triplet(inputs, self.labels[rows], rows)

    def _draw(self, generator: torch.Generator) -> Int64[Tensor, "n 3"]:
        groups = self._by_class
        places = (torch.arange(len(groups.rows)), groups.mates(generator), groups.strangers(generator))
        rows = torch.stack([groups.rows[place] for place in places], 1)[groups.paired]
        return rows[rows[:, 0].argsort()]


def read_labels(dataset: Items, key: Any) -> Labels:
    """The labels of a dataset, from where it keeps them all if it does, else item by item.

    Args:
        dataset: A map-style dataset.
        key: Where an item holds its label.

    Raises:
        TypeError: If items do not hold what ``key`` says.
    """
    if isinstance(dataset, Subset):
        inner: Any = dataset.dataset
        return np.asarray(read_labels(inner, key))[list(dataset.indices)]
    if key == 1:
        tensors = getattr(dataset, "tensors", (None, None))
        for labels in (getattr(dataset, "targets", None), tensors[1] if len(tensors) > 1 else None):
            if isinstance(labels, Tensor | np.ndarray | list | tuple) and len(labels) == len(dataset):
                return labels
    if key in (getattr(dataset, "column_names", None) or ()):  # a Hugging Face dataset
        return list(dataset[key])
    return [read_item(dataset[row], key, "label") for row in range(len(dataset))]


def read_item(item: Any, key: Any, what: str) -> Any:
    """What an item holds at a key, or an error that says what it does hold."""
    try:
        return item[key]
    except (KeyError, IndexError, TypeError) as error:
        held = f"holds {', '.join(map(repr, item))}" if isinstance(item, Mapping) else "is no such tuple"
        raise TypeError(
            f"the {what} was looked for at {key!r}, but an item of the dataset ({type(item).__name__}) {held}: pass "
            'keys=, where an item holds its input and its label, such as keys=("image", "label")'
        ) from error
