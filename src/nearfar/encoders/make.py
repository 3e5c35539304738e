"""The embedder for a data set: which towers, and what they must know of the data before training."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.data.corpus import Corpus, RawBatch, Stream
from nearfar.data.depth import Ranges
from nearfar.data.parts import TablePart
from nearfar.encoders.backbones import ENCODERS
from nearfar.encoders.embedder import Embedder
from nearfar.encoders.load import load
from nearfar.encoders.precision import building, dtype_of
from nearfar.encoders.saved import image_reading
from nearfar.encoders.tokenizer import train_tokenizer
from nearfar.encoders.towers import ArrayTower, Tower, build_tower
from nearfar.names import unknown
from nearfar.types import Kind

KINDS: tuple[Kind, ...] = ("image", "text", "vector", "series")
# Rows that are looked at before training. Means of images are known to a thousandth from a thousand; a vocabulary wants more.
ROWS, TEXT_ROWS = 1_024, 20_000
SHARED = 256


def make_embedder(
    corpus: Corpus,
    model: str | Mapping[str, str] | None = None,
    dim: int | None = None,
    pretrained: bool = False,
    *,
    seed: int = 0,
    vocabulary: int = 8192,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    allow_code: bool = False,
) -> Embedder:
    """Makes an embedder with a tower for each kind of input that a corpus has.

    A text tower from scratch learns its tokenizer from the corpus' texts; other towers learn mean and standard deviation
    of channels or columns.

    Args:
        corpus: What it is to read; only training rows are looked at.
        model: A network by name (``ENCODERS``, ``timm:NAME``, ``hf:PATH_OR_NAME``, ``module:factory``) for the kind
            that it reads, or the folder of a run, a checkpoint or an embedder, whose weights it then starts from; of several
            kinds ``{"image": …, "text": …}``, or the same as ``"image=…,text=…"``. Kinds without a name get the default:
            see ``default_tower``.
        dim: Width of the shared space. By default that of the folder's embedder; else none for one tower, whose features are
            the embeddings, and 256 for several.
        pretrained: Start timm's networks from their weights; ``hf:`` models always do. Of ``module:factory``: it brings
            weights that were trained before.
        seed: Of the initial weights, and of the rows that are looked at.
        vocabulary: Tokens of a text tower from scratch at most.
        options: More options of a network, by kind: see its function.
        allow_code: Whether the ``module:factory`` that a folder's encoder was made by may be imported and called.

    Raises:
        ValueError: If a network is not known, does not suit, or there is nothing for it to read.

    Example:
        >>> from nearfar.data.corpus import Column, TensorPart
        >>> part = TensorPart({"pixels": torch.randint(256, (64, 1, 28, 28), dtype=torch.uint8)})
        >>> corpus = Corpus("noise", (Column("pixels", "image"),), part, None, size=(28, 28), channels=1)
        >>> embedder = make_embedder(corpus)
        >>> embedder.kinds, embedder.towers["image"].spec["name"], embedder.dim
        (('image',), 'resnet-small', 256)
    """
    kinds: list[Kind] = [kind for kind in KINDS if any(column.kind == kind for column in corpus.columns)]
    if not kinds:
        raise ValueError(f"{corpus.name} has no column to read")
    names = _names(model, kinds)
    more = {kind: dict(given) for kind, given in (options or {}).items()}
    for kind in more:
        if kind not in kinds:
            raise ValueError(unknown("input in the data of the kind", kind, kinds))
    towers: list[Tower] = []
    saved: dict[str, Embedder] = {}  # by folder
    with torch.random.fork_rng(devices=[]), building():
        torch.manual_seed(seed)
        for kind in kinds:
            name, given = names.get(kind), more.get(kind, {})
            if name is not None and is_folder(name):
                embedder = saved[name] = saved.get(name) or load(name, allow_code=allow_code)
                towers.append(_saved_tower(embedder, name, kind, corpus, given))
            elif kind == "text":
                towers.append(_text_tower(corpus, name or "text-small", vocabulary, seed, given, pretrained))
            else:
                towers.append(_array_tower(corpus, kind, name, seed, given, pretrained))
        if pretrained and not any(tower.pretrained for tower in towers):
            told = ", ".join(str(tower.spec["name"]) for tower in towers)
            raise ValueError(f"pretrained weights were asked for, and {told} has none: name timm:NAME, or leave it out")
        whole = next(iter(saved.values())) if len(saved) == 1 and set(names.values()) == set(saved) else None
        if whole is not None and len(whole.projections) and dim in (None, whole.dim):
            return _with_projections(towers, whole).train()
        with building(dtype_of(towers[0])):  # a folder's may be float64
            return Embedder(towers, dim or (SHARED if len(towers) > 1 else None)).train()


def is_folder(name: str) -> bool:
    """Whether the name of a model is a folder here, with what was trained before; names of ``ENCODERS`` come first."""
    return name not in ENCODERS and Path(name).expanduser().is_dir()


def _saved_tower(embedder: Embedder, name: str, kind: Kind, corpus: Corpus, options: dict[str, Any]) -> Tower:
    """The tower of a saved embedder, once the data are what it reads."""
    if options:
        raise ValueError(f"{name} is a trained encoder, whose options are settled: leave out {', '.join(options)}")
    if kind not in embedder.kinds:
        raise ValueError(f"{name} reads {', '.join(embedder.kinds)}, and {corpus.name} has inputs of the kind {kind}")
    tower = embedder.tower(kind)
    for batch in _sample(corpus, kind, 1, 0) if kind != "text" else ():
        raw = batch.columns[corpus.column(kind).name]
        assert isinstance(raw, Tensor)
        wanted, there = tuple(tower.spec["shape"]), tuple(raw.shape[1:])
        if len(raw) and (wanted[0] != there[0] or (kind == "image" and wanted != there)):
            told = (
                f"; read them at its size (size={wanted[1:]})"
                if wanted[0] == there[0]
                else ": start from another model"
            )
            raise ValueError(f"{name} reads {kind}s of shape {wanted}, and those of {corpus.name} are {there}{told}")
    if kind == "image" and isinstance(tower, ArrayTower):
        tower.ranges |= corpus.ranges
    return tower


def _with_projections(towers: list[Tower], saved: Embedder) -> Embedder:
    """Towers of a saved embedder with its own projections into the space that they share."""
    embedder = Embedder(towers, saved.dim)
    for kind in embedder.kinds:
        embedder.projections[kind] = saved.projections[kind]
    embedder.pretrained |= {f"projections.{kind}" for kind in embedder.kinds}
    return embedder


def default_tower(kind: Kind, shape: tuple[int, ...]) -> str:
    """The network for a kind of input that nobody named.

    Example:
        >>> default_tower("image", (1, 8, 8)), default_tower("image", (3, 64, 64)), default_tower("series", (1, 100))
        ('small-cnn', 'resnet-small', 'series-cnn')
    """
    if kind == "image":  # below 20 px a residual network has shrunk them to nothing before its last stage
        return "small-cnn" if max(shape[1:]) < 20 else "resnet-small"
    return {"vector": "mlp", "series": "series-cnn", "text": "text-small"}[kind]


def _by_kind(model: str) -> str | dict[str, str]:
    """``"image=…,text=…"`` by kind; a single name as it is."""
    if ":" in model.partition("=")[0] or "=" not in model:
        return model
    parts = [part.partition("=") for part in re.split(r",(?=\s*\w+\s*=)", model)]
    return {kind.strip(): name.strip() for kind, _, name in parts}


def images_of(model: str | None) -> tuple[tuple[int, int] | None, Ranges | None]:
    """How a folder of trained weights reads images: see ``image_reading``; None, None: the model names none that does."""
    named = model if model is None or is_folder(model) else _by_kind(model)
    folder = named.get("image") if isinstance(named, dict) else named
    read = image_reading(folder) if folder is not None and is_folder(folder) else None
    return (None, None) if read is None else read


def kinds_read(model: str, corpus: Corpus) -> set[str]:
    """The kinds of input of a corpus that are named a network for.

    Raises:
        ValueError: If there is none.
    """
    return set(_names(model, [kind for kind in KINDS if any(column.kind == kind for column in corpus.columns)]))


def _names(model: str | Mapping[str, str] | None, kinds: list[Kind]) -> dict[str, str]:
    """The named networks by kind."""
    if model is None:
        return {}
    if isinstance(model, str) and is_folder(model):
        return dict.fromkeys(kinds, model)
    if isinstance(model, str):
        model = _by_kind(model)
    if isinstance(model, str):
        prefix = model.partition(":")[0]
        reads = {"hf": ("text",), "timm": ("image",)}.get(prefix) if ":" in model else None
        if reads is None and model in ENCODERS:
            reads = ENCODERS[model].kinds
        if reads is None and ":" not in model:
            raise ValueError(unknown("network", model, [*ENCODERS, "timm:NAME", "hf:NAME", "module:factory"]))
        suited = [kind for kind in kinds if reads is None or kind in reads]
        if not suited:
            raise ValueError(f"{model} reads {' or '.join(reads or ())} inputs; the data have {', '.join(kinds)}")
        if reads is None and len(kinds) > 1:
            raise ValueError(f"{model} could be for {' or '.join(kinds)}: say which, as in {kinds[0]}={model}")
        return {suited[0]: model}
    for kind in model:
        if kind not in kinds:
            raise ValueError(unknown("input in the data of the kind", kind, kinds))
    return dict(model)


def _array_tower(
    corpus: Corpus, kind: Kind, name: str | None, seed: int, options: dict[str, Any], pretrained: bool
) -> Tower:
    columns = [column.name for column in corpus.columns if column.kind == kind]
    rows = [batch.columns[column] for batch in _sample(corpus, kind, ROWS, seed) for column in columns]
    held = [raw for raw in rows if isinstance(raw, Tensor) and len(raw)]
    if not held:
        raise ValueError(f"{corpus.name} has no {kind} to read in {', '.join(columns)}")
    values = torch.cat(held)
    shape = tuple(values.shape[1:])
    name = name or default_tower(kind, shape)
    outputs = options.pop("outputs", ENCODERS[name].width if name in ENCODERS else (None if "timm:" in name else 128))
    if name in ENCODERS:
        options = _with_defaults(ENCODERS[name].build, options)
    spec = {"name": name, "shape": list(shape), "outputs": outputs, "options": options}
    if kind == "image":
        values = values.float() / (255 if values.dtype == torch.uint8 else 1)
    std, mean = torch.std_mean(values.float(), [axis for axis in range(values.ndim) if axis != 1], correction=0)
    # A constant column says nothing: it becomes zero. It is told by rounding, not by its unit: fields of brains have 1e-13 T.
    std = torch.where(std > torch.finfo(std.dtype).eps * mean.abs(), std, torch.ones_like(std))
    tower = build_tower(kind, spec, mean=mean, std=std, pretrained=pretrained, allow_code=True)
    assert isinstance(tower, ArrayTower)
    tower.ranges = dict(corpus.ranges) if kind == "image" else {}
    tower.pretrained = pretrained and name not in ENCODERS
    return tower


def _text_tower(
    corpus: Corpus, name: str, vocabulary: int, seed: int, options: dict[str, Any], pretrained: bool
) -> Tower:
    if name.startswith("hf:"):
        from nearfar.encoders.pretrained import read_transformer

        return read_transformer(name, options.pop("max_length", None))
    if name not in ENCODERS:  # the message of what is wrong with it
        return build_tower("text", {"name": name}, allow_code=True)
    columns = [column.name for column in corpus.columns if column.kind == "text"]
    texts = [
        text for batch in _sample(corpus, "text", TEXT_ROWS, seed) for column in columns for text in batch.columns[column]
        if isinstance(text, str)
    ]  # fmt: skip
    if not any(text.strip() for text in texts):
        raise ValueError(f"{corpus.name} has no text to learn a tokenizer from in {', '.join(columns)}")
    tokenizer = train_tokenizer(texts, vocabulary)
    lengths = sorted(len(encoded.ids) for encoded in tokenizer.encode_batch(texts[:5_000]))
    longest = lengths[min(len(lengths) * 99 // 100, len(lengths) - 1)]
    # Room for texts somewhat longer than nearly all; attention to what is never there costs nothing.
    length = options.pop("max_length", min(max(-(-longest // 16) * 16, 32), 256))
    outputs = options.pop("outputs", None)
    options = _with_defaults(ENCODERS[name].build, {"vocabulary": tokenizer.get_vocab_size(), **options})
    spec = {"name": name, "max_length": length, "outputs": outputs, "options": options}
    return build_tower("text", spec, tokenizer=tokenizer)


def _with_defaults(build: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options of a network, defaults written out: what is saved today is then read by a version that has others."""
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for name in given:
        if name not in known:
            raise ValueError(unknown(f"option of {build.__name__}", name, known))
    return known | given


def _sample(corpus: Corpus, kind: Kind, rows: int, seed: int) -> Iterator[RawBatch]:
    """Training rows, at most so many, drawn without replacement, in their order; of a table only this kind is decoded."""
    part = corpus.train
    if isinstance(part, Stream):
        for _, batch in zip(range(0, rows, 256), part.batches(256, seed=seed)):
            yield batch
        return
    if isinstance(part, TablePart):
        part = replace(part, fields=tuple(field for field in part.fields if field.column.kind == kind))
    drawn = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:rows].sort().values
    for chunk in drawn.split(256):
        yield part.fetch(chunk.tolist())
