"""From names in a configuration to what they stand for: the method, its columns, the views."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from nearfar.data.corpus import Column, Corpus, Stream
from nearfar.data.same import the_same
from nearfar.data.views import make_view
from nearfar.methods.base import Method, Setting, View
from nearfar.methods.table import METHODS, Holds, check_options, choose_method
from nearfar.names import given, refuse_unused
from nearfar.training.config import TrainConfig
from nearfar.training.pace import check_start, start_of
from nearfar.training.watched import Watched


def what_it_holds(corpus: Corpus) -> Holds:
    """What a method may ask of the data."""
    kinds = tuple(column.kind for column in corpus.columns if column.role != "negative")
    labelled = bool(corpus.class_names) or getattr(corpus.train, "labels", None) is not None
    roles = {column.role for column in corpus.columns}
    return Holds(kinds, labelled, roles >= {"positive", "negative"}, corpus.similar is not None)


def settle_method(config: TrainConfig, corpus: Corpus) -> str:
    """The method that was asked for or that fits the data, once there is something to tell apart.

    Raises:
        ValueError: If the data lack what the method needs, or there are no two rows or classes that differ.
    """
    method = choose_method(config.method, what_it_holds(corpus))
    if isinstance(corpus.train, Stream):
        return method
    rows, used = len(corpus.train), used_columns(method, corpus)
    if rows < 2:
        raise ValueError(f"{corpus.name} has {rows} rows to train on: wanted two at least")
    judged = corpus.similar is not None and len(used) > 1  # then one text may be compared with many
    for column in () if judged else used:
        if column.role != "negative" and the_same(corpus.train, column):
            raise ValueError(
                f"column {column.name!r} of {corpus.name} holds the same in all {rows:,} rows to train on: there is nothing to "
                "tell apart; two different ones are the least"
            )
    labels = corpus.train.labels
    if METHODS[method].needs.startswith("labels") and len(used) == 1 and labels is not None:
        classes, counts = labels[labels >= 0].unique(return_counts=True)
        column = f"column {config.label!r}" if config.label else "the labels"
        without = choose_method(None, replace(what_it_holds(corpus), labels=False))
        if not bool((counts > 1).any()):
            raise ValueError(
                f"method {method!r} puts rows of one class together, and by {column} each of the {len(classes):,} classes has "
                f"one row of {rows:,} to train on: {_more_of_a_class(config, corpus, labels)}, or train without classes "
                f"(--method {without})"
            )
        if len(classes) < 2:
            raise ValueError(
                f"method {method!r} tells classes apart, and by {column} all rows to train on are of one: name another column "
                f"with label= (--label), or train without classes (--method {without})"
            )
    return method


def _more_of_a_class(config: TrainConfig, corpus: Corpus, trained: Int64[Tensor, "n"]) -> str:
    """What would give a class two rows to train on, where each has one."""
    tested = getattr(corpus.test, "labels", None)
    known = trained if tested is None else torch.cat([trained, tested])
    sizes = known[known >= 0].unique(return_counts=True)[1]
    fewer = "hold out fewer rows (--test-fraction)" if int(sizes.max()) > 2 else ""
    if corpus.held_out == "rows" and (int((sizes > 1).sum()) > 2 or fewer):
        whole = "hold out whole classes (--hold-out classes)" if int((sizes > 1).sum()) > 2 else ""
        return ", or ".join(filter(None, (whole, fewer)))
    if config.label:
        return "name a column that rows share with label= (--label)"
    three = ", three where one is held out" if corpus.held_out == "rows" else ""
    return f"add rows until a class has two to train on{three}"


def resolve(
    config: TrainConfig,
    corpus: Corpus,
    method: str,
    embedder: Any,
    watched: Watched | None,
    accelerated: bool,
    world: int = 1,
) -> TrainConfig:
    """The configuration with every default that depends on the data and on what the encoder starts from.

    Args:
        config: As asked for.
        corpus: The data.
        method: See ``settle_method``.
        embedder: What is trained.
        watched: What is looked at while training.
        accelerated: Whether the device is no CPU.
        world: Number of ranks.

    Raises:
        ValueError: If an option does not suit the data or the encoder.
    """
    start = start_of(embedder)
    check_start(config, start)
    rows = None if isinstance(corpus.train, Stream) else len(corpus.train)
    labels = getattr(corpus.train, "labels", None)  # a stream has none that could be chosen by
    trained = 0 if labels is None else len(labels[labels >= 0].unique())  # classes may be held out as a whole
    config = replace(config, hold_out=corpus.held_out or config.hold_out)
    config = config.resolved(
        rows=rows, method=method, classes=trained, accelerated=accelerated, world=world, start=start
    )
    known = () if watched is None else watched.metrics
    if config.metric is not None and config.metric not in known:
        raise ValueError(f"metric is {config.metric!r}, and looks at these data give {', '.join(known) or 'none'}")
    if config.patience is not None and not known:
        raise ValueError("patience needs a metric, and data without labels or a second column give none: leave it out")
    return config


def class_ids(corpus: Corpus) -> Int64[Tensor, "classes"]:
    """The class ids that there are, ascending: all that have names, or those of labels in memory, which need none."""
    labels = getattr(corpus.train, "labels", None)
    if corpus.class_names or labels is None:
        return torch.arange(len(corpus.class_names))
    return labels[labels >= 0].unique().cpu()


def used_columns(method: str, corpus: Corpus) -> tuple[Column, ...]:
    """Those that the method reads: only they need a tower."""
    needs = METHODS[method].needs
    holds = what_it_holds(corpus)
    sided = {"pairs": True, "labels or triplets": holds.negatives, "labels or judged pairs": holds.judged}
    if sided.get(needs, False):
        negatives = method in ("pairs", "triplet")
        return tuple(column for column in corpus.columns if column.role != "negative" or negatives)
    return corpus.columns[:1]


def check_unused(config: TrainConfig, method: str, corpus: Corpus) -> None:
    """Refuses what was asked for and the method would pass over: options of other methods, columns that it does not read.

    Raises:
        ValueError: If there is such an option; the message says the remedy.
    """
    check_options(method, config)
    roles = {column.role for column in used_columns(method, corpus)}
    unread = {name: value for name, value in given(config, "positive", "negative").items() if name not in roles}
    refuse_unused(unread, f"method {method!r} does not read it", "leave it out, or pass another method=")
    if METHODS[method].needs == "labels or triplets" and "negative" in roles:
        refuse_unused(given(config, "views"), "triplets go in as they are")


def make_method(
    config: TrainConfig, corpus: Corpus, columns: tuple[Column, ...], embedder: Any, view: View | None, gather: bool
) -> Method:
    """The method around an embedder."""
    assert config.method is not None
    module, _, name = METHODS[config.method].home.partition(":")
    ids = class_ids(corpus)
    setting = Setting(config.method, columns, config, len(ids), view, gather, ids)
    return getattr(importlib.import_module(module), name)(embedder, embedder.dim, setting)


def make_view_of(config: TrainConfig, corpus: Corpus, embedder: Any) -> nn.Module | None:
    """What draws a view of the anchor; None: it goes in as it is.

    Raises:
        ValueError: If the method needs views, and the recipe draws none; or there is no such recipe for the kind.
    """
    assert config.method is not None
    kind, needs = corpus.columns[0].kind, METHODS[config.method].needs
    recipe = config.views or _usual_view(config.method, kind)
    if recipe in ("none", "dropout"):  # dropout is the encoder's own
        if needs == "views":
            raise ValueError(
                f"method {config.method!r} contrasts views, and none are drawn: pass views=, such as simclr"
            )
        return None
    tower = embedder.towers[kind]
    statistics = {name: getattr(tower, name, None) for name in ("mean", "std")}
    return make_view(kind, recipe, corpus.size, corpus.channels, **statistics)


def _usual_view(method: str, kind: str) -> str:
    needs = METHODS[method].needs
    if needs == "pairs":
        return "none"
    if kind == "image":
        return (
            "simclr" if needs == "views" else "light"
        )  # where labels say what belongs together, strong views only slow it
    if kind == "vector":
        return "mask" if needs == "views" else "none"
    return {"series": "crop", "text": "dropout"}[kind]
