"""Names that nobody knows, answered with the nearest known one; and options that would be passed over, refused."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

T = TypeVar("T", bound=Any)
R = TypeVar("R")


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """The message for a name that nobody knows.

    Example:
        >>> unknown("arm", "jiont", ["task", "joint"])
        "there is no arm 'jiont'; did you mean 'joint'? Known: task, joint"
    """
    known = list(known)
    near = difflib.get_close_matches(given, known, n=1)
    question = f"; did you mean {near[0]!r}?" if near else "."
    return f"there is no {kind} {given!r}{question} Known: {', '.join(known)}"


class Unused(ValueError):
    """An option that was given and says nothing of these data, or of this method.

    Attributes:
        option: Its name.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


def given(config: Any, *names: str) -> dict[str, Any]:
    """The options of a dataclass that are not at their default, of those named."""
    return {
        one.name: value
        for one in fields(config)
        if one.name in names and (value := getattr(config, one.name)) != one.default
    }


def refuse_unused(options: Mapping[str, Any], why: str, remedy: str = "leave it out") -> None:
    """Refuses an option that would be passed over.

    Args:
        options: Those that were given; None, False and the empty are none.
        why: Why it would be, as a half-sentence.
        remedy: What to do.

    Raises:
        Unused: If there is one.

    Example:
        >>> refuse_unused({"label": None}, "digits comes with its classes")
        >>> refuse_unused({"split_seed": 3}, "fashion-mnist comes with its split")
        Traceback (most recent call last):
        ...
        nearfar.names.Unused: split_seed is 3 (--split-seed), and fashion-mnist comes with its split: leave it out
    """
    for name, value in options.items():
        if value is not None and value is not False and value != ():
            raise Unused(name, f"{name} is {value!r} (--{name.replace('_', '-')}), and {why}: {remedy}")


def passing_over(make: Callable[[T], R], config: T, told: Collection[str] = ()) -> R:
    """What is made of a stored configuration, where options that are now refused were passed over.

    Args:
        make: Takes the configuration.
        config: A dataclass.
        told: Options that were given anew, which are refused.
    """
    while True:
        try:
            return make(config)
        except Unused as error:
            stored = {field.name: field.default for field in fields(config)}
            if error.option in told or error.option not in stored:
                raise
            config = replace(config, **{error.option: stored[error.option]})
