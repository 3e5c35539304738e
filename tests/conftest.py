"""Shapes and types of the package are checked while it is tested, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import config, install_import_hook

SOURCE = Path(__file__).parent.parent / "src"
UNCHECKED: tuple[str, ...] = ()
"""Modules that beartype cannot take, each with its reason beside it."""


def modules() -> list[str]:
    """Every module of the package by name; packages themselves would cover what lies below them."""
    paths = (p.relative_to(SOURCE).with_suffix("") for p in (SOURCE / "nearfar").rglob("*.py"))
    return [".".join(p.parts) for p in paths if p.name != "__init__" and ".".join(p.parts) not in UNCHECKED]


install_import_hook(modules(), "beartype.beartype")  # before the package is first imported

torch.set_num_threads(1)  # the problems are tiny: threads would only wait for each other
settings.register_profile("quick", deadline=None, max_examples=10, derandomize=True)
settings.load_profile("quick")


@pytest.fixture()
def unchecked():
    """Switch the checks off: for errors that are the package's own, and where a test would mostly run them."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
