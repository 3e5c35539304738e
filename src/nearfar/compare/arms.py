"""The arms of a comparison: one literal table. Adding an arm is adding a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nearfar.names import unknown


@dataclass(frozen=True)
class Arm:
    """One way to train the same network: a row of ``ARMS``.

    What an arm adds is read off against the arm that differs from it in that alone; so that what a head or a read-out
    brings is not credited to the contrast, both come as controls too.
    """

    title: str
    """What it is called in tables."""
    kind: Literal["baseline", "control", "contrast"]
    """The plain network; without contrast, but with what else an arm with contrast has; with contrast."""
    head: Literal["linear", "batchnorm", "cosine"]
    """The last layer: as the model has it; after batch normalisation of the features; that and cosine scores."""
    readout: Literal["head", "prototypes", "mixed"] = "head"
    """Who answers: the head; the nearest class prototype; the sum of both their log-probabilities."""
    task: bool = True
    """Whether the task loss takes part."""
    weights: tuple[float, ...] = ()
    """Weights of the contrast to try in the sweep beside 1; they are paid from the same budget as the rates."""


ARMS: dict[str, Arm] = {
    "task": Arm("cross-entropy", "baseline", "linear"),
    "batchnorm": Arm("cross-entropy, batch-normalised features", "control", "batchnorm"),
    "control": Arm("cross-entropy, cosine head", "control", "cosine"),
    "control-prototypes": Arm("cross-entropy, cosine head, mixed read-out", "control", "cosine", "mixed"),
    "joint": Arm("joint, cosine head", "contrast", "cosine", weights=(0.3, 3.0)),
    "joint-prototypes": Arm("joint, cosine head, mixed read-out", "contrast", "cosine", "mixed", weights=(0.3, 3.0)),
    "prototypes": Arm("contrastive alone, read by prototypes", "contrast", "cosine", "prototypes", task=False),
}

BASELINE = "task"


def control_of(name: str) -> str | None:
    """The control that differs from an arm in the contrast alone; None: there is none.

    Example:
        >>> control_of("joint"), control_of("prototypes")
        ('control', None)
    """
    arm = ARMS[name]
    like = (
        row
        for row in ARMS
        if ARMS[row].kind == "control" and (ARMS[row].head, ARMS[row].readout) == (arm.head, arm.readout)
    )
    return next(like, None)


def select_arms(names: tuple[str, ...]) -> dict[str, Arm]:
    """The rows of ``ARMS`` of these names, in the order of the table.

    Raises:
        ValueError: If a name is unknown, the baseline is missing, or there is nothing to compare it with.

    Example:
        >>> list(select_arms(("joint", "task")))
        ['task', 'joint']
    """
    for name in names:
        if name not in ARMS:
            raise ValueError(unknown("arm", name, ARMS))
    if BASELINE not in names or len(set(names)) < 2:
        raise ValueError(
            f"the arms are {', '.join(names) or 'none'}: a comparison needs the baseline {BASELINE!r} and another one"
        )
    return {name: arm for name, arm in ARMS.items() if name in names}
