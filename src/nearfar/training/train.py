"""Training from end to end: one call, one run folder."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from nearfar.data.config import DataConfig
from nearfar.data.corpus import Corpus, Stream
from nearfar.data.open import open_corpus
from nearfar.data.place import contents_of, whole_path
from nearfar.encoders.make import images_of, make_embedder
from nearfar.encoders.precision import building, dtype_of
from nearfar.names import given, passing_over, refuse_unused
from nearfar.training.assemble import check_unused, resolve, settle_method, used_columns
from nearfar.training.config import TrainConfig
from nearfar.training.devices import is_first, make_fabric
from nearfar.training.environment import describe_machine
from nearfar.training.loggers import check_logger
from nearfar.training.loop import Diverged
from nearfar.training.resume import asked_besides, resumed, said
from nearfar.training.run import Run
from nearfar.training.session import Interrupted, Session
from nearfar.training.told import decided
from nearfar.training.trainer import Trainer
from nearfar.training.watched import watched_rows

__all__ = ["Diverged", "Interrupted", "train"]


def train(
    config: TrainConfig | str | Path | None = None,
    *,
    corpus: Corpus | None = None,
    embedder: Any = None,
    show: bool = True,
    **options: Any,
) -> Run:
    """Trains an encoder, and writes everything to a run folder.

    Args:
        config: A configuration, or a YAML file of one; by default the fields' own defaults. To resume, a configuration's
            fields at their default say nothing; an option of the file or of the call does, whatever it is.
        corpus: Data in memory, in place of ``data=``. To resume, pass the same again.
        embedder: An ``Embedder`` of your own, in place of ``model=``; it is trained in place. To resume, pass one of the
            same make.
        show: Progress, on the terminal.
        **options: Fields of ``TrainConfig``, over those of ``config``: ``data=``, ``method=``, ``epochs=``, ``lr=``, …

    Returns:
        The run: ``.path``, ``.metrics`` of the last look, ``.embedder()``.

    Raises:
        ImportError: If a package is missing; the message says how to install it.
        ValueError: If options, data or devices cannot be used; the message says the remedy.
        TypeError: If there is no such option; the message suggests the nearest.
        Diverged: If the loss is no longer finite.
        Interrupted: If stopped by Ctrl-C, a ``KeyboardInterrupt``: a checkpoint has been written.

    Example:
        >>> import nearfar as nf, tempfile
        >>> run = nf.train(data="digits", method="supcon", steps=4, batch_size=32, out=tempfile.mkdtemp(), show=False)
        >>> sorted(run.metrics), run.embedder().dim
        (['knn', 'recall@1'], 128)
    """
    asked = TrainConfig.of(config, **options)
    run = None
    if asked.resume is not None:
        run = Run.open(asked.resume)
        asked = resumed(asked, run, said(config) | options.keys())
    check_logger(asked.logger)
    fabric = make_fabric(asked)
    source: dict[str, Any] = {}
    if corpus is None:
        if run is not None:
            asked = replace(asked, data=run.find_data(asked.data) if asked.data == run.config.data else asked.data)
            _check_contents(run, asked.data)
        else:
            source = {"path": whole_path(asked.data), "contents": contents_of(asked.data)}
        asked, corpus = _opened(asked, new=run is None)
    elif run is None:
        refuse_unused(given(asked, *(field.name for field in fields(DataConfig))), "corpus= has the data")
        asked = replace(asked, data=corpus.name)
    facts = _data_facts(corpus)
    if run is not None:
        renamed = {"name": run.environment["data"]["name"]} if run.source.get("contents") else {}
        _check_same(run, "data", facts | renamed)
    method = settle_method(asked, corpus)
    if run is None:
        check_unused(asked, method, corpus)
    columns = used_columns(method, corpus)
    if embedder is None:
        used = replace(corpus, columns=columns)
        code = asked.allow_code
        embedder = make_embedder(used, asked.model, asked.dim, asked.pretrained, seed=asked.seed, allow_code=code)
    elif run is None:
        refuse_unused(given(asked, "model", "dim", "allow_code"), "embedder= is the encoder")
        if asked.pretrained:
            embedder.pretrained = frozenset(f"towers.{kind}" for kind in embedder.kinds)
    if run is not None and "pretrained" in run.environment:
        embedder.pretrained = frozenset(run.environment["pretrained"])  # what it was, whoever made this one
    watched = watched_rows(corpus, columns, asked.eval_rows, asked.seed)
    settled = resolve(asked, corpus, method, embedder, watched, fabric.device.type != "cpu", fabric.world_size)
    torch.manual_seed(settled.seed)
    with building(dtype_of(embedder)):  # what is trained beside it
        trainer = Trainer(settled, corpus, embedder, fabric)
    model = _model_facts(trainer)
    if run is not None:
        _check_same(run, "model", model)
        _check_same(run, "ranks", fabric.world_size)
    else:
        path = None
        if fabric.is_global_zero:
            new = Run.create(asked.out, corpus.name, asked.data)
            new.begin(settled, {
                "machine": describe_machine(fabric.device, settled.threads), "ranks": fabric.world_size, "data": facts,
                "source": source, "model": model, "pretrained": sorted(embedder.pretrained), "asked": asked_besides(asked, settled),
                "decided": decided(corpus, watched), "looked": None if watched is None else watched.looked,
            })  # fmt: skip
            path = str(new.path)
        run = Run(fabric.broadcast(path))
    with Session(run, trainer, watched, asked.resume is not None, show) as session:
        session.go()
    fabric.barrier()  # what the first rank writes is there when any returns
    return run


def _opened(asked: TrainConfig, new: bool) -> tuple[TrainConfig, Corpus]:
    """The data, with images read as the model to start from reads them; and the options, with their size.

    Options that say nothing of the data are refused, but for those that a run to go on with was begun with.
    """
    told = given(asked, *(field.name for field in fields(DataConfig))) if new else ()
    size, ranges = images_of(asked.model)
    asked = replace(asked, size=size) if asked.size is None else asked
    return asked, passing_over(lambda options: open_corpus(options, ranges), asked, told)


def _data_facts(corpus: Corpus) -> dict[str, Any]:
    return {
        "name": corpus.name,
        "columns": [[column.name, column.kind, column.role] for column in corpus.columns],
        "train": None if isinstance(corpus.train, Stream) else len(corpus.train),
        "test": 0 if corpus.test is None else len(corpus.test),
        "classes": list(corpus.class_names),
        "left_out": list(corpus.bad),
    }


def _check_contents(run: Run, data: str) -> None:
    """Refuses to go on with data that hold something else than when the run was begun; notes where they are."""
    then = run.source.get("contents")
    if then is not None and contents_of(data) not in (None, then):
        raise ValueError(
            f"{data} holds something else than when {run.path} was begun: put it back as it was, or start a new run, from new "
            f"weights or from these (--model {run.path})"
        )
    if is_first():
        run.moved(data)


def _model_facts(trainer: Trainer) -> dict[str, Any]:
    method, embedder = trainer.method, trainer.method.embedder
    towers: Any = embedder.towers
    return {
        "towers": {kind: tower.spec for kind, tower in towers.items()},
        "dim": embedder.dim,
        "parameters": sum(p.numel() for p in embedder.parameters()),
        "thrown_away": sum(p.numel() for p in method.network.head.parameters()),
    }


def _check_same(run: Run, what: str, now: Any) -> None:
    then = run.environment[what]
    now = json.loads(json.dumps(now))  # lists for tuples
    if then == now:
        return
    old, new = then, now
    if isinstance(then, dict):
        name = next(name for name in then if then[name] != now.get(name))
        old, new = f"{name} {then[name]}", f"{name} {now.get(name)}"
    raise ValueError(f"{run.path} was begun with other {what} ({old}) than now ({new}): pass the same, or start anew")
