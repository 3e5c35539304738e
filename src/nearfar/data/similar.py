"""A column that says of each row how alike its two sides are: duplicates or not, entailment, graded judgements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from nearfar.data.columns import Chosen
from nearfar.data.config import DataConfig

WORDS = {
    **dict.fromkeys(("entailment", "similar", "same", "duplicate", "equivalent", "match", "true", "yes"), 1.0),
    **dict.fromkeys(("contradiction", "neutral", "not_entailment", "dissimilar", "different", "not_duplicate"), 0.0),
    **dict.fromkeys(("not_equivalent", "no_match", "false", "no"), 0.0),
}
"""What is similar (1) and what is not, in words; case does not matter."""
SCALES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 5.0))
"""Lowest and highest grade of the usual scales: the first that holds all values is taken."""
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
    names: tuple[str, ...] = ()
    """Of a column that holds numbers of classes."""

    def read(self, cells: Sequence[Any]) -> Float32[Tensor, "n"]:
        """0 (not alike) to 1 (alike); NaN: not known."""
        low, high = self.scale
        values = torch.tensor([_value(_named(cell, self.names)) for cell in cells], dtype=torch.float64)
        inside = (values >= low) & (values <= high)
        return torch.where(inside, (values - low) / (high - low), float("nan")).float()


def find_similar(
    chosen: Chosen,
    columns: Mapping[str, Sequence[Any]],
    names: Mapping[str, tuple[str, ...]],
    config: DataConfig,
    where: str,
) -> Similar | None:
    """The column of judgements, and how it is read; None: every row's sides belong together.

    A column called ``label`` is one if the row is a pair by its columns' names, and its values are 0 and 1, a word for
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
    name = chosen.similar
    if name is None and chosen.judged and config.label is None:
        name = chosen.label
    if name is None or not any(column.role == "positive" for column in chosen.inputs):
        return None
    cells = [_named(cell, names.get(name, ())) for cell in columns[name]]
    values = torch.tensor([_value(cell) for cell in cells], dtype=torch.float64)
    scale = _scale(values)
    if chosen.similar is None:
        unread = any(cell is not None and value.isnan() for cell, value in zip(cells, values))
        kind = "classes" if unread else _kind(values, scale)
        if kind == "numbers" and chosen.inputs[-1].name.rpartition(".")[2].lower() == "hypothesis":
            raise ValueError(
                f"{where}: column {name!r} holds numbers, and nothing says which is entailment: write words (entailment, "
                "neutral, contradiction), or keep the rows that are entailed and leave the column out"
            )
        if kind != "judgements":
            return None
    if scale is None:
        if config.similar is None and name.rpartition(".")[2].lower() == "score":
            return None  # counts of votes, say
        raise ValueError(
            f"{where}: column {name!r} holds {columns[name][0]!r}, wanted how alike the two sides of a row are: 0 or 1, grades "
            f"from 0 to 1 or from 0 to 5, or words such as {', '.join([*WORDS][:2])}; name another column with similar= "
            "(--similar)"
        )
    found = Similar(name, scale, names.get(name, ()))
    alike = found.read(columns[name]) >= LIKENESS
    if not bool(alike.any()):
        raise ValueError(
            f"{where}: by column {name!r} no row's sides are similar ({LIKENESS * (scale[1] - scale[0]) + scale[0]:g} or more), "
            "so nothing belongs together: 1 or the highest grade means similar"
        )
    everyone = bool(alike[~values.isnan()].all())
    return None if everyone and _of_two(values, scale) else found


def _scale(values: Float64[Tensor, "n"]) -> tuple[float, float] | None:
    """The usual scale that the values lie on."""
    known = values[~values.isnan()]
    for low, high in SCALES if len(known) else ():
        if bool(((known >= low) & (known <= high)).all()):
            ends = low >= 0 or bool(
                (known.abs() == 1).all()
            )  # from -1 on, the ends alone: what lies between may be a class
            return (low, high) if ends else None
    return None


def _of_two(values: Float64[Tensor, "n"], scale: tuple[float, float]) -> bool:
    """Whether the values are the ends of the scale, and nothing between."""
    return bool(torch.isin(values[~values.isnan()], torch.tensor(scale, dtype=torch.float64)).all())


def _kind(
    values: Float64[Tensor, "n"], scale: tuple[float, float] | None
) -> Literal["judgements", "classes", "numbers"]:
    """What a column called ``label`` holds; numbers may be either."""
    known = values[~values.isnan()]
    if bool((known % 1 != 0).any()):
        return "classes" if scale is None else "judgements"
    if scale is not None and _of_two(values, scale):
        return "judgements" if scale[1] == 1 else "classes"
    return "numbers" if len(known) else "classes"


def _named(cell: Any, names: tuple[str, ...]) -> Any:
    """The name of a class in place of its number; None: it has none."""
    if not names or not isinstance(cell, int):
        return cell
    return names[cell] if 0 <= cell < len(names) else None


def _value(cell: Any) -> float:
    """A judgement as a number; NaN: not known."""
    if isinstance(cell, str):
        cell = WORDS.get(cell.strip().lower().replace(" ", "_").replace("-", "_"), cell)
    try:
        return float("nan") if cell is None else float(cell)
    except (TypeError, ValueError):
        return float("nan")
