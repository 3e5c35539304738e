"""``nearfar export``: a trained encoder for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nearfar.encoders.config import ExportConfig
from nearfar.encoders.embedder import Embedder
from nearfar.encoders.saved import find, load


def run(config: ExportConfig) -> int:
    """The command: exports, prints what was written, and how equal it was found."""
    if config.to == "hub" and config.out is None:
        raise ValueError("where to on the Hub is not said: pass --out user/name")
    folder = find(Path(config.run))
    embedder = load(folder, allow_code=config.allow_code)
    out = config.out or str(Path(config.run) / f"export-{config.to}")
    for line in EXPORTS[config.to](embedder, out, config):
        print(line)
    return 0


def _safetensors(embedder: Embedder, out: str, config: ExportConfig) -> list[str]:
    embedder.save(out)
    return [f"{out}: read it with nearfar.load({out!r})"]


def _onnx(embedder: Embedder, out: str, config: ExportConfig) -> list[str]:
    from nearfar.encoders.export_onnx import export_onnx

    found = export_onnx(embedder, out)
    return [f"{path}: equal in onnxruntime to {worst:.1e}" for path, worst in found.items()]


def _sentence(embedder: Embedder, out: str, config: ExportConfig) -> list[str]:
    from nearfar.encoders.export_sentence import export_sentence

    worst = export_sentence(embedder, out)
    checked = (
        "not checked, since sentence-transformers is not installed" if worst is None else f"equal there to {worst:.1e}"
    )
    return [f"{out}: read it with SentenceTransformer({out!r}); {checked}"]


def _hub(embedder: Embedder, out: str, config: ExportConfig) -> list[str]:
    from nearfar.encoders.export_hub import push

    return [push(embedder, out, private=config.private)]


EXPORTS: dict[str, Callable[[Embedder, str, ExportConfig], list[str]]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "sentence-transformers": _sentence,
    "hub": _hub,
}
