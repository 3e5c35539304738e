"""What an export is told: a frozen dataclass. The string under a field is its ``--help``. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nearfar.marks import arg
from nearfar.names import given, refuse_unused


@dataclass(frozen=True)
class ExportConfig:
    """Hands a trained encoder to other programs, checked to give the same embeddings there."""

    run: Annotated[str, arg(metavar="RUN")]
    """The run folder, or the folder of an embedder."""
    to: Literal["safetensors", "onnx", "sentence-transformers", "hub"] = "safetensors"
    """safetensors: weights and config.json, which nearfar.load reads without running code. onnx: one graph a kind of
    input, images from raw bytes on. sentence-transformers: a folder for SentenceTransformer(path), of a text encoder. hub:
    the safetensors folder and a model card, to the Hugging Face Hub."""
    out: Annotated[str | None, arg(aliases=("-o",))] = None
    """The folder to write; by default export-TO in the run folder. For the Hub: the repository, as user/name."""
    private: bool = False
    """Keep a new repository on the Hub private."""
    allow_code: bool = False
    """The encoder was given as module:factory, and that module may be imported."""

    def __post_init__(self) -> None:
        if self.to != "hub":
            refuse_unused(
                given(self, "private"), f"--to {self.to} writes to a folder", "leave it out, or pass --to hub"
            )
