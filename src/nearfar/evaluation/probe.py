"""The linear probe: how well one linear layer, trained to the end, classifies frozen embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.data.labelled import stratified_split
from nearfar.evaluation.inputs import as_ids, as_rows
from nearfar.evaluation.scoring import in_range, unit_of
from nearfar.given import at_least
from nearfar.losses.arguments import check_range
from nearfar.losses.numbers import NOT_NEGATIVE

STRENGTHS = (1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Of the regularisation, strongest first: each starts from the one before."""


@dataclass(frozen=True, eq=False)
class Probe:
    """What the probe found."""

    accuracy: float
    per_class: dict[int, float]
    """Accuracy by class id, of classes with test rows."""
    strength: float
    """Of the regularisation, chosen on held-out training rows."""
    predicted: Int64[Tensor, "n"]
    """The class of each test row with a label."""


def logistic_regression(
    rows: Float[Tensor, "n d"],
    classes: Int64[Tensor, "n"],
    count: int,
    strength: float,
    start: Float[Tensor, "count d_and_one"] | None = None,
    steps: int = 200,
) -> Float[Tensor, "count d_and_one"]:
    """Multinomial logistic regression: the minimum of ``mean cross-entropy + λ/2·‖W‖²``, the bias free, by L-BFGS.

    Args:
        rows: ``(n, d)``.
        classes: In ``0 … count − 1``.
        count: Of classes.
        strength: λ.
        start: Weights to begin with; by default 0.
        steps: At most.

    Returns:
        Weights, and in the last column the bias.

    Example:
        >>> w = logistic_regression(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 2, 0.1)
        >>> bool(w[1, 0] > 0), round(float(w[1, 1]), 4)
        (True, 0.0)
    """
    with torch.enable_grad():
        weight = (
            rows.new_zeros(count, rows.shape[1] + 1) if start is None else start.detach().clone()
        ).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight],
            max_iter=steps,
            tolerance_grad=1e-6,
            tolerance_change=1e-9,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            scores = torch.addmm(weight[:, -1], rows, weight[:, :-1].T)
            loss = torch.nn.functional.cross_entropy(scores, classes) + strength / 2 * weight[:, :-1].square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return weight.detach()


def linear_probe(
    train: Float[Tensor, "t d"],
    train_labels: Int64[Tensor, "t"],
    test: Float[Tensor, "n d"],
    test_labels: Int64[Tensor, "n"],
    *,
    strengths: Sequence[float] = STRENGTHS,
    validation: float = 0.2,
    seed: int = 0,
) -> Probe:
    """Trains a linear classifier on frozen rows and tests it on others.

    Features are standardised by the training rows. The regularisation is chosen on a part of the training rows, the same
    share of each class; equal ones go to the stronger. Then all of them are fitted.

    Args:
        train: ``(t, d)``.
        train_labels: Their classes; negative: unknown, left out.
        test: ``(n, d)``.
        test_labels: Their classes; one that no training row has counts as wrong.
        strengths: λ to try.
        validation: The part held out to choose λ.
        seed: Of that split.

    Raises:
        ValueError: If fewer than two classes can be learned, or no test row has a label.

    Example:
        >>> z, y = torch.tensor([[0.0], [0.1], [1.0], [1.1]]), torch.tensor([0, 0, 1, 1])
        >>> linear_probe(z, y, z, y).accuracy
        1.0
    """
    train, test, seed = as_rows("train", train), as_rows("test", test), at_least("seed", seed, 0)
    check_range("validation", validation, 0.0, 1.0)
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"training rows have {train.shape[1]} features, test rows {test.shape[1]}: the same encoder was wanted"
        )
    train_labels = as_ids("train_labels", train_labels, len(train)).to(train.device)
    test_labels = as_ids("test_labels", test_labels, len(test)).to(test.device)
    train, train_labels = train[train_labels >= 0], train_labels[train_labels >= 0]
    test, test_labels = test[test_labels >= 0], test_labels[test_labels >= 0]
    names, classes = train_labels.unique(return_inverse=True)
    if len(names) < 2 or not len(test):
        raise ValueError(
            f"{len(names)} classes among {len(train)} training rows and {len(test)} test rows with a label: "
            "two classes and a test row were wanted"
        )
    unit = unit_of(train)  # standardised, their scale does not matter
    train, test = in_range(train, unit), in_range(test, unit)
    dtype = torch.float64 if train.dtype == torch.float64 else torch.float32
    mean, spread = train.double().mean(0), train.double().std(0, correction=0)
    spread = spread.masked_fill(spread == 0, 1.0)
    train, test = (((rows.double() - mean) / spread).to(dtype) for rows in (train, test))
    strengths = sorted((NOT_NEGATIVE("strengths", strength) for strength in strengths), reverse=True)
    if not strengths:
        raise ValueError("no strengths were given: one λ at least was wanted, such as 1e-3")
    strength = strengths[0]
    if len(strengths) > 1:
        fitted, held = (rows.to(train.device) for rows in stratified_split(classes.cpu(), validation, seed))
        weight, most = None, -1
        for candidate in strengths if len(held) else ():
            weight = logistic_regression(train[fitted], classes[fitted], len(names), candidate, weight)
            right = int((_predict(weight, train[held]) == classes[held]).sum())
            if right > most:
                strength, most = candidate, right
    weight = logistic_regression(train, classes, len(names), strength)
    predicted = names[_predict(weight, test)]
    right = (predicted == test_labels).double()
    per_class = {int(c): float(right[test_labels == c].mean()) for c in test_labels.unique()}
    return Probe(float(right.mean()), per_class, strength, predicted)


def _predict(weight: Tensor, rows: Tensor) -> Tensor:
    return torch.addmm(weight[:, -1], rows, weight[:, :-1].T).argmax(1)
