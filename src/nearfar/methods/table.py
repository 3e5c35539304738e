"""The methods: one literal table. Adding one is its file and a row. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from nearfar.names import given, refuse_unused, unknown

Needs = Literal["views", "text", "labels", "pairs", "labels or triplets", "labels or judged pairs"]


@dataclass(frozen=True)
class MethodRow:
    """A method: a row of ``METHODS``."""

    title: str
    """What belongs together, in a few words."""
    home: str
    """``module:Class``."""
    needs: Needs
    """What the data must hold: an input that views can be drawn of, texts, labels, a second column, a third, a judgement of the two."""
    paper: str
    temperature: float | None = None
    """Of its softmax, where it has one: the paper's, or the best of its sweep."""
    learnable: bool = False
    """Whether the paper learns the temperature."""
    projection: int = 0
    """Width of the head that is thrown away; 0: there is none."""


METHODS: dict[str, MethodRow] = {
    "simclr": MethodRow("two views of an input", "nearfar.methods.views:SimCLR", "views", "arXiv:2002.05709", 0.1, projection=128),
    "moco": MethodRow("two views, a slow key encoder, a queue", "nearfar.methods.moco:MoCo", "views", "arXiv:1911.05722", 0.2, projection=128),
    "barlow": MethodRow("two views, features uncorrelated", "nearfar.methods.views:Barlow", "views", "arXiv:2103.03230", projection=512),
    "vicreg": MethodRow("two views, features spread", "nearfar.methods.views:VICReg", "views", "arXiv:2105.04906", projection=512),
    "simcse": MethodRow("a text under two dropout masks", "nearfar.methods.views:SimCSE", "text", "arXiv:2104.08821", 0.05),
    "supcon": MethodRow("inputs of one class", "nearfar.methods.labels:SupCon", "labels", "arXiv:2004.11362", 0.1, projection=128),
    "joint": MethodRow("inputs of one class, beside cross-entropy", "nearfar.methods.labels:JointMethod", "labels", "arXiv:2004.11362", 0.1),
    "siamese": MethodRow("inputs of one class, or pairs judged similar, by distance", "nearfar.methods.labels:Siamese", "labels or judged pairs", "Hadsell et al. 2006"),
    "triplet": MethodRow("inputs of one class, or anchor, positive and negative", "nearfar.methods.labels:Triplet", "labels or triplets", "arXiv:1503.03832"),
    "pairs": MethodRow("the two columns of a row", "nearfar.methods.pairs:PairsMethod", "pairs", "arXiv:1807.03748", 0.05),
    "clip": MethodRow("the two columns of a row, both ways", "nearfar.methods.pairs:CLIP", "pairs", "arXiv:2103.00020", 0.07, learnable=True),
    "siglip": MethodRow("the two columns of a row, each pair by itself", "nearfar.methods.pairs:SigLIP", "pairs", "arXiv:2303.15343", 0.1, learnable=True),
}  # fmt: skip


READ_BY: dict[str, tuple[str, ...]] = {
    "temperature": tuple(name for name, row in METHODS.items() if row.temperature is not None),
    "learnable_temperature": tuple(name for name, row in METHODS.items() if row.temperature is not None),
    "weight": ("joint",),
    "projection": tuple(name for name in METHODS if name != "joint"),
    "margin": ("siamese", "triplet"),
    "queue": ("moco",),
    "momentum": ("moco",),
}
"""Options of a method, and the methods that read them."""


@dataclass(frozen=True)
class Holds:
    """What data hold, as far as a method asks."""

    kinds: tuple[str, ...]
    """The kind of each column, the anchor's first; negatives are left out."""
    labels: bool
    negatives: bool = False
    """Beside positives: triplets."""
    judged: bool = False
    """Whether it is said of each pair how alike it is."""


def choose_method(given: str | None, holds: Holds) -> str:
    """The method that was asked for, once the data hold what it needs; or the one that fits them best.

    Raises:
        ValueError: If there is no such method, or the data lack what it needs.

    Example:
        >>> choose_method(None, Holds(("image",), labels=True)), choose_method(None, Holds(("image", "text"), False))
        ('supcon', 'clip')
        >>> choose_method("supcon", Holds(("image",), labels=False))
        Traceback (most recent call last):
        ...
        ValueError: method 'supcon' needs labels, and the data have none: name the column by label=, or use simclr
    """
    if given is None:
        return _fitting(holds)
    if given not in METHODS:
        raise ValueError(unknown("method", given, METHODS))
    lacking = _lacking(METHODS[given].needs, holds)
    if lacking:
        raise ValueError(f"method {given!r} needs {lacking}, or use {_fitting(holds)}")
    return given


def check_options(method: str, config: Any) -> None:
    """Refuses options of other methods, which this one would pass over.

    Raises:
        ValueError: If one was given; the message names the methods that read it.
    """
    for option, value in given(config, *READ_BY).items():
        if method not in READ_BY[option]:
            whose = ", ".join(READ_BY[option])
            refuse_unused(
                {option: value}, f"method {method!r} has none", f"leave it out, or pass method= one of {whose}"
            )


def _fitting(holds: Holds) -> str:
    if holds.judged:
        return "siamese"
    if holds.kinds[1:]:
        return "pairs" if holds.kinds[0] == holds.kinds[1] else "clip"
    if holds.labels:
        return "supcon"
    return "simcse" if holds.kinds[0] == "text" else "simclr"


def _lacking(needs: Needs, holds: Holds) -> str:
    """What is missing and what to do, or nothing."""
    if needs == "labels" and not holds.labels:
        return "labels, and the data have none: name the column by label="
    if needs == "labels or triplets" and not holds.labels and not holds.negatives:
        return (
            "labels, or a positive and a negative column, and the data have neither: name them by label= or negative="
        )
    if needs == "labels or judged pairs" and not holds.labels and not holds.judged:
        return "labels, or pairs that are judged similar or not, and the data have neither: name them by label= or similar="
    if needs == "pairs" and len(holds.kinds) < 2:
        return "a second column, and the data have one: name it by positive="
    if needs == "text" and holds.kinds[0] != "text":
        return f"texts, and the data are of kind {holds.kinds[0]}"
    if needs == "views" and holds.kinds[0] == "text":
        return "inputs that views can be drawn of, and texts have none but dropout's: use simcse"
    return ""
