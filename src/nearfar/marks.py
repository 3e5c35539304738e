"""Marks in a configuration that only the command line reads; without it they are nothing. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

__all__ = ["Positional", "arg"]

if TYPE_CHECKING:
    from tyro.conf import Positional, arg
else:
    try:
        from tyro.conf import Positional, arg
    except ImportError:
        T = TypeVar("T")
        Positional = Annotated[T, None]

        def arg(**options: Any) -> None:
            """Stands in where there is no command line."""
