"""What a run says in words: what it is about to do, what was decided, and what came of it."""

from __future__ import annotations

from typing import Any

from nearfar.data.corpus import Corpus, Stream, similar_of
from nearfar.data.similar import LIKENESS, is_binary
from nearfar.training.config import TrainConfig, usual_rate
from nearfar.training.trainer import Trainer
from nearfar.training.watched import Watched


def opening(trainer: Trainer, watched: Watched | None) -> list[str]:
    """What was understood of the data, and what will be done: the lines that a run begins with."""
    corpus, config, setting = trainer.corpus, trainer.config, trainer.method.setting
    rows = "rows in a stream" if isinstance(corpus.train, Stream) else f"{len(corpus.train):,} rows"
    held = 0 if corpus.test is None else len(corpus.test)
    known = [f"{len(corpus.class_names):,} classes" if corpus.class_names else "no classes"]
    if corpus.similar is not None:
        known = [f"by {corpus.similar}{_judged(corpus)}", *(known if corpus.class_names else [])]
    inputs = ", ".join(
        column.name if column.name == column.kind else f"{column.name} ({column.kind})" for column in setting.columns
    )
    towers: Any = trainer.method.embedder.towers
    networks = ", ".join(str(tower.spec["name"]) for tower in towers.values())
    lines = [
        f"{corpus.name}: {rows} to train on, {held:,} held out · {inputs} · {', '.join(known)}",
        f"method {config.method} · encoder {networks} · {config.steps:,} steps of {config.batch_size} rows",
    ]
    if trainer.start != "scratch":
        lines.append(_from_weights(config, trainer.freeze.steps))
    if watched is not None and watched.rows and watched.looked:
        lines.append(f"looks at {len(watched.rows):,} rows: knn and recall@1 {watched.looked}")
    return lines


def decided(corpus: Corpus, watched: Watched | None) -> list[str]:
    """What was decided of the data and of the looks at them, and why."""
    return [*corpus.notes, *(() if watched is None else watched.notes)]


def _judged(corpus: Corpus) -> str:
    """How many pairs of the training rows are similar; of a stream nobody knows."""
    similar = similar_of(corpus.train)
    if similar is None:
        return " similar or not"
    share = f"{int((similar >= LIKENESS).sum()):,} similar"
    return f" {share}" if is_binary(similar) else f" graded, {share} ({LIKENESS:g} of the scale or more)"


def _from_weights(config: TrainConfig, frozen: int) -> str:
    """How weights that were trained before are treated."""
    assert config.lr is not None
    factor = 1.0 if config.head_factor is None else config.head_factor
    new = f"what is new learns at {config.lr * factor:g}"
    if frozen == config.steps:
        return f"its trained weights stay as they are, {new}"
    layers = "" if config.layer_decay is None else f", less by {config.layer_decay:g} a layer downwards"
    after = f" after {frozen:,} steps" if frozen else ""
    return f"starts from trained weights, which learn at {config.lr:g}{layers}{after}; {new}"


def below_its_start(trainer: Trainer, name: str, before: float, after: float, step: int) -> str:
    """That training made it worse, and what to do about it.

    Args:
        trainer: Of the run.
        name: The metric that was watched.
        before: Its value before the first step.
        after: Its value in the weights that are kept.
        step: Theirs.
    """
    config = trainer.config
    assert config.lr is not None
    usual = usual_rate(config.optimizer, config.batch_size, trainer.start)
    lower = f"lower the learning rate (--lr {usual if config.lr > usual else config.lr / 5:.1g}, it was {config.lr:g})"
    if trainer.start == "scratch":
        remedy = f"{lower}, train longer, or look at what the classes or pairs say"
    else:
        kept = "" if trainer.freeze.steps else ", or keep its weights as they are (--freeze --dim 256)"
        remedy = f"take the model as it was, {lower}, make fewer steps{kept}"
    return (
        f"this run ends below its start: {name} was {before:.4f} before training and is {after:.4f} in the weights that are "
        f"kept, the best that training gave (step {step:,}); {remedy}"
    )
