"""Tiny data and short runs for the tests of training. As a program, it trains or goes on with one of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import nearfar as nf
from nearfar.data.corpus import Column, Corpus, TensorPart

SOURCE = Path(__file__).parent.parent / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def train(corpus: Corpus, out: Path, **options: Any) -> nf.Run:
    """A run of a few steps."""
    return nf.train(corpus=corpus, out=str(out), show=False, **({"steps": 6, "batch_size": 16, "threads": 1} | options))


def images(rows: int = 96, labels: bool = True, seed: int = 0) -> Corpus:
    """Four classes of 8×8 noise, told apart by how bright their left half is."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (rows + 48, 1, 8, 8), dtype=torch.uint8, generator=generator)
    y = torch.arange(rows + 48) % 4
    x[:, :, :, :4] = (60 * y).to(torch.uint8)[:, None, None, None]
    parts = [
        TensorPart({"image": x[rows_of]}, y[rows_of] if labels else None)
        for rows_of in (slice(rows), slice(rows, None))
    ]
    names = ("a", "b", "c", "d") if labels else ()
    return Corpus("images", (Column("image", "image"),), *parts, names, (8, 8), 1)


WORDS = (
    "red green blue dark light warm cold small large round flat soft hard near far old new fast slow".split()  # noqa: SIM905
)


def texts(rows: int = 64, columns: int = 1, groups: bool = False, seed: int = 0) -> Corpus:
    """Sentences of three words; a second column has the same words the other way round, a third another row's."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(WORDS), (rows + 32, 3), generator=generator).tolist()
    first = [" ".join(WORDS[w] for w in row) for row in drawn]
    data = {"text": first, "other": [" ".join(reversed(t.split())) for t in first], "not": first[1:] + first[:1]}
    roles = (Column("text", "text"), Column("other", "text", "positive"), Column("not", "text", "negative"))
    kept = roles[:columns]
    ids = torch.arange(rows + 32) // 2 if groups else None

    def part(at: slice) -> TensorPart:
        return TensorPart({c.name: data[c.name][at] for c in kept}, groups=None if ids is None else ids[at])

    return Corpus("texts", kept, part(slice(rows)), part(slice(rows, None)))


def vectors(rows: int = 128, seed: int = 0) -> Corpus:
    """Rows of eight numbers in four classes, and a second column with noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(rows + 64) % 4
    x = torch.randn(4, 8, generator=generator)[y] + 0.5 * torch.randn(rows + 64, 8, generator=generator)
    other = x + 0.1 * torch.randn(x.shape, generator=generator)
    columns = (Column("x", "vector"), Column("y", "vector", "positive"))
    parts = [TensorPart({"x": x[at], "y": other[at]}, y[at]) for at in (slice(rows), slice(rows, None))]
    return Corpus("vectors", columns, *parts, ("a", "b", "c", "d"), None, 8)


def judged(rows: int = 128, seed: int = 0) -> Corpus:
    """Pairs of vectors, of which each third is not alike, and many of whose values come more than once."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, rows + 64, 8, generator=generator)
    similar = (torch.arange(rows + 64) % 3 > 0).float()
    y = torch.where(similar[:, None] > 0, x + 0.3 * y, y)
    same = {"x": torch.arange(rows + 64) // 2, "y": 1000 + torch.arange(rows + 64) % 50}
    columns = (Column("x", "vector"), Column("y", "vector", "positive"))
    parts = [
        TensorPart({"x": x[at], "y": y[at]}, similar=similar[at], same={name: ids[at] for name, ids in same.items()})
        for at in (slice(rows), slice(rows, None))
    ]
    return Corpus("judged", columns, *parts, similar="alike")


def tensors_of(run: Any) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint of a run and of its model, by file and name."""
    from safetensors.torch import load_file

    from nearfar.training.checkpoint import last_checkpoint

    last = last_checkpoint(Path(run.path) / "checkpoints")
    assert last is not None
    files = [*last.glob("*.safetensors"), Path(run.path) / "model" / "model.safetensors"]
    return {f"{path.name}:{name}": t for path in files for name, t in load_file(path).items()}


def told(run: Any) -> list[dict[str, Any]]:
    """What happened in a run, without what a clock says."""
    return [{k: v for k, v in event.items() if k != "seconds"} for event in run.events()]


def differences(a: Any, b: Any) -> list[str]:
    """Where two runs are not the same, bit for bit."""
    found = []
    one, two = tensors_of(a), tensors_of(b)
    if one.keys() != two.keys():
        found.append(f"tensors {one.keys() ^ two.keys()}")
    found += [name for name in one.keys() & two.keys() if not torch.equal(one[name], two[name])]
    first, second = told(a), told(b)
    if first != second:
        at = next((k for k, (x, y) in enumerate(zip(first, second)) if x != y), min(len(first), len(second)))
        found.append(f"events {len(first)} and {len(second)}, first different: number {at}")
    return found


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    # the queue and the slow encoder of MoCo, averaged weights, random views
    "moco": (images, {
        "method": "moco", "queue": 64, "batch_size": 16, "steps": 40, "checkpoint_every": 2, "eval_every": 8, "ema": 0.9,
        "model": "small-cnn", "clip": 5.0,
    }),
    # dropout, hard negatives, a learned temperature
    "pairs": (lambda: texts(columns=3, groups=True), {
        "method": "pairs", "batch_size": 16, "steps": 24, "checkpoint_every": 2, "eval_every": 6, "ema": 0.9,
        "learnable_temperature": True, "optimizer": "lars", "lr": 0.1,
    }),
    # without what ranks cannot share on a CPU: dropout, batch normalisation
    "simclr": (images, {"method": "simclr", "batch_size": 24, "steps": 8, "model": "small-cnn", "learnable_temperature": True}),
    "queue": (images, {"method": "moco", "queue": 64, "batch_size": 24, "steps": 8, "model": "small-cnn"}),
    "clip": (vectors, {"method": "clip", "batch_size": 32, "steps": 8, "clip": 1.0, "ema": 0.9}),
    "chunks": (vectors, {"method": "clip", "batch_size": 32, "steps": 8, "chunk": 5}),
    "lars": (vectors, {"method": "clip", "batch_size": 32, "steps": 8, "optimizer": "lars", "lr": 2.0}),
    "sgd": (vectors, {"method": "clip", "batch_size": 32, "steps": 8, "optimizer": "sgd", "lr": 0.1}),
    "same": (judged, {"method": "pairs", "batch_size": 32, "steps": 8}),
    "judged": (judged, {"method": "siamese", "batch_size": 32, "steps": 8}),
    "classes": (images, {"method": "triplet", "batch_size": 16, "classes_per_batch": 2, "steps": 8, "views": "light"}),
}  # fmt: skip


def run_case(name: str, out: str | None = None, resume: str | None = None, **options: Any) -> Any:
    """Trains one of ``CASES``, or goes on with it."""

    torch.set_num_threads(1)
    corpus, settings = CASES[name]
    asked = ({"resume": resume} if resume else settings | {"out": out}) | options
    return nf.train(corpus=corpus(), show=False, **asked)


if __name__ == "__main__":
    names, folder, resume = sys.argv[1:4]
    more = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    for name in names.split(","):
        out = folder if name == names else f"{folder}/{name}"
        run_case(name, **({"resume": out} if resume == "resume" else {"out": out}), **more)
