"""Tensors to safetensors files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nearfar.data.labelled import require


def write_weights(path: Path, weights: Mapping[str, Tensor], why: str) -> None:
    """Writes a model's weights, whole or not at all.

    Args:
        path: Of the file.
        weights: By name. They may lie channels last, and two names may share one tensor: safetensors wants neither.
        why: What needs safetensors, for the message if it is not installed.
    """
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_tensors(beside, plain, why, {"format": "pt"})
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], why: str, metadata: dict[str, str] | None = None) -> None:
    """``safetensors.torch.save_file`` with the permissions of any other new file: its own can be read by the owner alone."""
    safetensors = require("safetensors.torch", why, "train")
    path.touch()
    mode = path.stat().st_mode
    safetensors.save_file(dict(tensors), path, metadata)
    path.chmod(mode)
