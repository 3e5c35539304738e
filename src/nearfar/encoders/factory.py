"""A user's own network, found by ``module:factory``."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from nearfar.encoders.backbones import ENCODERS, default_encoder
from nearfar.names import unknown

Factory = Callable[..., nn.Module]
"""Called with the shape of one input and the number of outputs."""


def find_factory(model: str | nn.Module | Factory | None, in_shape: tuple[int, ...]) -> tuple[Factory, str]:
    """What makes the network, and what it is called.

    Args:
        model: ``"module:factory"``, looked for in the current folder too; a name in ``ENCODERS``; a factory, called with
            the shape of one input and the number of outputs; a module, of which every caller gets a copy (so that all
            start from its weights: fine-tuning); or None: by the shape of the inputs.
        in_shape: Of one input.

    Raises:
        ValueError: If it cannot be found; the message suggests the nearest name.
    """
    if model is None:
        model = default_encoder(in_shape)
    if isinstance(model, nn.Module):
        module = model
        return (lambda shape, outputs: copy.deepcopy(module)), type(model).__name__
    if not isinstance(model, str):
        return model, getattr(model, "__qualname__", type(model).__name__)
    if model in ENCODERS:
        kind = {1: "vector", 2: "series", 3: "image"}.get(len(in_shape))
        if kind not in ENCODERS[model].kinds:
            raise ValueError(f"{model} reads {' or '.join(ENCODERS[model].kinds)} inputs; one of these is {in_shape}")
        return ENCODERS[model].build, model
    return import_factory(model), model


def import_factory(model: str) -> Any:
    """Imports what ``"module:factory"`` names; the current folder is looked in too.

    Raises:
        ValueError: If there is no such module, or nothing of that name in it; the message suggests the nearest name.
    """
    path, colon, name = model.partition(":")
    if not colon or not path or not name:
        raise ValueError(
            unknown("network", model, ENCODERS) + "; your own is named module:factory, such as mynet:build"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):
            raise  # the user's file was found, and lacks something itself
        raise ValueError(
            f"there is no module {path!r} for the network {model!r}: run this in the folder that holds "
            f"{path.replace('.', '/')}.py, or install its package"
        ) from error
    if not hasattr(module, name):
        raise ValueError(unknown(f"factory in {path}:", name, [n for n in vars(module) if not n.startswith("_")]))
    return getattr(module, name)
