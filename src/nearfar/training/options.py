"""Options that come from a file or a call: names and types looked at, before anything is started. Loads no torch."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from nearfar.names import unknown

T = TypeVar("T")


def options_of(config: type[T], given: Mapping[str, Any], where: str = "") -> T:
    """A configuration of these options, after a look at names and types.

    Args:
        config: A dataclass whose fields are strings, numbers, booleans, literals, tuples of those, or None.
        given: Options by name. Text that is a number is one where a number is wanted: YAML reads ``1e-3`` as text.
        where: What they were read from, for errors.

    Raises:
        TypeError: If there is no such option; the message suggests the nearest.
        ValueError: If a value has the wrong type.

    Example:
        >>> from nearfar.training.config import TrainConfig
        >>> options_of(TrainConfig, {"lr": "1e-3", "epochs": 3}).lr
        0.001
        >>> options_of(TrainConfig, {"epcohs": 3})
        Traceback (most recent call last):
        ...
        TypeError: there is no option 'epcohs'; did you mean 'epochs'? ...
    """
    hints = get_type_hints(config)
    known = [field.name for field in fields(config)]  # pyright: ignore[reportArgumentType]
    prefix = f"{where}: " if where else ""
    read = {}
    for name, value in given.items():
        if name not in known:
            raise TypeError(prefix + unknown("option", str(name), known))
        try:
            read[name] = _as(hints[name], value)
        except ValueError as error:
            raise ValueError(f"{prefix}{name} is {value!r}: wanted {_words(hints[name])}") from error
    return config(**read)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        ValueError: If it is no mapping of names to values.
        FileNotFoundError: If there is no such file.
    """
    import yaml

    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: pass the path of a YAML file with options, one a line")
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise ValueError(f"{path} holds a {type(options).__name__}: wanted options, one a line, such as 'epochs: 20'")
    return options


def _as(hint: Any, value: Any) -> Any:
    """The value as the hint wants it, or ``ValueError``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        # text stays text where that is wanted; else the first kind that takes it
        order = sorted((a for a in arguments if a is not type(None)), key=lambda a: a is not type(value))
        for each in order:
            try:
                return _as(each, value)
            except ValueError:
                continue
        raise ValueError
    if origin is Literal:
        for each in arguments:
            if value == each or str(value) == each:
                return each
        raise ValueError
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ValueError
        return tuple(_as(arguments[0], each) for each in value)
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError
        return value
    if hint is str and isinstance(value, str | Path):
        return str(value)
    if hint in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        number = float(value)
        if hint is float:
            return number
        if number == int(number):
            return int(value) if isinstance(value, int) else int(number)
    raise ValueError


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(a) for a in arguments if a is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return f"a list, each {_words(arguments[0])}"
    return {bool: "true or false", str: "text", int: "a whole number", float: "a number"}.get(hint, str(hint))
