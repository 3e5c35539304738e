"""A column that says of each row how alike its two sides are: duplicates or not, entailment, graded judgements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from nearfar.data.bad import shown
from nearfar.data.classes import is_missing_word
from nearfar.data.columns import NO_COLUMN, Chosen
from nearfar.data.config import DataConfig
from nearfar.names import refuse_unused

WORDS = {
    **dict.fromkeys(
        ("entailment", "entailed", "entails", "similar", "same", "duplicate", "equivalent", "paraphrase"), 1.0
    ),
    **dict.fromkeys(("match", "true", "yes", "supports", "supported", "support", "agree", "relevant", "related"), 1.0),
    **dict.fromkeys(("contradiction", "contradicts", "contradictory", "contradict", "neutral", "dissimilar"), 0.0),
    **dict.fromkeys(("different", "mismatch", "false", "no", "refutes", "refuted", "refute", "not_enough_info"), 0.0),
    **dict.fromkeys(("nei", "disagree", "discuss", "irrelevant", "unrelated", "unique"), 0.0),
}
"""What is similar (1) and what is not, in words; case does not matter, and ``NEGATIONS`` turn what is similar."""
NEGATIONS = ("not_", "non_", "no_")
LETTERS = {"e": 1.0, "n": 0.0, "c": 0.0}
"""Entailment, neutral and contradiction, where a column holds nothing else."""
SCALES = ((0.0, 1.0), (1.0, 5.0), (0.0, 5.0), (0.0, 10.0), (0.0, 100.0))
"""Lowest and highest grade of the usual scales: the first that holds all values is taken."""
SURE = 5.0
"""Whole numbers above it may count something, unless the highest is that of a usual scale."""
SECOND_SENTENCES = (
    "hypothesis", "sentence2", "sentence_2", "sentence_1", "sentence_b", "sent2", "sent1", "text2", "text_b", "question2",
    "paraphrase",
)  # fmt: skip
"""What the second of two sentences is called: a label beside them speaks of both."""
LEAST_GRADES, MOST_VERDICTS = 4, 10
"""So many different whole numbers up to 5 are grades; higher ones than the second may number topics."""
SIGNED = (-1.0, 1.0)
"""The scale of cosines."""
UNKNOWN = -1.0
"""What stands for no judgement among 0 and 1, as data sets without gold labels have it."""
ROUNDED = 1e-3
"""By so much of a scale a grade may lie beyond its ends."""
ODD = 6
"""One of so many judgements may be off the scale of the others, and is a bad cell then."""
MOST_ODD = 2, 20
"""There may be two of those, or one of twenty, where they are more."""
LIKENESS = 0.5
"""From here on, of 0 to 1, two sides count as similar where a method or a measure knows only yes and no."""


def is_binary(similar: Float32[Tensor, "n"]) -> bool:
    """Whether pairs are similar or not, and nothing between."""
    return bool(((similar == 0) | (similar == 1)).all())


@dataclass(frozen=True)
class Similar:
    """How a column of judgements is read."""

    column: str
    scale: tuple[float, float] = (0.0, 1.0)
    """The grade of sides that are not alike at all, and of sides that are as alike as can be."""
    names: tuple[str, ...] = ()
    """Of a column that holds numbers of classes."""
    words: bool = False
    """Whether it judges in words. Then a row without a known one has no judgement, which is no fault (SNLI's "-")."""
    all_alike: bool = False
    """Whether it judges all the same: then it tells only which rows have no judgement."""
    binary: bool = False
    """Whether it judges by 0 and 1 alone."""
    letters: bool = False
    """Whether its words are ``LETTERS``."""

    def read(self, cells: Sequence[Any]) -> Float32[Tensor, "n"]:
        """0 (not alike) to 1 (alike); NaN: not known."""
        low, high = self.scale
        values = _values([_named(cell, self.names) for cell in cells], self.letters)
        found = (values - low) / (high - low)
        known = torch.isin(values, torch.tensor(self.scale, dtype=torch.float64)) if self.binary else _inside(found)
        return torch.where(known, found.clamp(0, 1), float("nan")).float()

    def is_unknown(self, cell: Any) -> bool:
        """Whether a cell without a judgement is no fault: any among words, −1 among 0 and 1."""
        return self.words or (self.binary and _value(cell) == UNKNOWN)

    def unjudged(self, cell: Any) -> str:
        """What is said of a row whose cell is not known."""
        low, high = sorted(self.scale)
        ends = f"{low:g} or {high:g}" if self.binary else f"a number on the scale (--scale) from {low:g} to {high:g}"
        wanted = "" if self.is_unknown(cell) else f" by {ends}"
        return f"column {self.column!r} does not say how alike the sides are{wanted}: it holds {shown(cell)}"


GRADES = "leave it out, or name the column of grades with similar= (--similar)"


def find_similar(
    chosen: Chosen,
    columns: Mapping[str, Sequence[Any]],
    names: Mapping[str, tuple[str, ...]],
    config: DataConfig,
    where: str,
) -> tuple[Similar | None, tuple[str, ...]]:
    """The column of judgements, and how it is read; None: every row's sides belong together. And what to say of that.

    A column called ``label`` is one if the row is a pair by its columns' names, and most of its values are 0 and 1, words for
    similar or dissimilar, or fractions: these are no classes.

    Args:
        chosen: Which column is what.
        columns: The cells of the columns that may be it.
        names: Of classes, where a column holds their numbers.
        config: What the user named.
        where: What to call the data in errors.

    Raises:
        ValueError: If the column says something else, or that no row's sides are similar.
    """
    name = chosen.similar or (chosen.label if chosen.judged else None)
    scaled = {"scale": config.scale}
    if name is None or not any(column.role == "positive" for column in chosen.inputs):
        refuse_unused(scaled, f"no column of {where} grades how alike two sides of a row are", GRADES)
        return None, ()
    cells = [_named(cell, names.get(name, ())) for cell in columns[name]]
    letters = _are_letters(cells)
    values = _values(cells, letters)
    words = letters or 2 * sum(map(_is_word, cells)) > int((~values.isnan()).sum())
    if words:
        refuse_unused(scaled, f"column {name!r} of {where} judges in words")
    given = None if config.scale is None else (float(config.scale[0]), float(config.scale[1]))
    scale = SCALES[0] if words else given or _scale(values)
    if chosen.similar is None:
        unread = [cell for cell, lost in zip(cells, values.isnan().tolist()) if lost and not is_missing_word(cell)]
        most_read = len(unread) < int((~values.isnan()).sum())
        second = next(column.name for column in chosen.inputs if column.role == "positive")
        of_sentences = second.rpartition(".")[2].lower() in SECOND_SENTENCES
        kind = "classes" if not most_read else "judgements" if words else _kind(values, scale, of_sentences)
        if kind == "verdicts" and config.label is None:
            raise ValueError(
                f"{where}: column {name!r} holds numbers, and nothing says which is entailment: write words (entailment, "
                "neutral, contradiction), or keep the rows that are entailed and leave the column out. If they are grades, "
                f"pass similar={name!r} and scale= (--similar {name} --scale LOWEST HIGHEST); if they are classes, label={name!r} "
                f"(--label {name})"
            )
        if config.label is not None or kind != "judgements":
            refuse_unused(scaled, f"column {name!r} of {where} is read as classes", GRADES)
            classes = (
                f"column {name!r} is read as classes, and the sides of every row as belonging together; if it says how "
            )
            return None, (f"{classes}alike they are, pass similar={name!r} (--similar {name})",)
    if scale is None:
        known = values[~values.isnan()]
        span = f" ({known.min():g} to {known.max():g})" if len(known) else ""
        votes = name.rpartition(".")[2].lower() == "score" and (not len(known) or float(known.max()) > SCALES[-1][1])
        if config.similar is None and votes:
            return None, (
                f"column {name!r}{span} is on no usual scale of judgements: it is passed over, and the sides of every row are "
                f"taken to belong together; if it judges them, pass similar={name!r} and scale= (--similar {name} --scale LOWEST "
                "HIGHEST)",
            )
        usual = ", ".join(f"{low:g} to {high:g}" for low, high in (*SCALES, SIGNED))
        raise ValueError(
            f"{where}: column {name!r} holds {shown(columns[name][0])}, wanted how alike the two sides of a row are: 0 or 1, "
            f"grades on a usual scale ({usual}), or words such as {', '.join([*WORDS][:2])}; of other grades{span} say which is "
            "given to sides that are not alike and which to sides that are, scale= (--scale LOWEST HIGHEST); or name another "
            f"column, or {NO_COLUMN!r}, with similar= (--similar)"
        )
    two = _of_two(_without_odd(values, scale), scale)
    binary = two and not words and scale == SCALES[0]
    found = Similar(name, scale, names.get(name, ()), words, binary=binary, letters=letters)
    grades = found.read(columns[name])
    known = grades[~grades.isnan()]
    if not bool((known >= LIKENESS).any()):
        raise ValueError(
            f"{where}: by column {name!r} no row's sides are similar ({LIKENESS * (scale[1] - scale[0]) + scale[0]:g} or more), "
            "so nothing belongs together: 1 or the highest grade means similar; say which with scale= (--scale LOWEST HIGHEST)"
        )
    if bool((known == 1).all()):
        unknown = len(known) < len(grades)
        return replace(found, all_alike=True) if unknown else None, (
            f"column {name!r} says of every row{' that it judges' * unknown} that its sides are similar, and is passed over",
        )
    if words or config.scale is not None or two:
        return found, ()
    graded = f"column {name!r} is read as grades from {scale[0]:g} (not alike) to {scale[1]:g} (alike)"
    return found, (f"{graded}; pass scale= (--scale LOWEST HIGHEST) for others, similar={NO_COLUMN!r} if it is none",)


def _scale(values: Float64[Tensor, "n"]) -> tuple[float, float] | None:
    """The usual scale that the values lie on, but for a few odd ones."""
    known = values[~values.isnan()]
    if len(known) and bool((known.abs() == 1).all()) and bool((known < 0).any()):
        return SIGNED  # of two sides
    odd = {scale: _beyond(known, scale) for scale in SCALES}
    low, high = next((s for s in SCALES if not odd[s] or _few(odd[s], len(known))), SIGNED)
    # Some below 0 among fractions up to 1 are cosines; −1, 0 and 1 may be classes.
    if not len(known) or (low, high) == SIGNED or (high == 1 and odd[low, high] > 1 and _beyond(known, SIGNED) == 0):
        graded = not _beyond(known, SIGNED) and bool((known % 1 != 0).any())
        return SIGNED if graded else None
    low, high = min((s for s in SCALES if high - low <= s[1] - s[0] < 2 * (high - low)), key=odd.__getitem__)
    inside = _without_odd(known, (low, high))
    counts = high > SURE and bool((inside % 1 == 0).all()) and float(inside.max()) < high
    return None if counts else (low, high)


def _beyond(known: Float64[Tensor, "n"], scale: tuple[float, float]) -> int:
    """How many values are off a scale; −1 among grades above 1 says that there is none."""
    unknown = int((known == UNKNOWN).sum()) if scale[1] > 1 and bool((known > 1).any()) else 0
    return len(known) - len(_without_odd(known, scale)) - unknown


def _few(odd: int, count: int) -> bool:
    """Whether so many of all may be odd ones out."""
    least, part = MOST_ODD
    return ODD * odd <= count and odd <= max(least, count // part)


def _inside(found: Float64[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """Whether grades of 0 to 1 are that, but for how they were rounded."""
    return (found >= -ROUNDED) & (found <= 1 + ROUNDED)


def _without_odd(values: Float64[Tensor, "n"], scale: tuple[float, float]) -> Float64[Tensor, "m"]:
    """The values without those that are unknown or off the scale."""
    low, high = scale
    return values[_inside((values - low) / (high - low))]


def _of_two(values: Float64[Tensor, "n"], scale: tuple[float, float]) -> bool:
    """Whether the values are the ends of the scale, and nothing between."""
    return bool(torch.isin(values[~values.isnan()], torch.tensor(scale, dtype=torch.float64)).all())


def _kind(
    values: Float64[Tensor, "n"], scale: tuple[float, float] | None, of_sentences: bool
) -> Literal["judgements", "classes", "verdicts"]:
    """What a column called ``label`` holds. Low whole numbers beside two sentences are grades up to 5, or nameless verdicts."""
    known = values[~values.isnan()]
    inside = known if scale is None else _without_odd(known, scale)
    if bool((inside % 1 != 0).any()):
        return "classes" if scale is None else "judgements"
    if scale is not None and _of_two(inside, scale):
        return "judgements" if scale[1] == 1 else "classes"
    if not of_sentences or not len(inside) or bool((inside.abs() > MOST_VERDICTS).any()):
        return "classes"
    graded = scale is not None and scale[1] == SURE == float(inside.max()) and len(inside.unique()) >= LEAST_GRADES
    return "judgements" if graded else "verdicts"


def _is_word(cell: Any) -> bool:
    """Whether a cell judges in words."""
    return isinstance(cell, str) and _in_words(cell) is not None


@lru_cache(4096)
def _in_words(cell: str) -> float | None:
    word = cell.strip().lower().replace(" ", "_").replace("-", "_")
    negated = next((word.removeprefix(no) for no in NEGATIONS if word.startswith(no)), "")
    return 0.0 if WORDS.get(negated) == 1 else WORDS.get(word)


def _are_letters(cells: Sequence[Any]) -> bool:
    """Whether most cells are ``LETTERS``, and the others say nothing."""
    known = [cell.strip().lower() if isinstance(cell, str) else cell for cell in cells if not is_missing_word(cell)]
    return {*LETTERS} >= {*filter(lambda cell: isinstance(cell, str), known)} and "e" in known and len({*known}) > 1


def _named(cell: Any, names: tuple[str, ...]) -> Any:
    """The name of a class in place of its number; None: it has none."""
    if not names or not isinstance(cell, int):
        return cell
    return names[cell] if 0 <= cell < len(names) else None


def _values(cells: Sequence[Any], letters: bool) -> Float64[Tensor, "n"]:
    """Judgements as numbers; NaN: not known."""
    if letters:
        cells = [LETTERS.get(cell.strip().lower()) if isinstance(cell, str) else None for cell in cells]
    return torch.tensor([_value(cell) for cell in cells], dtype=torch.float64)


def _value(cell: Any) -> float:
    """A judgement as a number; NaN: not known."""
    word = _in_words(cell) if isinstance(cell, str) else None
    try:
        value = float("nan") if cell is None else float(cell if word is None else word)
    except (TypeError, ValueError):
        return float("nan")
    return value if math.isfinite(value) else float("nan")
