"""Which column is what: by the names the user gave, else by usual names, else by what a column holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from numbers import Number
from pathlib import PurePath
from typing import Any, Literal

from nearfar.data.classes import is_missing_word
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
        "anchor", "query", "question", "question1", "sentence1", "sentence_0", "sentence_1", "sentence_a", "text1", "text_a",
        "premise", "sent0", "sent1", "source", "claim",
    ),
    "text": ("text", "caption", "sentence", "title", "description", "txt", "name"),
    "positive": (
        "positive", "positives", "positive_1", "pos", "answer", "passage", "document", "question2", "sentence2", "sentence_1",
        "sentence_2", "sentence_b", "text2", "text_b", "hypothesis", "sent1", "sent2", "positive_image", "paraphrase", "image2",
        "positive_passages", "positive_ctxs", "response", "evidence", "context",
    ),
    "negative": (
        "negative", "neg", "negatives", "hard_negative", "hard_negatives", "hard_neg", "negative_image", "neg_passage",
        "negative_passage", "negative_passages", "neg_document", "negative_document",
    ),
    "label": ("label", "labels", "target", "class", "y", "cls", "category", "gold_label"),
    "similar": (
        "similar", "is_similar", "is_duplicate", "duplicate", "similarity", "similarity_score", "relatedness_score",
        "relatedness", "score",
    ),
    "id": ("id", "group", "identity", "person", "subject", "person_id", "group_id", "identity_id"),
    "split": ("split", "subset", "partition"),
}  # fmt: skip
"""Role to the column names that are taken for it, the first found; case and what precedes a dot do not matter."""

FILES = ("file_name", "filename", "file", "filepath", "path")
"""Names of image columns that other kinds of files have as well."""
NO_COLUMN = "none"
"""What to call the column of judgements where there is none, whatever the columns' names."""


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
    listed: tuple[str, ...] = ()
    """The inputs, no negatives, whose cells are lists of texts, of which each makes a row."""
    unread: tuple[str, ...] = ()
    """The columns that are nothing."""

    @property
    def negatives(self) -> tuple[str, ...]:
        """The columns of negatives."""
        return tuple(column.name for column in self.inputs if column.role == "negative")


def what_it_holds(values: Sequence[Any]) -> Holds:
    """What the cells of a column are: what most of them are, by a sample; the others are bad cells, if it is no text.

    Example:
        >>> what_it_holds(["1.5", None, "NA", "2"]), what_it_holds(["a.png"]), what_it_holds(["a b"]), what_it_holds([[1, 2]])
        ('number', 'image', 'text', 'vector')
        >>> what_it_holds(["0.png", "1.png", "see below"]), what_it_holds(["12", "12 a", "flat 3"])
        ('image', 'text')
    """
    counts: Counter[Holds] = Counter()
    for value in values:
        kind = None if is_missing_word(value) else _holds(value)
        if kind is not None:
            counts[kind] += 1
    for kind, count in counts.items():
        if 2 * count > counts.total():
            return kind
    return "texts" if not counts and any(isinstance(value, (list, tuple)) for value in values) else "text"


def _holds(cell: Any) -> Holds | None:
    """What a cell is; None: an empty list, which says nothing."""
    if isinstance(cell, (list, tuple)):
        inner = next((item for item in cell if item is not None), None)
        found: dict[type, Holds | None] = {
            str: "texts",
            list: "series",
            tuple: "series",
            dict: "other",
            type(None): None,
        }
        return found.get(type(inner), "vector")
    if isinstance(cell, dict):
        return "image" if cell.keys() & {"bytes", "path"} else "other"
    if isinstance(cell, str):
        if PurePath(cell.strip()).suffix.lower() in SUFFIXES:
            return "image"
        return "text" if to_number(cell) is None else "number"
    return "image" if isinstance(cell, bytes) else "number" if isinstance(cell, (Number, Decimal)) else "other"


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
    unjudged = config.similar == NO_COLUMN and NO_COLUMN not in holds
    config = replace(config, similar=None) if unjudged else config
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
    captions: tuple[Holds, ...] = ("text", "texts", "number") if image else ("text", "number")
    text = take(config.text or usual("anchor", "text") or usual("anchor", "texts") or usual("text", *captions))
    positive = take(config.positive or usual("positive", "text", "texts", "image"))
    if positive is None and text is not None and image is None and _folded(text) in USUAL["anchor"]:
        positive = take(usual("positive", "number") or usual("text", "text"))
        if positive is None and (other := usual("positive")) is not None:
            raise ValueError(
                f"{where}: column {other!r} would be what belongs to {text!r} by its name, and holds no texts: write a text, or a "
                "list of texts, in each row, or name another column with positive= (--positive)"
            )
    negatives = list(config.negative)
    if not negatives and (text or image):
        readable = ("text", "texts", "image")
        negatives = [name for name in free if _unnumbered(name) in USUAL["negative"] and free[name] in readable]
    images = [name for name, kind in free.items() if kind == "image"]
    if image is None and text is None and len(images) == 1:
        image = take(images[0])
    texts = [name for name, kind in free.items() if kind == "text"]
    measured = sum(kind == "number" for kind in free.values()) > 1  # a lone word beside numbers, as a flower's name
    if image is None and text is None and len(texts) == 1 and not measured:
        text = None if is_called_image(texts[0]) else take(texts[0])
    listed = next((name for name, kind in free.items() if kind in ("vector", "series") and name not in negatives), None)
    if image is None and config.text is None:
        _check_images(free, text, where)
    inputs: list[Column] = []
    for name in (image, text, positive):
        if name is not None:
            inputs.append(Column(name, _kind(holds[name]), "positive" if inputs else "anchor"))
    if not inputs and listed is not None:
        inputs.append(Column(listed, _kind(holds[listed])))
    numbers: tuple[str, ...] = ()
    if not inputs:
        numbers = tuple(name for name, kind in free.items() if kind == "number" and not is_called_image(name))
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
    pair = len(inputs) > 1 and not negatives and not unjudged
    similar = config.similar or (usual("similar", "text", "number") if pair else None)
    inputs += [Column(name, _kind(holds[name]), "negative") for name in negatives]
    lists = tuple(column.name for column in inputs if column.role != "negative" and holds.get(column.name) == "texts")
    used = {column.name for column in inputs} | {*numbers, label, identity, split, similar}
    unread = tuple(name for name in holds if name not in used)
    return Chosen(tuple(inputs), numbers, label, identity, split, similar, pair and positive is not None, lists, unread)


def unread_note(chosen: Chosen, holds: Mapping[str, Holds]) -> tuple[str, ...]:
    """Says which columns are not read, if any; first of all where a row is one text, and another text of it is not read."""
    notes = (f"not read: {', '.join(chosen.unread)}",) if chosen.unread else ()
    texts = [name for name in chosen.unread if holds.get(name) in ("text", "texts")]
    anchor, *others = chosen.inputs
    if others or anchor.kind != "text" or chosen.label is not None or not texts:
        return notes
    alone = f"trained on column {anchor.name!r} alone, each text with itself: "
    unread = f"{', '.join(map(repr, texts))} {'hold' if len(texts) > 1 else 'holds'} texts that are not read"
    return (f"{alone}{unread}; name what belongs to it with positive= (--positive {texts[0]})", *notes)


def _check_images(free: Mapping[str, Holds], text: str | None, where: str) -> None:
    """A column that is called as images are, and holds none, is passed over only where something else is the input."""
    called = {name: kind for name, kind in free.items() if is_called_image(name) and kind in ("text", "number")}
    measured = sum(kind == "number" for name, kind in free.items() if name not in called) > 1
    for name, kind in called.items():
        other_file = _folded(name) in FILES and (text or measured)
        captioned = _folded(name) == "file_name" and kind == "number" and text
        if captioned or not other_file:
            raise ValueError(
                f"{where}: column {name!r} is called as images are, and most of its cells end in no name of an image format "
                f"({', '.join(SUFFIXES)}): mend them, or name the column that holds texts with text= (--text), or call it otherwise"
            )


def is_called_image(name: str) -> bool:
    """Whether a column is called as images are."""
    return _folded(name) in USUAL["image"]


def _check_kinds(config: DataConfig, holds: Mapping[str, Holds], where: str) -> None:
    """A column that was named as what it is not would be trained on as what it is."""
    if config.image is not None and holds[config.image] in ("text", "texts", "number"):
        raise ValueError(
            f"{where}: column {config.image!r} holds no images: paths that end in {', '.join(SUFFIXES[:3])} or the like are "
            "wanted. If it holds texts, name it with text= (--text)"
        )
    if config.text is not None and holds[config.text] == "image":
        raise ValueError(f"{where}: column {config.text!r} holds images: name it with image= (--image)")


def may_be_several(name: str) -> bool:
    """Whether a row may have several of what a column is called: positives or negatives."""
    return _folded(name) in USUAL["positive"] or _unnumbered(name) in USUAL["negative"]


def _folded(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _unnumbered(name: str) -> str:
    return _folded(name).rstrip("0123456789_- ")


def _kind(holds: Holds) -> Kind:
    return holds if holds in ("image", "vector", "series") else "text"
