"""Classification by words: rows go to the class whose prompts they are nearest to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.evaluation.inputs import as_ids, as_ks, as_rows
from nearfar.evaluation.knn import nearest
from nearfar.evaluation.retrieval import retrieval
from nearfar.lengths import unit_rows


def prompt_prototypes(prompts: Sequence[Tensor] | Float[Tensor, "classes t d"]) -> Float[Tensor, "classes d"]:
    """One direction a class: the mean of its prompts' directions (Radford et al. 2021, arXiv:2103.00020, sec. 3.1.4).

    Args:
        prompts: For each class, the embeddings of its templates ``(t, d)``; a tensor ``(classes, t, d)`` will do.

    Example:
        >>> prompt_prototypes([torch.tensor([[2.0, 0.0], [0.0, 5.0]])]).round(decimals=4)
        tensor([[0.7071, 0.7071]])
    """
    if not len(prompts):
        raise ValueError("no prompts were given: at least one class was wanted")
    return unit_rows(
        torch.stack([unit_rows(as_rows(f"prompts of class {c}", p)).mean(0) for c, p in enumerate(prompts)])
    )


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """How often the right class is among the first."""

    accuracy: dict[int, float]
    """By cut-off: 1, 5. A class that ties with others counts as its mean place among them."""
    per_class: Float[Tensor, "classes"]
    """Of cut-off 1; NaN for a class without rows."""
    predicted: Int64[Tensor, "n"]
    """The nearest class; of equally near ones the lowest."""
    rows: int
    notes: tuple[str, ...] = ()
    """What ties decided, in words."""

    def __getitem__(self, k: int) -> float:
        return self.accuracy[k]


def zero_shot(
    embeddings: Float[Tensor, "n d"],
    labels: Int64[Tensor, "n"],
    prototypes: Float[Tensor, "classes d"],
    ks: Sequence[int] = (1, 5),
) -> ZeroShot:
    """Top-k accuracy of the classes whose prototypes are nearest by cosine.

    Args:
        embeddings: ``(n, d)``, such as of images.
        labels: Rows of the prototypes; rows with a negative one are left out.
        prototypes: ``(classes, d)``: see :func:`prompt_prototypes`.
        ks: Cut-offs; those above the number of classes are left out.

    Raises:
        ValueError: If a label is no row of the prototypes, or no row has one.

    Example:
        >>> zero_shot(torch.eye(2), torch.tensor([0, 0]), torch.eye(2), ks=(1, 2)).accuracy
        {1: 0.5, 2: 1.0}
    """
    embeddings, prototypes = as_rows("embeddings", embeddings), as_rows("prototypes", prototypes)
    labels = as_ids("labels", labels, len(embeddings)).to(embeddings.device)
    embeddings, labels = embeddings[labels >= 0], labels[labels >= 0]
    if not len(labels):
        raise ValueError("no row has a label (0 or more): nothing to classify")
    if int(labels.max()) >= len(prototypes):
        raise ValueError(
            f"a label is {int(labels.max())}, but there are {len(prototypes)} prototypes: one a class was wanted"
        )
    ks = tuple(k for k in as_ks("ks", ks) if k <= len(prototypes))
    classes = torch.arange(len(prototypes), device=labels.device)
    found = retrieval(embeddings, labels, prototypes, classes, ks=(1, *ks), complete=False)
    hits = torch.zeros(len(prototypes), dtype=torch.float64).index_add_(0, labels.cpu(), found.per_query["recall@1"])
    return ZeroShot(
        {k: found[f"recall@{k}"] for k in ks},
        hits / torch.bincount(labels.cpu(), minlength=len(prototypes)),  # 0/0 is NaN
        nearest(embeddings, prototypes, k=1).indices[:, 0],
        len(labels),
        found.notes,
    )
