"""Who belongs with whom in a joint batch: read from labels, pairs or the task's own targets; and how a loss is told."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from nearfar.given import are_sets, as_labels, as_tensor, flat, is_integer
from nearfar.pairs import Pairs

# Losses to which a pair belongs together or not, whatever its weight.
UNWEIGHTED = frozenset({"NCALoss", "TripletLoss"})


@dataclass(frozen=True)
class Relation:
    """What is known about the rows of the features."""

    labels: Int[Tensor, "n"] | Shaped[Tensor, "n c"] | None
    """Class ids, or weights or sets of classes, one row a sample, shared by its views."""
    pairs: Pairs | None
    """Given in place of labels, over the rows of the features; or over two views of them, one against the other."""
    views: int
    """Rows of features a sample, view-major."""


def read_relation(
    targets: object, labels: Any, pairs: Pairs | None, rows: int, needed: bool = True, outputs: object = None
) -> Relation:
    """What belongs together: pairs, else labels, else the targets if they can be labels (see :func:`labels_in`).

    Where no loss asks (``needed``), the number of targets tells how many views there are.

    Raises:
        ValueError: If targets are neither and nothing else was given, both were given, or counts differ.
        TypeError: If labels are names, or pairs no ``nf.Pairs``.
    """
    if pairs is not None:
        if labels is not None:
            raise ValueError(
                "labels and pairs were both given: pass one (nf.Pairs.by_label(labels) | pairs unites them)"
            )
        if not isinstance(pairs, Pairs):
            raise TypeError(
                f"pairs is a {type(pairs).__name__}: build it by a constructor of nf.Pairs, such as from_matrix"
            )
        return Relation(None, pairs, 2 if rows == 2 * pairs.shape[0] == 2 * pairs.shape[1] else 1)
    if labels is None:
        labels = labels_in(targets, outputs)
        if labels is None:
            if (
                not needed
                and isinstance(targets, Tensor)
                and targets.ndim
                and len(targets)
                and rows % len(targets) == 0
            ):
                return Relation(None, None, rows // len(targets))
            raise ValueError(_no_labels(targets))
    else:
        labels = as_tensor("labels", labels, "integer class ids")
        if labels.ndim == 1 and labels.is_floating_point():
            raise ValueError(f"labels are {labels.dtype}: pass integers, labels.long()")
        labels = as_labels(labels)
    if not len(labels) or rows % len(labels):
        tokens = (
            "; labels of tokens or places go with features flattened alike, features=f.flatten(0, 1)"
            if rows and len(labels) > rows and len(labels) % rows == 0
            else ""
        )
        raise ValueError(
            f"features have {rows} rows but there are {len(labels)} labels: wanted one label a row, or a row for each "
            "of its views. Under nn.DataParallel each copy of the model sees a part only, and a model that runs twice "
            f"before the criterion leaves its last run: pass features= at the call, or run it once on all rows{tokens}"
        )
    return Relation(labels, None, rows // len(labels))


def _no_labels(targets: object) -> str:
    given = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
    places = ""
    if isinstance(targets, Tensor) and targets.ndim > 1 and is_integer(targets):
        places = "; targets of tokens or places are many to a row of features"
    return (
        f"targets are {given}, which do not say what belongs together: class ids (n,) or class weights (n, c) "
        f"would{places}; pass labels= (one integer a sample) or pairs="
    )


def repeat_views(labels: Shaped[Tensor, "n ..."], views: int) -> Shaped[Tensor, "v_n ..."]:
    """Labels once a sample as labels once a row of its views, all first views first."""
    return labels if views == 1 else labels.repeat(views, *[1] * (labels.ndim - 1))


def labels_in(targets: object, outputs: object = None) -> Shaped[Tensor, "n *c"] | None:
    """The targets as labels: class ids ``(n,)`` or ``(n, 1)``, or class weights or sets ``(n, c)``; None: they tell no classes.

    Weights are rows that sum to 1, as mixing and smoothing make them; sets are rows of 0s and 1s. A matrix of targets beside
    outputs of more than two dimensions has a target for each token or place: it says nothing of whole rows.
    """
    if not isinstance(targets, Tensor) or not targets.ndim or not len(targets):
        return None
    targets = flat(as_tensor("targets", targets, "integer class ids"))
    if targets.ndim == 1:
        return targets if is_integer(targets) else None
    if targets.ndim != 2 or targets.shape[1] < 2 or (isinstance(outputs, Tensor) and outputs.ndim > 2):
        return None
    if are_sets(targets):
        return targets
    shares = targets.is_floating_point() and (targets >= 0).all() & ((targets.sum(1) - 1).abs() < 1e-2).all()
    return targets if bool(shares) else None


class Takes(NamedTuple):
    """What a loss can be told."""

    labels: bool
    pairs: bool
    sides: int
    """How many matrices of embeddings it asks for."""
    keys: bool
    """Whether a second one is keys that the first scores."""


def what_it_takes(loss: Callable[..., Tensor]) -> Takes:
    """What a loss can be told, by the names of its parameters."""
    function = getattr(loss, "function", None)  # what the losses here wrap, whose own forward takes anything
    if not callable(function):
        function = loss.forward if isinstance(loss, nn.Module) else loss
    parameters = inspect.signature(function).parameters
    sides = 0
    for name, parameter in parameters.items():
        if name in ("labels", "pairs") or parameter.default is not parameter.empty:
            break
        sides += parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    return Takes("labels" in parameters, "pairs" in parameters, max(sides, 1), "keys" in parameters or sides == 2)


def call_loss(
    name: str, loss: Callable[..., Tensor], takes: Takes, z: Float[Tensor, "n d"], relation: Relation
) -> Float[Tensor, ""]:
    """Tells a loss what belongs together in the form it takes: labels, pairs, or views alone.

    Raises:
        TypeError: If the loss cannot be told so.
        ValueError: If its value is not a scalar.
    """
    labels, pairs, views = relation.labels, relation.pairs, relation.views
    if views < takes.sides:
        raise TypeError(
            f"{name} compares two views: pass {2 * len(z)} rows of features, all first views before the second"
        )
    if not (takes.labels or takes.pairs):
        return scalar(name, loss(*z.chunk(views)))
    both = views == 2 and takes.keys  # one view scores the other; any other loss sees all rows as one set
    rows = z.chunk(2) if both else (z,)
    if labels is not None:
        ids = labels if both else repeat_views(labels, views)
        if takes.labels and ids.ndim == 1:
            return scalar(name, loss(*rows, labels=ids))
        pairs = Pairs.by_label(ids)
    if not takes.pairs:
        raise TypeError(f"{name} takes class ids only: pass the criterion labels= (n,), for example targets.argmax(1)")
    if labels is not None and type(loss).__name__ in UNWEIGHTED and not are_sets(labels):
        raise TypeError(
            f"{name}, a {type(loss).__name__}, knows no degrees of belonging together, which soft targets are: pass the "
            "criterion labels= (n,), for example targets.argmax(1), or contrast by nf.SupConLoss()"
        )
    return scalar(name, loss(*rows, pairs=pairs))


def scalar(name: str, value: object) -> Float[Tensor, ""]:
    """The value, if it is one number.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f'{name} returned {given}: wanted one number; build the loss with reduction="mean"')
    return value.reshape(())
