"""Small corpora and embedders for tests."""

from __future__ import annotations

import functools

import torch

from nearfar.data.corpus import Column, Corpus, TensorPart
from nearfar.encoders.embedder import Embedder
from nearfar.encoders.make import make_embedder

TEXTS = [f"{count} {size} {colour} boxes, {place} the house"
         for count in ("two", "three", "many") for size in ("small", "big") for colour in ("red", "green", "blue")
         for place in ("near", "far from", "behind")]  # fmt: skip
ROWS = len(TEXTS)
OPTIONS = {"image": {"width": 8}, "text": {"width": 32, "heads": 2}, "series": {"width": 8}}


def drawn(*shape: int, seed: int = 0, byte: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if byte:
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator)


def corpus(*kinds: str) -> Corpus:
    """One column a kind, called like it; the first is the anchor."""
    data = {
        "image": drawn(ROWS, 3, 32, 32, byte=True),
        "text": TEXTS,
        "vector": drawn(ROWS, 5) * torch.tensor([1.0, 2, 3, 4, 0]) + 7,
        "series": drawn(ROWS, 2, 40),
    }
    columns = tuple(Column(kind, kind, "positive" if i else "anchor") for i, kind in enumerate(kinds))
    return Corpus("drawn", columns, TensorPart({kind: data[kind] for kind in kinds}), None, channels=3)


@functools.cache
def embedder(*kinds: str) -> Embedder:
    """Untrained, but with statistics that a few batches have moved; in training mode. Not to be changed."""
    made = make_embedder(corpus(*kinds), options={kind: OPTIONS[kind] for kind in kinds if kind in OPTIONS})
    with torch.no_grad():
        for kind in kinds:
            made(kind, made.prepare(kind, corpus(kind).train.fetch(range(ROWS)).columns[kind]))
    return made


def items(kind: str, count: int = 7) -> object:
    """What ``embed`` takes."""
    return corpus(kind).train.fetch(range(count)).columns[kind]
