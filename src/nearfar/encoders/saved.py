"""An embedder's folder: ``config.json``, ``model.safetensors``, ``tokenizer.json``; written whole, read without code."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.data.depth import FULL, Range, Ranges
from nearfar.data.labelled import require
from nearfar.encoders.embedder import Embedder
from nearfar.encoders.precision import building
from nearfar.encoders.tokenizer import read_tokenizer
from nearfar.encoders.towers import ArrayTower, TextTower, Tower, build_tower, fingerprint
from nearfar.encoders.weights import write_weights
from nearfar.report.files import read_json, write_json, write_text

FORMAT, VERSION = "nearfar-embedder", 1
WHY = "saving an embedder"
PARTS = ("towers", "projections")
"""What an embedder's weights are divided in, each by kind."""
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
LEARNED, AVERAGED = "method.safetensors", "ema.safetensors"
"""Weights in a checkpoint of a training run: those that are stepped, and their average."""


def save(embedder: Embedder, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """See ``Embedder.save``. The configuration goes last: without it the folder is no embedder yet."""
    require("safetensors.torch", WHY, "train")
    folder.mkdir(parents=True, exist_ok=True)
    specs = {}
    for kind in embedder.kinds:
        tower = embedder.tower(kind)
        specs[kind] = dict(tower.spec)
        if isinstance(tower, TextTower):
            text = tower.tokenizer.to_str()
            write_text(folder / TOKENIZER, text)
            specs[kind]["tokenizer"] = fingerprint(text)
        if kind == "image" and isinstance(tower, ArrayTower):
            specs[kind]["ranges"] = {depth: list(limits) for depth, limits in tower.ranges.items()}
    write_weights(folder / WEIGHTS, weights, WHY)
    write_json(folder / CONFIG, {
        "format": FORMAT, "version": VERSION, "nearfar": version("nearfar"),
        "dim": embedder.dim if len(embedder.projections) else None, "towers": specs,
    })  # fmt: skip


def load(folder: Path, device: torch.device | str = "cpu", *, allow_code: bool = False) -> Embedder:
    """See ``Embedder.load``."""
    file, folder = weights_file(folder), find(folder)
    config = _config(folder / CONFIG)
    state = _weights(file) if file.parent == folder else _of_checkpoint(file)
    double = any(tensor.dtype == torch.float64 for tensor in state.values())
    try:
        with building(torch.float64 if double else torch.float32):
            towers = [_tower(folder, kind, dict(spec), allow_code) for kind, spec in config["towers"].items()]
            embedder = Embedder(towers, config["dim"])
    except (KeyError, TypeError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{folder / CONFIG} does not describe an embedder: {what}") from error
    wanted = embedder.state_dict()
    missing, surplus = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = [name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape]
    if missing or surplus or shapes:
        faults = {"lacks": missing, "has besides": surplus, "has in another shape": sorted(shapes)}
        told = "; ".join(f"{what} {', '.join(names[:3])}" for what, names in faults.items() if names)
        raise ValueError(f"{file} does not belong to {CONFIG} beside it: it {told}. Save the embedder anew")
    embedder.load_state_dict(state)
    for tower in towers:
        tower.pretrained = True
    embedder.pretrained = frozenset(f"{part}.{kind}" for part in PARTS for kind in getattr(embedder, part))
    return embedder.to(device).eval()


def find(path: Path) -> Path:
    """The embedder's folder: the path, or ``model`` in it, which is where a training run keeps it, or that of a checkpoint's run.

    Raises:
        ValueError: If neither is one.
    """
    path = path.parent.parent if _is_checkpoint(path) else path
    for folder in (path, path / "model"):
        if (folder / CONFIG).is_file():
            return folder
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}: pass one that Embedder.save wrote, or a training run's")
    raise ValueError(f"{path} holds no embedder: there is no {CONFIG} in it, nor in {path / 'model'}")


def weights_file(path: Path) -> Path:
    """The file of an embedder's weights; in a checkpoint of a training run that of the averaged ones, where there are any."""
    if not _is_checkpoint(path):
        return find(path) / WEIGHTS
    return path / (AVERAGED if (path / AVERAGED).is_file() else LEARNED)


def image_reading(path: str | Path) -> tuple[tuple[int, int], Ranges] | None:
    """How the embedder in a folder reads images: their height and width, and which numbers are black and white; None: it
    reads none.
    """
    spec = _config(find(Path(path).expanduser()) / CONFIG)["towers"].get("image")
    return None if spec is None else ((spec["shape"][1], spec["shape"][2]), _ranges(spec))


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        other = isinstance(config, dict) and "model_type" in config
        told = f"; a folder of transformers' is named hf:{path.parent}" if other else ""
        raise ValueError(f'{path} is not an embedder\'s: wanted "format": "{FORMAT}"{told}')
    if config.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {config.get('version')!r}, and this nearfar {version('nearfar')} reads {VERSION}: it was "
            f"written by nearfar {config.get('nearfar', 'unknown')}; install that, or save it anew"
        )
    for key in ("towers", "dim"):
        if key not in config:
            raise ValueError(f"{path} lacks {key!r}: was it written in full?")
    return config


def _tower(folder: Path, kind: Any, spec: dict[str, Any], allow_code: bool) -> Tower:
    if "name" not in spec:
        raise ValueError(f"{folder / CONFIG} lacks the name of the {kind} tower's network")
    tokenizer = None
    if kind == "text":
        path = folder / TOKENIZER
        if not path.is_file():
            raise ValueError(f"{folder} lacks {TOKENIZER}, which the text tower needs")
        text = path.read_text(encoding="utf-8")
        tokenizer = read_tokenizer(text, str(path))
        if spec.pop("tokenizer", None) != fingerprint(text):
            raise ValueError(f"{path} does not belong to {CONFIG} beside it: save the embedder anew")
    ranges = _ranges(spec)
    spec.pop("ranges", None)
    tower = build_tower(kind, spec, tokenizer=tokenizer, allow_code=allow_code)
    if kind == "image" and isinstance(tower, ArrayTower):
        tower.ranges = ranges
    return tower


def _ranges(spec: dict[str, Any]) -> dict[str, Range]:
    """Which numbers are black and white, by depth; older folders do not say."""
    return {depth: (float(low), float(high)) for depth, (low, high) in spec.get("ranges", FULL).items()}


def _weights(path: Path) -> dict[str, Tensor]:
    safetensors = require("safetensors.torch", "loading an embedder", "train")
    if not path.is_file():
        raise ValueError(f"{path.parent} lacks {path.name}")
    try:
        return safetensors.load_file(path)
    except Exception as error:  # safetensors has an error class of its own, below Exception
        raise ValueError(f"{path} cannot be read ({error}): was it written in full?") from error


def _is_checkpoint(path: Path) -> bool:
    return (path / LEARNED).is_file()


def _of_checkpoint(file: Path) -> dict[str, Tensor]:
    """The embedder's weights in a file of a checkpoint."""
    held, prefix = _weights(file), "module." if file.name == AVERAGED else "network.embedder."
    return {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
