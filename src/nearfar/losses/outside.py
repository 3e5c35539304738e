"""Running outside the graph that ``torch.compile`` makes. Imported once something is compiled: it takes the compiler along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


outside: Callable[..., Any] = torch.compiler.disable(
    _call,
    reason="so many rows are scored in tiles, which a graph would hold whole: leave fullgraph=True away, or give fewer rows",
)
"""A function's value, as if nothing were compiled; ``fullgraph=True`` refuses it with that reason."""
