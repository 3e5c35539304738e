"""Training from end to end: one call, one run folder."""

from __future__ import annotations

import json
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nearfar.data.corpus import Corpus, Stream
from nearfar.methods.table import METHODS
from nearfar.training.assemble import resolve, used_columns
from nearfar.training.checkpoint import last_checkpoint, prune_checkpoints, read_checkpoint, write_checkpoint
from nearfar.training.config import TrainConfig
from nearfar.training.devices import make_fabric, make_loggers
from nearfar.training.environment import describe_machine
from nearfar.training.events import EventLog
from nearfar.training.looks import Look, collapse_warnings, look, watched_rows
from nearfar.training.loop import Diverged, Pause
from nearfar.training.progress import Progress
from nearfar.training.run import Run
from nearfar.training.trainer import Trainer


class Interrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C (or SIGTERM) after a checkpoint was written. ``run`` can be resumed."""

    def __init__(self, run: Run) -> None:
        super().__init__(f"interrupted: go on with resume={str(run.path)!r} (nearfar train --resume {run.path})")
        self.run = run


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
        config: A configuration, or a YAML file of one; by default the fields' own defaults.
        corpus: Data in memory, in place of ``data=``. To resume, pass the same again.
        embedder: An ``Embedder`` of your own, in place of ``model=``; it is trained in place. To resume, pass one of the
            same make.
        show: Progress, on the terminal.
        **options: Fields of ``TrainConfig``, over those of ``config``: ``data=``, ``method=``, ``epochs=``, ``lr=``, …

    Returns:
        The run: ``.path``, ``.metrics`` of the last look, ``.embedder()``.

    Raises:
        ValueError: If options, data or devices cannot be used; the message says the remedy.
        TypeError: If there is no such option; the message suggests the nearest.
        Diverged: If the loss is no longer finite.
        Interrupted: If stopped by Ctrl-C, a ``KeyboardInterrupt``: a checkpoint has been written.

    Example:
        >>> import nearfar as nf, tempfile
        >>> run = nf.train(data="digits", method="supcon", steps=4, batch_size=32, out=tempfile.mkdtemp(), show=False)
        >>> sorted(run.metrics), run.embedder().dim
        (['knn', 'recall@1'], 64)
    """
    asked = TrainConfig.of(config, **options)
    run = None
    if asked.resume is not None:
        run = Run.open(asked.resume)
        asked = _resumed(asked, run)
    fabric = make_fabric(asked)
    if corpus is None:
        from nearfar.data.open import open_corpus

        corpus = open_corpus(asked)
    elif run is None:
        asked = replace(asked, data=corpus.name)
    facts = _data_facts(corpus)
    if run is not None:
        _check_same(run, "data", facts)
    settled = resolve(asked, corpus, fabric.device.type != "cpu")
    torch.manual_seed(settled.seed)
    embedder = _embedder(settled, corpus) if embedder is None else embedder
    trainer = Trainer(settled, corpus, embedder, fabric)
    model = _model_facts(trainer)
    if run is not None:
        _check_same(run, "model", model)
        _check_same(run, "ranks", fabric.world_size)
    else:
        path = None
        if fabric.is_global_zero:
            new = Run.create(asked.out, corpus.name)
            machine = describe_machine(fabric.device, settled.threads)
            new.begin(settled, {"machine": machine, "ranks": fabric.world_size, "data": facts, "model": model})
            path = str(new.path)
        run = Run(fabric.broadcast(path))
    with _Session(run, trainer, asked.resume is not None, show) as session:
        session.go()
    fabric.barrier()  # what the first rank writes is there when any returns
    return run


@dataclass
class _Best:
    """The best look so far, by the metric that is watched."""

    step: int = 0
    value: float | None = None
    stale: int = 0  # looks since


class _Session:
    """A run at work in this process: what happens in the pauses."""

    def __init__(self, run: Run, trainer: Trainer, resume: bool, show: bool) -> None:
        self.run, self.trainer, self.config, self.fabric = run, trainer, trainer.config, trainer.fabric
        self.first, self.seconds, self.best = 0, 0.0, _Best()
        last = last_checkpoint(run.checkpoints) if resume else None
        if last is not None:
            parts, facts = read_checkpoint(last)
            trainer.load(parts, facts)
            self.first, self.seconds, self.best = facts["step"], facts["seconds"], _Best(**facts["best"])
        self.main = self.fabric.is_global_zero
        assert self.config.steps is not None
        self.progress = Progress(show and self.main, self.config.steps, self.first, self.config.batch_size)
        self.log: EventLog | None = None
        self.logger = None
        if self.main:
            self.log = EventLog(run.path / "events.jsonl", until=self.first)
            self.logger = make_loggers(self.config.logger, str(run.path))
            if run.checkpoints.exists():
                prune_checkpoints(run.checkpoints, {self.first, self.best.step})
        self.watched = watched_rows(trainer.corpus, self.config.eval_rows, self.config.seed)
        self.stopped = False
        self.saved_at = time.monotonic()

    def __enter__(self) -> _Session:
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._stop)
        self.progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.__exit__(*error)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.log is not None:
            self.log.close()

    def _stop(self, number: int, frame: Any) -> None:
        if self.stopped:  # asked twice: at once, without a checkpoint
            raise KeyboardInterrupt
        self.stopped = True

    def _due(self, step: int) -> bool:
        """Whether there is a pause after a step."""
        config = self.config
        assert config.log_every is not None
        assert config.eval_every is not None
        assert config.checkpoint_every is not None
        alone = self.fabric.world_size == 1
        return (
            (alone and self.stopped)
            or step % config.log_every == 0
            or step % config.eval_every == 0
            or step % config.checkpoint_every == 0
        )

    def go(self) -> None:
        """From where it stands to the end."""
        config = self.config
        assert config.steps is not None
        if self.first >= config.steps:
            return
        if self.first == 0 and self.main:
            self.run.save_model(self.trainer.kept)  # so that a run can be loaded from its first moment
        try:
            for pause in self.trainer.fit(self.first, self.seconds, self._due):
                if self._pause(pause, config.steps):
                    break
        except Diverged as error:
            self._write("end", step=error.step, seconds=error.seconds, reason=str(error))
            raise

    def _pause(self, pause: Pause, steps: int) -> bool:
        """Writes down, looks, saves; True: enough."""
        config = self.config
        assert config.eval_every is not None
        assert config.checkpoint_every is not None
        self._step_event(pause)
        stop, overdue = self._agreed(self.stopped, time.monotonic() - self.saved_at > config.checkpoint_seconds)
        last, better = pause.step == steps, False
        if last or pause.step % config.eval_every == 0:
            better = self._look(pause)
            last = last or (config.patience is not None and self.best.stale >= config.patience)
        if last:
            reason = "all steps were made" if pause.step == steps else f"no better look for {config.patience} looks"
            self._save(pause)
            if self.main and self.best.value is None:
                self.run.save_model(self.trainer.kept)
            self._write("end", step=pause.step, seconds=pause.seconds, reason=reason, best=self.best.step or pause.step)
        elif better or stop or overdue or pause.step % config.checkpoint_every == 0:
            self._save(pause)
        if stop and not last:
            raise Interrupted(self.run)
        return last

    def _step_event(self, pause: Pause) -> None:
        trainer, config = self.trainer, self.config
        train = trainer.corpus.train
        rows = None if isinstance(train, Stream) else len(train)
        terms = {name: float(term) for name, term in trainer.terms.items()}
        seen = pause.step * config.batch_size
        self._write(
            "step", step=pause.step, epoch=seen / rows if rows else None, seconds=pause.seconds, rows=seen,
            loss=pause.loss, terms=terms, rate=trainer.rate, temperature=trainer.method.temperature,
        )  # fmt: skip
        self.progress.step(pause.step, pause.loss)
        if self.logger is not None:
            self.logger.log_metrics({"loss": pause.loss, "rate": trainer.rate} | terms, step=pause.step)

    def _look(self, pause: Pause) -> bool:
        """Looks at held-out rows; True: better than ever."""
        if self.watched is None:
            return False
        trainer = self.trainer
        part, rows = self.watched
        setting = trainer.method.setting
        seen: Look = look(trainer.kept, setting.columns, part, rows, self.fabric.device)
        seen = self.fabric.broadcast(seen) if self.fabric.world_size > 1 else seen
        self._write("look", step=pause.step, seconds=pause.seconds, metrics=seen.metrics, geometry=seen.geometry)
        figures = " · ".join(f"{name} {value:.3f}" for name, value in (seen.metrics | seen.geometry).items())
        self.progress.say(f"step {pause.step} · loss {pause.loss:.3f} · {figures}")
        if self.logger is not None:
            self.logger.log_metrics(seen.metrics | seen.geometry, step=pause.step)
        chance = trainer.method.chance(self.config.batch_size)
        dim = trainer.method.embedder.dim
        assert isinstance(dim, int)
        classes = setting.classes if METHODS[setting.name].needs == "labels" else None
        for message in collapse_warnings(seen.geometry, pause.loss, chance, dim, classes):
            self._write("warning", step=pause.step, message=message)
            self.progress.say(f"warning: {message}")
        name = self.config.metric or next(iter(seen.metrics), None)
        if name is None or name not in seen.metrics:
            return False
        value = seen.metrics[name]
        if self.best.value is not None and value <= self.best.value:
            self.best.stale += 1
            return False
        self.best = _Best(pause.step, value)
        if self.main:
            self.run.save_model(trainer.kept)
        return True

    def _save(self, pause: Pause) -> None:
        parts, rest = self.trainer.state()
        if self.main:
            facts = rest | {"seconds": pause.seconds, "best": vars(self.best)}
            write_checkpoint(self.run.checkpoints, pause.step, parts, facts)
            prune_checkpoints(self.run.checkpoints, {pause.step, self.best.step})
        self.saved_at = time.monotonic()

    def _agreed(self, *flags: bool) -> list[bool]:
        """What any rank says, so that all do the same."""
        if self.fabric.world_size == 1:
            return list(flags)
        said = torch.tensor(flags, dtype=torch.float32, device=self.fabric.device)
        return [bool(flag) for flag in self.fabric.all_reduce(said, reduce_op="sum").tolist()]

    def _write(self, event: str, **facts: Any) -> None:
        if self.log is not None:
            self.log.write(event, **facts)


def _embedder(config: TrainConfig, corpus: Corpus) -> Any:
    from nearfar.encoders.make import make_embedder

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


FREE = ("resume", "out", "config", "logger", "checkpoint_every", "checkpoint_seconds", "threads")
"""Options that may change when a run is resumed: none of its numbers depends on them."""


def _resumed(asked: TrainConfig, run: Run) -> TrainConfig:
    """The configuration that the run was begun with; what is asked for now may not differ from it."""
    then, default = run.config, TrainConfig()
    changed = {}
    for name, now in vars(asked).items():
        if now in (getattr(default, name), getattr(then, name)):
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
