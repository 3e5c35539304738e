"""An embedder as ONNX graphs, one a kind of input, checked against it with onnxruntime."""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearfar.data.labelled import require
from nearfar.encoders.embedder import Embedder, evaluating
from nearfar.encoders.reading import image_reading
from nearfar.encoders.saved import TOKENIZER
from nearfar.encoders.towers import ArrayTower, TextTower
from nearfar.lengths import unit_rows
from nearfar.report.files import write_json, write_text
from nearfar.types import Kind

TOLERANCE = 1e-4


class Graph(nn.Module):
    """What a graph holds: preparation, tower, projection, and rows made to length 1."""

    def __init__(self, embedder: Embedder, kind: Kind) -> None:
        super().__init__()
        self.embedder = embedder
        self.kind: Kind = kind

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b dim"]:
        """Embeddings; of texts from ``input_ids`` and ``attention_mask``."""
        given = {"ids": inputs[0], "mask": inputs[1] != 0} if self.kind == "text" else inputs[0]
        return unit_rows(self.embedder(self.kind, given))


def export_onnx(
    embedder: Embedder, folder: str | Path, *, tolerance: float = TOLERANCE, seed: int = 0
) -> dict[str, float]:
    """Writes ``KIND.onnx`` for each tower, ``onnx.json`` which says what they take, and the tokenizer.

    A graph takes any number of rows: its axes are called ``batch`` and, of texts, ``sequence``. Images go in as bytes,
    ``uint8 (batch, c, h, w)``: standardisation is inside, and ``preprocess`` says how files become such pixels. Texts go in as
    ``input_ids`` and ``attention_mask``, ``int64 (batch, sequence)``, from ``tokenizer.json``. Embeddings have length 1. What
    ``onnx.json`` says of a graph is in the graph too, as its metadata ``nearfar``.

    Args:
        embedder: What to export.
        folder: Where to; made if it is not there.
        tolerance: The most that a number of an embedding may differ. 1e-4 is some hundred roundings of float32.
        seed: Of the inputs it is checked with.

    Returns:
        The files, and the largest difference found.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is not installed.
        ValueError: If a graph gives other embeddings, in which case it is not written.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, "an ONNX export", "export")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found, inputs = {}, {}
    device = embedder.device
    with evaluating(embedder), torch.no_grad():
        embedder.cpu()
        try:
            for kind in embedder.kinds:
                path = folder / f"{kind}.onnx"
                found[str(path)] = _export(embedder, kind, path, tolerance, torch.Generator().manual_seed(seed))
                inputs[kind] = _takes(embedder, kind)
        finally:
            embedder.to(device)
    write_json(folder / "onnx.json", {"dim": embedder.dim, "normalised": True, "graphs": inputs})
    return found


def _export(embedder: Embedder, kind: Kind, path: Path, tolerance: float, generator: torch.Generator) -> float:
    graph = Graph(embedder, kind).eval()
    about = _takes(embedder, kind)
    takes = about["inputs"]
    names = [taken["name"] for taken in takes]
    shapes = (
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(takes[0]["shape"]) if isinstance(size, str)},
    ) * len(names)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _quiet():
            torch.onnx.export(
                graph,
                _example(embedder, kind, 2, generator),
                beside,
                input_names=names,
                output_names=["embeddings"],
                dynamic_shapes={"inputs": shapes},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        _label(beside, about, embedder.dim)
        worst = _difference(beside, graph, names, [_example(embedder, kind, rows, generator) for rows in (1, 5)])
        if not worst <= tolerance:
            raise ValueError(
                f"the ONNX graph of the {kind} tower differs from it by {worst:.1e}: more than {tolerance:.0e}"
            )
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    if kind == "text":
        tower = embedder.tower(kind)
        assert isinstance(tower, TextTower)
        write_text(path.with_name(TOKENIZER), tower.tokenizer.to_str())
    return worst


def _takes(embedder: Embedder, kind: Kind) -> dict[str, Any]:
    tower = embedder.tower(kind)
    file = f"{kind}.onnx"
    if isinstance(tower, TextTower):
        inputs = [
            {"name": n, "dtype": "int64", "shape": ["batch", "sequence"]} for n in ("input_ids", "attention_mask")
        ]
        return {
            "file": file,
            "inputs": inputs,
            "tokenizer": TOKENIZER,
            "max_length": tower.spec["max_length"],
            "pad": tower.pad,
        }
    assert isinstance(tower, ArrayTower)
    dtype, name = ("uint8", "images") if kind == "image" else ("float32", "rows")
    found: dict[str, Any] = {"file": file, "inputs": [{"name": name, "dtype": dtype, "shape": ["batch", *tower.shape]}]}
    return found | ({"preprocess": image_reading(tower.shape)} if kind == "image" else {})


def _label(path: Path, about: dict[str, Any], dim: int) -> None:
    """Names the axes of a graph, which the exporter numbers, and writes into it what it takes."""
    onnx = require("onnx", "an ONNX export", "export")
    model = onnx.load(str(path))
    sizes = [
        (given.type.tensor_type.shape.dim, wanted["shape"]) for given, wanted in zip(model.graph.input, about["inputs"])
    ]
    sizes += [(given.type.tensor_type.shape.dim, ["batch", dim]) for given in model.graph.output]
    renamed = {
        axis.dim_param: name
        for axes, names in sizes
        for axis, name in zip(axes, names)
        if axis.dim_param and isinstance(name, str)
    }
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"\w+", lambda found: renamed.get(found[0], found[0]), axis.dim_param)
    onnx.helper.set_model_props(
        model, {"nearfar": json.dumps(about | {"dim": dim, "normalised": True}, ensure_ascii=False)}
    )
    onnx.save(model, str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own doings, and on packages that nothing here needs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _example(embedder: Embedder, kind: Kind, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Inputs of a graph; texts of unlike lengths, so that some are padded."""
    tower = embedder.tower(kind)
    if isinstance(tower, TextTower):
        tokens = min(tower.spec["max_length"], 4 + 2 * rows)
        lengths = torch.randint(1, tokens + 1, (rows, 1), generator=generator)
        lengths[0] = tokens
        mask = torch.arange(tokens) < lengths
        ids = torch.randint(tower.pad + 1, tower.tokenizer.get_vocab_size(), (rows, tokens), generator=generator)
        return ids.masked_fill(~mask, tower.pad), mask.long()
    assert isinstance(tower, ArrayTower)
    if kind == "image":
        return (torch.randint(256, (rows, *tower.shape), dtype=torch.uint8, generator=generator),)
    return (torch.randn(rows, *tower.shape, generator=generator) * tower.std + tower.mean,)


def _difference(path: Path, graph: Graph, names: list[str], examples: list[tuple[Tensor, ...]]) -> float:
    """The largest difference between onnxruntime's embeddings and the graph's own."""
    runtime = require("onnxruntime", "an ONNX export", "export")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for inputs in examples:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        (embeddings,) = session.run(None, given)
        worst = max(worst, float((torch.from_numpy(embeddings) - graph(*inputs)).abs().max()))
    return worst
