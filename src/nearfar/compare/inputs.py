"""The data of a comparison: whatever the user has, as tensors in three parts: to train on, to choose by, to test on."""

from __future__ import annotations

import hashlib
from collections.abc import Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils.data import Dataset

from nearfar.compare.config import CompareConfig
from nearfar.compare.unlabelled import labelled_rows
from nearfar.data.labelled import LabelledData, class_ids, split_data, stratified_split
from nearfar.data.sources import SOURCES, load_data
from nearfar.given import as_tensor
from nearfar.names import given, refuse_unused

# More rows would only make choosing a rate slower: the standard error of an accuracy is then 0.7 points at most.
MOST_VALIDATION_ROWS = 5_000
# What data without a name are called.
IN_MEMORY = "tensors"


@dataclass(frozen=True)
class Rows:
    """Inputs with their class ids."""

    inputs: Float32[Tensor, "n ..."]
    labels: Int64[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Rows:
        """The same rows on a device."""
        return Rows(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Task:
    """A classification task in three parts. The test rows are seen by fresh seeds only, never while choosing."""

    train: Rows
    validation: Rows
    test: Rows
    class_names: tuple[str, ...]
    name: str
    bad: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def with_outputs(self, outputs: int) -> Task:
        """The same for a network that has an output for each class id up to the largest, also for ids that no row has."""
        if self.name != IN_MEMORY or not all(map(str.isdigit, self.class_names)):
            return self
        ids = torch.tensor([int(name) for name in self.class_names])
        if outputs != int(ids.max()) + 1:
            return self
        parts = {name: getattr(self, name) for name in ("train", "validation", "test")}
        own = {name: Rows(part.inputs, ids[part.labels]) for name, part in parts.items()}
        return replace(self, **own, class_names=tuple(map(str, range(outputs))))

    def fingerprint(self) -> str:
        """Tells other data, or another split, from these: so that a comparison goes on with what it began with."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for rows in (self.train, self.validation, self.test):
            digest.update(repr(tuple(rows.inputs.shape)).encode())
            digest.update(rows.inputs.contiguous().numpy().tobytes())
            digest.update(rows.labels.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def make_task(data: Any, config: CompareConfig) -> Task:
    """Reads the data, checks them, and holds validation rows out of the training rows.

    Args:
        data: A name or a path for ``load_data``; a ``LabelledData``; ``(inputs, labels)``; ``(train inputs, train
            labels, test inputs, test labels)``; a map-style dataset of ``(input, label)``; or a pair of those, to train
            and to test on. Tensors and whatever ``torch.as_tensor`` takes; labels are any whole numbers, or names. Rows whose
            label is missing (None, NaN, ``pandas.NA``) are left out, and told.
        config: Gives the label's column, the seed and the size of the validation part.

    Raises:
        ValueError: If the data cannot be used; the message says what was found, what was wanted and the remedy.
        TypeError: If it is none of these.
    """
    labelled = _labelled(data, config)
    _check(labelled)
    classes = labelled.num_classes
    fraction = min(config.validation, MOST_VALIDATION_ROWS / len(labelled.train_labels))
    fit, held = stratified_split(labelled.train_labels, fraction, config.seed, labelled.copies)
    if len(held) == 0 or len(fit) < 2:
        raise ValueError(
            f"{labelled.name} has {len(labelled.train_labels)} training rows of {classes} classes: too few to hold "
            "some out to choose learning rates by; two rows of a class are the least"
        )
    inputs, labels = labelled.train_inputs, labelled.train_labels
    return Task(
        train=Rows(inputs[fit], labels[fit]),
        validation=Rows(inputs[held], labels[held]),
        test=Rows(labelled.test_inputs, labelled.test_labels),
        class_names=labelled.class_names,
        name=labelled.name,
        bad=labelled.bad,
        notes=labelled.notes,
    )


def _labelled(data: Any, config: CompareConfig) -> LabelledData:
    if isinstance(data, (str, Path)):
        if str(data) in SOURCES:
            refuse_unused(given(config, "skip_bad"), f"all of {data} can be read")
        return load_data(data, root=config.root, label=config.label, skip_bad=config.skip_bad)
    refuse_unused(given(config, "root", "label", "skip_bad"), "the data are in memory")
    if isinstance(data, LabelledData):
        return data
    if isinstance(data, Dataset):
        return _without_split(*_stack(data), config)
    if isinstance(data, (tuple, list)):
        if len(data) == 2 and all(isinstance(part, Dataset) for part in data):
            return _with_split(*_stack(data[0]), *_stack(data[1]))
        if len(data) == 2:
            return _without_split(data[0], data[1], config)
        if len(data) == 4:
            return _with_split(*data)
    raise TypeError(
        f"data is {type(data).__name__}{f' of {len(data)}' if isinstance(data, (tuple, list)) else ''}: pass a name, a "
        "path, (inputs, labels), (train inputs, train labels, test inputs, test labels), or one or two datasets"
    )


def _stack(dataset: Dataset[Any]) -> tuple[Tensor, list[Any]]:
    if not isinstance(dataset, Sized):
        raise TypeError(f"{type(dataset).__name__} has no length: wanted a map-style dataset, which fits into memory")
    rows = [dataset[i] for i in range(len(dataset))]
    if not rows or not isinstance(rows[0], (tuple, list)) or len(rows[0]) != 2:
        raise ValueError(f"{type(dataset).__name__} has {len(rows)} rows: wanted some, each an (input, label)")
    labels = [y.item() if isinstance(y, Tensor) and y.numel() == 1 else y for _, y in rows]
    return torch.stack([as_tensor("inputs", x, "numbers") for x, _ in rows]), labels


def _without_split(inputs: Any, labels: Any, config: CompareConfig) -> LabelledData:
    rows, labels, bad = labelled_rows(_inputs(inputs), labels)
    (ids,), names = _numbered((rows, labels, "training"))
    return split_data(rows, ids, names, IN_MEMORY, bad=bad, seed=config.seed)


def _with_split(train: Any, train_labels: Any, test: Any, test_labels: Any) -> LabelledData:
    rows, labels, bad = labelled_rows(_inputs(train), train_labels, "training ")
    others, other_labels, other_bad = labelled_rows(_inputs(test), test_labels, "test ")
    (ids, other_ids), names = _numbered((rows, labels, "training"), (others, other_labels, "test"))
    return LabelledData(rows, ids, others, other_ids, names, IN_MEMORY, (*bad, *other_bad))


def _inputs(inputs: Any) -> Tensor:
    rows = as_tensor("inputs", inputs, "numbers, a row an input")
    if rows.is_complex():
        raise TypeError(f"inputs are {rows.dtype}: wanted real numbers")
    return rows.float()


def _numbered(*parts: tuple[Tensor, Any, str]) -> tuple[list[Tensor], tuple[str, ...]]:
    """Labels as ids from 0, in the order of all classes that there are; and the names of those."""
    texts = [_class_texts(*part) for part in parts]
    ids, names = class_ids([text for part in texts for text in part])
    return list(ids.split([len(part) for part in texts])), names


def _class_texts(inputs: Tensor, labels: Any, part: str) -> list[str]:
    """Labels, whole numbers or names, as texts."""
    named = isinstance(labels, list) and any(isinstance(y, str) for y in labels)  # numbers are not to be texts
    array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels, object if named else None)
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1 or len(inputs) != len(array):
        raise ValueError(
            f"inputs are {tuple(inputs.shape)} and labels {tuple(array.shape)}: wanted one class a row, (n,)"
        )
    values = array.tolist()
    numbers = all(isinstance(y, int | np.integer) and not isinstance(y, bool) for y in values)
    if not numbers and not all(isinstance(y, str) for y in values):
        raise ValueError(
            f"labels are {getattr(labels, 'dtype', array.dtype)}: wanted whole class ids, such as labels.long(), or names"
        )
    if numbers and values and min(values) < 0:
        raise ValueError(
            f"{part} labels run from {min(values)} to {max(values)}: a negative one is an unknown class, which cannot be "
            "trained or tested on, so leave those rows out"
        )
    return [str(y) for y in values]


def _check(data: LabelledData) -> None:
    for part, inputs, labels in (
        ("training", data.train_inputs, data.train_labels),
        ("test", data.test_inputs, data.test_labels),
    ):
        if len(labels) == 0:
            raise ValueError(f"{data.name} has no {part} rows")
        if int(labels.min()) < 0 or int(labels.max()) >= data.num_classes:
            raise ValueError(
                f"{part} labels run from {int(labels.min())} to {int(labels.max())} for {data.num_classes} classes: "
                f"wanted class ids from 0 to {data.num_classes - 1}"
            )
        wrong = (~inputs.flatten(1).isfinite().all(1)).nonzero().flatten()
        if len(wrong):
            raise ValueError(
                f"{len(wrong)} of {len(labels)} {part} rows hold NaN or infinity, the first is row {int(wrong[0])}: "
                "fill or drop them"
            )
    if data.train_inputs.shape[1:] != data.test_inputs.shape[1:]:
        raise ValueError(
            f"training inputs are {tuple(data.train_inputs.shape[1:])} and test inputs "
            f"{tuple(data.test_inputs.shape[1:])}: wanted the same shape"
        )
    if len(data.train_labels.unique()) < 2:
        raise ValueError(f"{data.name} has training rows of one class only: a comparison needs two classes or more")
