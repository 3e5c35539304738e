"""Checkpoints: safetensors and JSON, never pickled; whole or not there, whenever the process is killed.

``checkpoints/step-00000120/`` has ``state.json`` and a file of tensors a part. It is written under another name, forced to
disk and renamed; what it replaces is removed afterwards, renamed first. So every ``step-*`` can be read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.data.labelled import require
from nearfar.encoders.weights import save_tensors
from nearfar.report.files import read_json, write_json

WHY = "checkpoints"


def write_checkpoint(folder: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], facts: dict[str, Any]) -> Path:
    """Writes one; when it returns, it outlives a power failure.

    Args:
        folder: Of the checkpoints; made if it is not there.
        step: It is named by.
        parts: Tensors by file and name.
        facts: Whatever JSON can hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".new-{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    for name, tensors in parts.items():
        save_tensors(beside / f"{name}.safetensors", _apart(tensors), WHY)
    write_json(beside / "state.json", {"format": 1, "step": step, "parts": list(parts)} | facts)
    for path in (*beside.iterdir(), beside):
        _to_disk(path)
    final = folder / f"step-{step:08d}"
    if final.exists():  # a step that was reached before, by a process that was killed: the same state
        _remove(final)
    beside.replace(final)
    _to_disk(folder)
    return final


def last_checkpoint(folder: Path) -> Path | None:
    """The one of the latest step, if there is any."""
    return max(folder.glob("step-*"), default=None)


def prune_checkpoints(folder: Path, keep: Iterable[int]) -> None:
    """Removes all but some steps' checkpoints, and what a killed process left unfinished."""
    kept = {f"step-{step:08d}" for step in keep}
    for path in folder.iterdir():
        if path.name not in kept:
            _remove(path)


def read_checkpoint(
    path: Path, device: torch.device | str = "cpu"
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by part and name, and the facts.

    Raises:
        ValueError: If a file is missing or damaged; the message names it.
    """
    safetensors = require("safetensors.torch", WHY, "train")
    try:
        facts = read_json(path / "state.json")
        parts = {
            name: safetensors.load_file(path / f"{name}.safetensors", device=str(device)) for name in facts["parts"]
        }
    except Exception as error:  # safetensors has an error class of its own
        raise ValueError(
            f"the checkpoint {path} cannot be read ({error}): resume from another run, or start anew"
        ) from error
    return parts, facts


def flatten_state(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors by name, and what else there is. Its groups follow from the configuration.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        >>> weight.sum().backward(); sgd.step()
        >>> tensors, rest = flatten_state(sgd.state_dict())
        >>> tensors, rest
        ({'0.momentum_buffer': tensor([1.])}, {'values': {}})
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for key, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{key}.{name}"] = value
            else:
                values.setdefault(str(key), {})[name] = value
    return tensors, {"values": values}


def unflatten_state(tensors: Mapping[str, Tensor], rest: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """What ``load_state_dict`` of an optimiser takes as ``state``."""
    state: dict[int, dict[str, Any]] = {int(key): dict(entries) for key, entries in rest["values"].items()}
    for name, value in tensors.items():
        key, _, entry = name.partition(".")
        state.setdefault(int(key), {})[entry] = value
    return state


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, each in memory of its own: safetensors refuses tensors that share it, as tied weights do."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        place = held.untyped_storage().data_ptr()
        apart[name] = held.clone() if place in seen else held
        seen.add(place)
    return apart


def _remove(path: Path) -> None:
    away = path.with_name(f".old-{path.name}-{os.getpid()}")
    path.replace(away)  # so that what is half removed is no checkpoint
    shutil.rmtree(away, ignore_errors=True) if away.is_dir() else away.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
