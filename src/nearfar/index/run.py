"""A trained model and the data it came from: what embedding, searching and verifying start with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from nearfar.data.config import EARLIER, DataConfig
from nearfar.data.corpus import Column, Corpus, Part
from nearfar.data.depth import Ranges
from nearfar.data.labelled import require
from nearfar.data.open import open_corpus
from nearfar.data.pixels import SUFFIXES
from nearfar.data.place import contents_of
from nearfar.encoders.backbones import ENCODERS
from nearfar.encoders.embedder import Embedder
from nearfar.encoders.items import read_image
from nearfar.encoders.load import load
from nearfar.encoders.make import is_folder, kinds_read, make_embedder
from nearfar.encoders.saved import CONFIG, find, weights_file
from nearfar.encoders.towers import ArrayTower
from nearfar.names import passing_over
from nearfar.report.files import read_json
from nearfar.training.run import Run as TrainedRun
from nearfar.types import Kind

SPLIT = ("test_fraction", "split_seed", "hold_out", "id")
"""Options by which rows are held out."""
PLACE = ("root", "skip_bad")
"""Options by which the same rows are read in the same way."""


@dataclass(frozen=True)
class Run:
    """An embedder in evaluation mode, and where it was read.

    Attributes:
        path: As it was given.
        embedder: On the device that was asked for.
        weights: A fingerprint: two runs with the same one give the same embeddings.
        config: What ``config.yaml`` of a training run holds; empty for a model folder.
    """

    path: Path
    embedder: Embedder
    weights: str
    config: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The encoder in words: a network a kind."""
        towers = (self.embedder.tower(kind) for kind in self.embedder.kinds)
        return ", ".join(f"{tower.kind}: {tower.spec['name']}" for tower in towers)

    def data_config(self) -> DataConfig:
        """The data it was trained on.

        Raises:
            ValueError: If it is a model folder, which does not know.
        """
        if "data" not in self.config:
            raise ValueError(f"{self.path} does not say which data it was trained on: name the data")
        known = {field.name for field in fields(DataConfig)}
        given: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v
            for name, v in (EARLIER | dict(self.config)).items()
            if name in known
        }
        return DataConfig(**given)

    def otherwise(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of some fields of ``DataConfig`` by which the run's own data would be other rows, or read in another way."""
        own = self.data_config()
        return {name: value for name, value in options.items() if name not in PLACE and value != getattr(own, name)}

    def open_data(self, data: str | None = None, **options: Any) -> Corpus:
        """Opens data as this model reads them.

        Args:
            data: By default those it was trained on, read the same way.
            options: Fields of ``DataConfig`` that are to be otherwise; None: as they are.
        """
        own = data is None or self.is_own(data)
        if data is None or own:
            config = self.data_config()
            config = replace(config, data=self.where() if data is None else data)
        else:  # columns are found anew; grades mean what they meant
            config = DataConfig(data, scale=tuple(self.config.get("scale") or ()) or None)
        ranges = None
        if "image" in self.embedder.kinds:
            tower = self.embedder.tower("image")
            assert isinstance(tower, ArrayTower)
            ranges = tower.ranges
            config = replace(config, size=config.size or (tower.shape[1], tower.shape[2]))
        told = {name: value for name, value in options.items() if value is not None}
        corpus = passing_over(lambda asked: open_corpus(asked, ranges), replace(config, **told), told)
        return replace(corpus, notes=(*corpus.notes, *self.changed(corpus, config.data, told))) if own else corpus

    def where(self) -> str:
        """Where its own data are, seen from here.

        Raises:
            ValueError: If they are not there, or it is a model folder.
        """
        return TrainedRun(self.path).find_data(self.data_config().data)

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of its weights."""
        unfinished = TrainedRun(self.path).unfinished if self.config else None
        return () if unfinished is None else (unfinished,)

    def is_own(self, data: str) -> bool:
        """Whether data are those it was trained on, wherever they are now."""
        own = self.config.get("data")
        return own is not None and TrainedRun(self.path).is_own(data, str(own))

    def changed(self, corpus: Corpus, data: str, told: Mapping[str, Any]) -> tuple[str, ...]:
        """Whether the run's own data hold something else than when it was trained, or are split otherwise, in words.

        Args:
            corpus: As they are now.
            data: Where they are.
            told: Options that are otherwise.
        """
        file = self.path / "environment.json"
        then = read_json(file).get("data", {}) if file.is_file() else {}
        before = then.get("train"), then.get("test")
        now = tuple(len(part) if isinstance(part, Part) else 0 for part in (corpus.train, corpus.test))
        if None in before or before == now:
            held = TrainedRun(self.path).source.get("contents")
            if held is not None and contents_of(data) not in (None, held):
                return (
                    f"{data} holds something else than when the run was trained: some rows may have been trained on",
                )
            drawn = [name for name in self.otherwise(told) if name in SPLIT]
            why = f"the rows held out are drawn otherwise than when the run was trained ({', '.join(drawn)})"
            return (f"{why}: some may have been trained on",) if drawn else ()
        rows = "{} rows to train on and {} held out"
        return (
            f"the run was made of {rows.format(*before)}, and now there are {rows.format(*now)}: some may have been trained on",
        )

    def columns(self, corpus: Corpus, names: tuple[str, ...] = ()) -> list[Column]:
        """The inputs of a data set that the model reads: those named, or all but negatives.

        Raises:
            ValueError: If there is none, or one that was named is not there or not read.
        """
        known = {column.name: column for column in corpus.columns}
        for name in names:
            if name not in known:
                raise ValueError(f"{corpus.name} has no input {name!r}: its inputs are {', '.join(known)}")
            if known[name].kind not in self.embedder.kinds:
                raise ValueError(
                    f"{name!r} holds {known[name].kind}s, and the model reads {', '.join(self.embedder.kinds)}"
                )
        chosen = [known[name] for name in names] or [column for column in known.values() if column.role != "negative"]
        read = [column for column in chosen if column.kind in self.embedder.kinds]
        if not read:
            held = ", ".join(dict.fromkeys(column.kind for column in chosen))
            raise ValueError(f"{corpus.name} holds {held}, and the model reads {', '.join(self.embedder.kinds)}")
        return read

    @torch.no_grad()
    def embed(self, kind: Kind, raw: Any) -> Float32[Tensor, "b dim"]:
        """Embeddings of a column as it was read, of length 1, on the CPU."""
        return self.embedder.embed(raw, kind=kind, batch_size=max(1, len(raw)))

    def embed_image(self, path: str | Path, ranges: Ranges | None = None) -> Float32[Tensor, "1 dim"]:
        """The embedding of an image file, read as the data are.

        Args:
            path: Of the file.
            ranges: Which numbers are black and white, in images of more than bytes; by default as in training, else by this
                file. See ``ranges_of``.

        Raises:
            ValueError: If it cannot be read, or the model reads no images.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no image {path}")
        tower = self.embedder.tower("image")
        assert isinstance(tower, ArrayTower)
        return self.embed("image", read_image(path, tower.shape, tower.ranges if ranges is None else ranges)[None])


def open_run(path: str | Path, device: str | None = None, *, allow_code: bool = False) -> Run:
    """Reads the model of a training run, or a model folder.

    Args:
        path: The folder.
        device: Where to compute; None: a GPU if there is one.
        allow_code: Whether an encoder that was given as ``module:factory`` may be imported and called.

    Raises:
        ValueError: If there is no model.
    """
    path, place = Path(path).expanduser(), _place(device)
    embedder = load(path, place, allow_code=allow_code)
    folder = find(path)
    digest = hashlib.sha256()
    for name in (folder / CONFIG, weights_file(path)):
        with name.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return Run(path, embedder, digest.hexdigest()[:16], read_config(path))


def is_named(model: str) -> bool:
    """Whether a model is a network by name, such as ``hf:NAME`` or ``small-cnn``, and no folder here.

    Example:
        >>> is_named("hf:nowhere"), is_named("image=timm:resnet18,text=text-small"), is_named("runs/mine")
        (True, True, False)
    """
    return model in ENCODERS or (not is_folder(model) and (":" in model or "=" in model))


def open_named(
    model: str, config: DataConfig, device: str | None = None, *, pretrained: bool = False, seed: int = 0
) -> tuple[Run, Corpus]:
    """A network that was not trained here, with the weights that it comes with, and data as it reads them.

    Args:
        model: As ``nearfar train`` takes it.
        config: The data.
        device: Where to compute; None: a GPU if there is one.
        pretrained: Whether a network of timm's has its published weights.
        seed: Random seed for new weights.

    Raises:
        ValueError: If there is no such network, or it reads nothing of the data.
    """
    place, corpus = _place(device), open_corpus(config)
    read = kinds_read(model, corpus)
    columns = tuple(column for column in corpus.columns if column.kind in read)
    embedder = make_embedder(replace(corpus, columns=columns), model, pretrained=pretrained, seed=seed)
    digest = hashlib.sha256()
    for name, tensor in sorted(embedder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return Run(Path(model), embedder.to(place).eval(), digest.hexdigest()[:16], {}), corpus


def _place(device: str | None) -> torch.device:
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {device!r} cannot be used here ({str(error).partition(chr(10))[0]}): pass cpu"
        ) from error
    return place


def read_config(path: Path) -> dict[str, Any]:
    """What the ``config.yaml`` of a run folder holds; nothing where there is none.

    Raises:
        ValueError: If it is no YAML mapping.
    """
    file = path / "config.yaml"
    if not file.is_file():
        return {}
    yaml = require("yaml", "reading a run's configuration", "train")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}: wanted options, one a line")
    return config


def is_image(query: str) -> bool:
    """Whether a query is an image: a file that ends as images do."""
    return query.lower().endswith(SUFFIXES) and Path(query).expanduser().is_file()
