"""Known identities: a folder each, embedded once, to verify against (``nearfar enroll``)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32

import nearfar
from nearfar.data.classes import class_name
from nearfar.data.folders import Walk
from nearfar.encoders.items import ranges_of
from nearfar.index.config import EnrollConfig
from nearfar.index.flat import ParquetStore
from nearfar.index.items import Meta, item_batch, item_schema, shown, vectors_of
from nearfar.index.run import Run, open_run
from nearfar.index.store import rescore

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Gallery:
    """Enrolled identities.

    Attributes:
        names: Of the identities, in order.
        owner: Which identity each vector is of ``(n,)``.
        vectors: Of the enrolled images ``(n, d)``, of length 1.
    """

    names: tuple[str, ...]
    owner: np.ndarray
    vectors: Float32[np.ndarray, "n d"]

    def scores(self, probe: Float32[np.ndarray, "d"]) -> dict[str, float]:
        """Of each identity: the mean cosine of a probe and its enrolled images.

        The mean, and not the best: more images then make a score surer and not larger, so that a threshold for one pair
        keeps its false acceptance rate.
        """
        each = rescore(probe, self.vectors)
        return {name: float(each[self.owner == i].mean()) for i, name in enumerate(self.names)}


def enroll(
    run: Run, folder: Path, *, skip_bad: bool = False, bad: list[str] | None = None, walk: Walk | None = None
) -> Iterator[pa.RecordBatch]:
    """Embeds ``folder/<identity>/**/<image>``, an identity at a time.

    Args:
        run: The model.
        folder: Of the identities.
        skip_bad: Leave out images that cannot be read; they are added to ``bad``.
        bad: Where to.
        walk: What lists the folder, and counts what it passes over.

    Raises:
        ValueError: If an image cannot be read, or an identity has none.
    """
    schema, first = item_schema(_meta(run, folder)), 0
    walk = Walk() if walk is None else walk
    files = {place: walk.files(place) for place in _identities(folder, walk)}
    ranges = ranges_of([path for found in files.values() for path in found], run.embedder.tower("image"))
    for place, found in files.items():
        paths, vectors = [], []
        for path in found:
            try:
                vectors.append(run.embed_image(path, ranges))
                paths.append(str(path))
            except ValueError as error:
                if not skip_bad:
                    raise ValueError(f"{error}: mend or remove it, or pass --skip-bad") from error
                if bad is not None:
                    bad.append(str(error))
        if not paths:
            raise ValueError(f"{place} holds no image that can be read: an identity wants one at least")
        facts = {
            "row": range(first, first + len(paths)), "name": paths, "column": ["image"] * len(paths),
            "modality": ["image"] * len(paths), "label": [class_name(place.name)] * len(paths),
        }  # fmt: skip
        yield item_batch(schema, facts, torch.cat(vectors).numpy())
        first += len(paths)


def read_gallery(path: Path, run: Run) -> Gallery:
    """What ``nearfar enroll`` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or of other weights than the run has now.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no gallery {path}: make it with nearfar enroll")
    store = ParquetStore(path)
    meta = store.describe()["meta"]
    if meta.weights != run.weights:
        raise ValueError(f"{path} was enrolled with other weights than {run.path} has now: enrol again")
    labels: list[str] = []
    vectors = []
    for batch in store.batches():
        labels += map(class_name, batch.column("label").to_pylist())
        vectors.append(vectors_of(batch))
    if not labels:
        raise ValueError(f"{path} holds no identity: enrol again")
    names, owner = np.unique(labels, return_inverse=True)
    return Gallery(tuple(names.tolist()), owner, np.concatenate(vectors))


def run(config: EnrollConfig) -> int:
    """Enrols a folder of identities."""
    model, folder = open_run(config.run, config.device, allow_code=config.allow_code), Path(config.folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: pass one with a sub-folder of images an identity")
    out = Path(config.out).expanduser() if config.out else model.path / "gallery.parquet"
    store, bad, walk = ParquetStore(out), [], Walk()
    try:
        store.create(_meta(model, folder))
        store.add(enroll(model, folder, skip_bad=config.skip_bad, bad=bad, walk=walk))
        store.finish()
    finally:
        store.close()
    for line in walk.notes():
        print(f"note: {shown(line)}", file=sys.stderr)
    for line in bad:
        print(f"left out: {shown(line)}", file=sys.stderr)
    print(f"{len(read_gallery(out, model).names)} identities, {store.count()} images: {shown(str(out))}")
    return 0


def _identities(folder: Path, walk: Walk) -> list[Path]:
    found = walk.folders(folder)
    if not found:
        raise ValueError(f"{folder} has no sub-folders: identities are wanted as {folder.name}/<identity>/<image>.png")
    return found


def _meta(run: Run, folder: Path) -> Meta:
    return Meta(
        run.embedder.dim, run.model, str(run.path), run.weights, folder.name, ("image",), nearfar=nearfar.__version__
    )
