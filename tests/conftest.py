"""Shapes and types of the package are checked while it is tested, and only then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import settings

SOURCE = Path(__file__).parent.parent / "src"
UNCHECKED: tuple[str, ...] = ("nearfar.scores.kernels",)  # Triton compiles its functions from their source
"""Modules that beartype cannot take, each with its reason beside it."""


def modules() -> list[str]:
    """Every module of the package by name; packages themselves would cover what lies below them."""
    paths = (p.relative_to(SOURCE).with_suffix("") for p in (SOURCE / "nearfar").rglob("*.py"))
    return [".".join(p.parts) for p in paths if p.name != "__init__" and ".".join(p.parts) not in UNCHECKED]


def sparing(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """The hook's decorator, which leaves functions within functions alone: they would be compiled anew at every call."""

    def decorator(**options: Any) -> Callable[[Any], Any]:
        return lambda x: x if "<locals>" in x.__qualname__ else jaxtyped(**options)(x)

    return decorator


jaxtyping.jaxtyped = sparing(jaxtyping.jaxtyped)
jaxtyping.install_import_hook(modules(), "beartype.beartype")  # before the package is first imported

torch.set_num_threads(1)  # the problems are tiny: threads would only wait for each other
settings.register_profile("quick", deadline=None, max_examples=10, derandomize=True)
settings.load_profile("quick")


@pytest.fixture
def unchecked():
    """Switch the checks off: for errors that are the package's own, and where a test would mostly run them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
