"""Which column is what: by the names the user gave, else by usual names, else by what a column holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from nearfar.data.config import DataConfig
from nearfar.data.corpus import Column
from nearfar.data.pixels import SUFFIXES
from nearfar.data.records import to_number
from nearfar.names import unknown
from nearfar.types import Kind

Holds = Literal["image", "text", "texts", "number", "vector", "series", "other"]
"""What the cells of a column are; ``"texts"`` are lists of texts, ``"vector"`` lists of numbers, ``"series"`` lists of those."""

USUAL: dict[str, tuple[str, ...]] = {
    "image": (
        "image", "img", "picture", "photo", "image_path", "img_path", "image_file", "file_name", "filename", "file",
        "filepath", "path", "jpg", "jpeg", "png", "webp", "image1",
    ),
    "anchor": (
        "anchor", "query", "question", "question1", "sentence1", "sentence_1", "sentence_a", "text1", "premise", "sent1",
        "source",
    ),
    "text": ("text", "caption", "sentence", "title", "description", "txt", "name"),
    "positive": (
        "positive", "pos", "answer", "passage", "document", "question2", "sentence2", "sentence_2", "sentence_b", "text2",
        "hypothesis", "sent2", "positive_image", "paraphrase", "image2",
    ),
    "negative": ("negative", "neg", "negatives", "hard_negative", "hard_negatives", "hard_neg", "negative_image"),
    "label": ("label", "labels", "target", "class", "y", "cls", "category"),
    "similar": (
        "similar", "is_similar", "is_duplicate", "duplicate", "similarity", "similarity_score", "relatedness_score", "score",
    ),
    "id": ("id", "group", "identity", "person", "subject", "person_id", "group_id", "identity_id"),
    "split": ("split", "subset", "partition"),
}  # fmt: skip
"""Role to the column names that are taken for it, the first found; case and what precedes a dot do not matter."""


@dataclass(frozen=True)
class Chosen:
    """Which column is what."""

    inputs: tuple[Column, ...]
    """The anchor first. A column called ``"vector"`` that the data lack stands for all ``numbers``."""
    numbers: tuple[str, ...] = ()
    """The numeric columns that make a vector together."""
    label: str | None = None
    id: str | None = None
    split: str | None = None
    similar: str | None = None
    """What says how alike the sides of a pair are, by its name."""
    judged: bool = False
    """Whether the label may say it: a row is a pair by the names of its columns, and names no negative."""


def what_it_holds(values: Sequence[Any]) -> Holds:
    """What the cells of a column are, by a sample of them.

    Example:
        >>> what_it_holds(["1.5", None, "2"]), what_it_holds(["a.png"]), what_it_holds(["a b"]), what_it_holds([[1, 2]])
        ('number', 'image', 'text', 'vector')
    """
    known = [value for value in values if value is not None]
    if not known:
        return "text"
    first = known[0]
    if isinstance(first, (list, tuple)):
        inner = next((item for value in known for item in value), 0.0)
        return "texts" if isinstance(inner, str) else "series" if isinstance(inner, (list, tuple)) else "vector"
    if isinstance(first, dict):
        return "image" if first.keys() & {"bytes", "path"} else "other"
    if isinstance(first, bytes):
        return "image"
    if not isinstance(first, str):
        return "number"
    if all(PurePath(value.strip()).suffix.lower() in SUFFIXES for value in known):
        return "image"
    return "number" if all(to_number(value) is not None for value in known) else "text"


def choose_columns(holds: Mapping[str, Holds], config: DataConfig, where: str) -> Chosen:
    """Says which column is what.

    Args:
        holds: Every column by name, with what its cells are.
        config: The names that the user gave.
        where: What to call the data in errors.

    Raises:
        ValueError: If a column that was named is not there, with the nearest name; or if there is no input.

    Example:
        >>> choose_columns({"question": "text", "answer": "text", "id": "number"}, DataConfig(), "faq.csv").inputs
        (Column(name='question', kind='text', role='anchor'), Column(name='answer', kind='text', role='positive'))
    """
    named = (config.image, config.text, config.positive, *config.negative, config.similar)
    for given in (*named, config.label, config.id):
        if given is not None and given not in holds:
            raise ValueError(f"{where}: {unknown('column', given, holds)}")
    free = dict(holds)

    def usual(role: str, *wanted: Holds) -> str | None:
        folded = {name.rpartition(".")[2].lower(): name for name in reversed(free)}
        found = (folded[name] for name in USUAL[role] if name in folded)
        return next((name for name in found if not wanted or free[name] in wanted), None)

    def take(name: str | None) -> str | None:
        free.pop(name or "", None)
        return name

    for given in named:  # what was named is nothing else, too
        take(given)
    label, identity = config.label or usual("label", "text", "number"), config.id or usual("id", "text", "number")
    for name in (label, identity):
        take(name)
    _check_kinds(config, holds, where)
    split = take(usual("split", "text"))
    image = take(config.image or usual("image", "image"))
    text = take(config.text or usual("anchor", "text") or usual("text", "text", "number"))
    positive = take(config.positive or usual("positive", "text", "image"))
    if positive is None and text is not None and image is None and _folded(text) in USUAL["anchor"]:
        positive = take(usual("text", "text"))
    negatives = list(config.negative)
    if not negatives and (text or image):
        base = USUAL["negative"]
        negatives = [name for name in free if _folded(name).rstrip("0123456789_- ") in base and free[name] != "number"]
    images = [name for name, kind in free.items() if kind == "image"]
    if image is None and text is None and len(images) == 1:
        image = take(images[0])
    texts = [name for name, kind in free.items() if kind == "text"]
    measured = sum(kind == "number" for kind in free.values()) > 1  # a lone word beside numbers, as a flower's name
    if image is None and text is None and len(texts) == 1 and not measured:
        text = take(texts[0])
    listed = next((name for name, kind in free.items() if kind in ("vector", "series") and name not in negatives), None)
    inputs: list[Column] = []
    for name in (image, text, positive):
        if name is not None:
            inputs.append(Column(name, _kind(holds[name]), "positive" if inputs else "anchor"))
    if not inputs and listed is not None:
        inputs.append(Column(listed, _kind(holds[listed])))
    numbers: tuple[str, ...] = ()
    if not inputs:
        numbers = tuple(name for name, kind in free.items() if kind == "number")
        if not numbers:
            raise ValueError(
                f"{where} has the columns {', '.join(holds)}: none is an input by its name; name one with text=, image= "
                "(--text, --image), and what belongs to it with positive= (--positive)"
            )
        inputs.append(Column("vector", "vector"))
    if config.similar is not None and not any(column.role == "positive" for column in inputs):
        raise ValueError(
            f"{where}: column {config.similar!r} says how alike two sides are, and a row has one: name the other with positive= "
            "(--positive)"
        )
    pair = len(inputs) > 1 and not negatives
    similar = config.similar or (usual("similar", "text", "number") if pair else None)
    inputs += [Column(name, _kind(holds[name]), "negative") for name in negatives]
    return Chosen(tuple(inputs), numbers, label, identity, split, similar, pair and positive is not None)


def _check_kinds(config: DataConfig, holds: Mapping[str, Holds], where: str) -> None:
    """A column that was named as what it is not would be trained on as what it is."""
    if config.image is not None and holds[config.image] in ("text", "texts", "number"):
        raise ValueError(
            f"{where}: column {config.image!r} holds no images: paths that end in {', '.join(SUFFIXES[:3])} or the like are "
            "wanted. If it holds texts, name it with text= (--text)"
        )
    if config.text is not None and holds[config.text] == "image":
        raise ValueError(f"{where}: column {config.text!r} holds images: name it with image= (--image)")


def _folded(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _kind(holds: Holds) -> Kind:
    return holds if holds in ("image", "vector", "series") else "text"
