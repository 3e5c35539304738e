"""An embedder as ONNX graphs, one a kind of input, checked against it with onnxruntime."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar.data.labelled import require
from nearfar.encoders.embedder import Embedder, evaluating
from nearfar.encoders.saved import TOKENIZER
from nearfar.encoders.towers import ArrayTower, TextTower
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
        return F.normalize(self.embedder(self.kind, given), dim=1)


def export_onnx(
    embedder: Embedder, folder: str | Path, *, tolerance: float = TOLERANCE, seed: int = 0
) -> dict[str, float]:
    """Writes ``KIND.onnx`` for each tower, ``onnx.json`` which says what they take, and the tokenizer.

    A graph takes any number of rows. Images go in as bytes, ``uint8 (batch, c, h, w)``: standardisation is inside. Texts go
    in as ``input_ids`` and ``attention_mask``, ``int64 (batch, tokens)``, from ``tokenizer.json``. Embeddings have length 1.

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
    takes = _takes(embedder, kind)["inputs"]
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
        inputs = [{"name": n, "dtype": "int64", "shape": ["batch", "tokens"]} for n in ("input_ids", "attention_mask")]
        return {
            "file": file,
            "inputs": inputs,
            "tokenizer": TOKENIZER,
            "max_length": tower.spec["max_length"],
            "pad": tower.pad,
        }
    assert isinstance(tower, ArrayTower)
    dtype, name = ("uint8", "images") if kind == "image" else ("float32", "rows")
    return {"file": file, "inputs": [{"name": name, "dtype": dtype, "shape": ["batch", *tower.shape]}]}


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
    return (torch.randn(rows, *tower.shape, generator=generator, dtype=torch.float32) * tower.std + tower.mean,)


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
