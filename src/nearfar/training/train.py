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
from nearfar.encoders.make import make_embedder
from nearfar.encoders.precision import building, dtype_of
from nearfar.names import given, passing_over, refuse_unused
from nearfar.training.assemble import check_unused, resolve, used_columns
from nearfar.training.config import TrainConfig
from nearfar.training.devices import make_fabric
from nearfar.training.environment import describe_machine
from nearfar.training.loggers import check_logger
from nearfar.training.loop import Diverged
from nearfar.training.options import read_yaml
from nearfar.training.run import Run
from nearfar.training.session import Interrupted, Session
from nearfar.training.trainer import Trainer

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
        asked = _resumed(asked, run, _said(config) | options.keys())
    check_logger(asked.logger)
    fabric = make_fabric(asked)
    if corpus is None:
        if run is not None:
            run.check_data(asked.data)
        corpus = open_corpus(asked) if run is None else passing_over(open_corpus, asked)
    elif run is None:
        refuse_unused(given(asked, *(field.name for field in fields(DataConfig))), "corpus= has the data")
        asked = replace(asked, data=corpus.name)
    facts = _data_facts(corpus)
    if run is not None:
        _check_same(run, "data", facts)
    settled = resolve(asked, corpus, fabric.device.type != "cpu", fabric.world_size)
    if run is None:
        assert settled.method is not None
        check_unused(asked, settled.method, corpus)
        if embedder is not None:
            refuse_unused(given(asked, "model", "dim"), "embedder= is the encoder")
    torch.manual_seed(settled.seed)
    embedder = _embedder(settled, corpus) if embedder is None else embedder
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
            machine = describe_machine(fabric.device, settled.threads)
            notes = list(corpus.notes)
            new.begin(
                settled,
                {"machine": machine, "ranks": fabric.world_size, "data": facts, "model": model, "notes": notes},
            )
            path = str(new.path)
        run = Run(fabric.broadcast(path))
    with Session(run, trainer, asked.resume is not None, show) as session:
        session.go()
    fabric.barrier()  # what the first rank writes is there when any returns
    return run


def _embedder(config: TrainConfig, corpus: Corpus) -> Any:
    assert config.method is not None
    columns = used_columns(config.method, corpus)
    return make_embedder(
        replace(corpus, columns=columns), config.model, config.dim, config.pretrained, seed=config.seed
    )


def _data_facts(corpus: Corpus) -> dict[str, Any]:
    return {
        "name": corpus.name,
        "columns": [[column.name, column.kind, column.role] for column in corpus.columns],
        "train": None if isinstance(corpus.train, Stream) else len(corpus.train),
        "test": 0 if corpus.test is None else len(corpus.test),
        "classes": list(corpus.class_names),
        "left_out": list(corpus.bad),
    }


def _model_facts(trainer: Trainer) -> dict[str, Any]:
    method, embedder = trainer.method, trainer.method.embedder
    towers: Any = embedder.towers
    return {
        "towers": {kind: tower.spec for kind, tower in towers.items()},
        "dim": embedder.dim,
        "parameters": sum(p.numel() for p in embedder.parameters()),
        "thrown_away": sum(p.numel() for p in method.network.head.parameters()),
    }


FREE = ("resume", "out", "config", "logger", "checkpoint_every", "checkpoint_seconds", "threads", "strategy")
"""Options that may change when a run is resumed: none of its numbers depends on them, but for strategy's rounding."""


def _said(config: TrainConfig | str | Path | None) -> set[str]:
    """The options that a configuration or a file names; of a configuration, those that are no default."""
    if isinstance(config, TrainConfig):
        default = TrainConfig()
        return {name for name, value in vars(config).items() if value != getattr(default, name)}
    return set() if config is None else set(read_yaml(config))


def _resumed(asked: TrainConfig, run: Run, said: set[str]) -> TrainConfig:
    """The configuration that the run was begun with; what is asked for now may not differ from it."""
    then = run.config
    changed = {}
    for name, now in vars(asked).items():
        if name not in said or now == getattr(then, name):
            continue
        if name not in FREE:
            raise ValueError(
                f"{name} was {getattr(then, name)} when {run.path} was begun and is {now} now: to go on leave it out, or "
                "start a new run"
            )
        changed[name] = now
    return replace(then, **changed)


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
