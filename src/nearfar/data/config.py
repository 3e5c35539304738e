"""Which data, and how they are read: one frozen dataclass. The string under a field is its ``--help``. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a data set is read: which column is what, and what is held out."""

    data: str | None = None
    """The data set."""
    root: str | None = None
    """Where the files of a named data set are, if not in the usual places."""
    image: str | None = None
    """The column of image paths (relative to the file) or images; by default the one with a usual name."""
    text: str | None = None
    """The column of texts; by default the one with a usual name, such as text, caption, anchor or query."""
    positive: str | None = None
    """The column of what belongs to the text or image of its row; by default the one with a usual name."""
    negative: tuple[str, ...] = ()
    """The columns of what does not belong to it; by default those with usual names."""
    similar: str | None = None
    """The column that says how alike the two sides of a row are: 0 or 1, words, or grades; by default the one with a usual
    name, such as is_duplicate or score, or a label of 0 and 1; none: no column does."""
    scale: tuple[int | float, int | float] | None = None
    """The grade of two sides that are not alike at all, and of two that are the same, such as 0 10; by default the usual scale
    that holds all grades: 0 to 1, -1 to 1, 1 to 5, 0 to 5, 0 to 10 or 0 to 100."""
    label: str | None = None
    """The column of classes; by default the one with a usual name. An empty cell is an unknown class."""
    id: str | None = None
    """The column of identities: rows of one identity are never each other's negatives, and whole identities are held
    out. By default the one with a usual name, if its values repeat. For a folder: "label", if sub-folders are identities."""
    size: int | tuple[int, int] | None = None
    """Height and width that images are read at; by default the commonest, with a longer side of 64 at most."""
    pixel_range: tuple[float, float] | None = None
    """The numbers that are black and white, in images of more than 8 bits; by default what the files say, else found by all
    images together."""
    skip_bad: bool = False
    """Leave out rows and images that cannot be read, and count them, instead of stopping at the first."""
    test_fraction: float | None = None
    """The part of the rows held out, where the data have no split of their own; by default a third, at most 5,000."""
    hold_out: Literal["rows", "classes"] | None = None
    """What that part is made of, where no ids and no second column say it: rows of every class, or whole classes. By default
    classes if most would keep a single row to train on, or there are 20 or more and most would hold out a single one."""
    split_seed: int = 0
    """Seed of that split."""

    def __post_init__(self) -> None:
        if self.test_fraction is not None and not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction is {self.test_fraction}: pass a number between 0 and 1, both excluded")
        if self.split_seed < 0:
            raise ValueError(f"split_seed is {self.split_seed}: wanted 0 or more")
        if self.scale is not None and (
            len(self.scale) != 2 or not 0 < abs(self.scale[1] - self.scale[0]) < float("inf")
        ):
            raise ValueError(
                f"scale is {self.scale}: pass the grade of what is not alike and another of what is, such as 0 10"
            )
        sides = (self.size,) if isinstance(self.size, int) else self.size or ()
        if any(side < 1 for side in sides):
            raise ValueError(f"size is {self.size}: pass a height and a width of at least one pixel")
        if self.pixel_range is not None and (
            len(self.pixel_range) != 2 or not self.pixel_range[0] < self.pixel_range[1]
        ):
            raise ValueError(
                f"pixel_range is {self.pixel_range}: pass the number that is black, and a larger one that is white"
            )


READING = tuple(field.name for field in fields(Reading) if field.name != "data")
"""The options that say how a data set is read, by name."""


@dataclass(frozen=True)
class DataConfig(Reading):
    """A data set: where it is, which column is what, and how it is split.

    Example:
        >>> DataConfig("pairs.csv", text="question", positive="answer").positive
        'answer'
    """

    data: str = "digits"
    """A data set by name (see: nearfar list data); a folder of images, by class or not; a .csv, .tsv, .jsonl or
    .parquet file; WebDataset shards such as "shards-{000..003}.tar"; or a data set on the Hugging Face Hub."""
    streaming: bool = False
    """Read rows in order and never count them: for data larger than the disk or the memory."""


EARLIER: dict[str, Any] = {"hold_out": "rows"}
"""What was done before there was an option for it: of the folder of a run that does not name the option."""
