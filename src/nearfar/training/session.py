"""A run at work: trains, and in the pauses writes down, looks at held-out rows, and saves."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch

from nearfar.data.bad import left_out
from nearfar.data.corpus import Stream
from nearfar.methods.table import METHODS
from nearfar.shards import all_whole
from nearfar.training.checkpoint import last_checkpoint, prune_checkpoints, read_checkpoint, write_checkpoint
from nearfar.training.events import LEFT_OUT, EventLog
from nearfar.training.loggers import Logger, figures, make_logger
from nearfar.training.looks import Look, collapse_warnings, look
from nearfar.training.loop import Diverged, Pause
from nearfar.training.progress import Progress
from nearfar.training.run import Run
from nearfar.training.told import below_its_start, decided, opening
from nearfar.training.trainer import Trainer
from nearfar.training.watched import Watched

AGAIN = 1.0
"""Seconds from which a second Ctrl-C is a second one, and not the first by another way."""
RISEN = 0.01
"""By so much above its value before training, the leading metric says that something was learned."""


class Interrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C (or SIGTERM) after a checkpoint was written. ``run`` can be resumed."""

    def __init__(self, run: Run) -> None:
        super().__init__(f"interrupted: go on with resume={str(run.path)!r} (nearfar train --resume {run.path})")
        self.run = run


@dataclass
class Best:
    """The best look after a step so far, by the metric that is watched; of equals the last."""

    step: int = 0
    value: float | None = None
    stale: int = 0  # looks since that were no better


class Session:
    """A run at work in this process: what happens in the pauses.

    Args:
        run: Its folder.
        trainer: What trains.
        watched: What is looked at; None: rows are streamed, and none are held out.
        resume: Whether to go on from the last checkpoint.
        show: Whether to say how it goes.
    """

    def __init__(self, run: Run, trainer: Trainer, watched: Watched | None, resume: bool, show: bool) -> None:
        self.run, self.trainer, self.config, self.fabric = run, trainer, trainer.config, trainer.fabric
        self.first, self.seconds, self.best = 0, 0.0, Best()
        self.reason: str | None = None  # why the run is over
        last = last_checkpoint(run.checkpoints) if resume else None
        if last is not None:
            parts, facts = read_checkpoint(last)
            trainer.load(parts, facts)
            self.first, self.seconds, self.best = facts["step"], facts["seconds"], Best(**facts["best"])
            self.reason = facts["reason"]
        self.main = self.fabric.is_global_zero
        assert self.config.steps is not None
        self.progress = Progress(show and self.main, self.config.steps, self.first, self.config.batch_size)
        self.log: EventLog | None = None
        self.logger: Logger | None = None
        if self.main:
            since = self.first or -1  # without a checkpoint all happens again, the look before the first step too
            self.log = EventLog(run.path / "events.jsonl", until=since)
            self.logger = make_logger(self.config.logger, run.path, self.config.saved(), since)
            if self.logger is not None and self.logger.fresh:
                for event in run.events():
                    self._log(event)
            if run.checkpoints.exists():
                prune_checkpoints(run.checkpoints, {self.first, self.best.step})
        self.watched = watched
        self.stopped, self.stopped_at = False, 0.0
        self.before = (
            next((event["metrics"] for event in run.events("look") if event["step"] == 0), {}) if resume else {}
        )
        self.told = 0  # of the rows that were left out
        self.saved_at = time.monotonic()

    def __enter__(self) -> Session:
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
        if self.logger is not None:
            stopped = "interrupted" if isinstance(error[1], KeyboardInterrupt) else "failed"
            self.logger.finalize("finished" if error[0] is None else stopped)

    def _stop(self, number: int, frame: Any) -> None:
        """Soon, with a checkpoint; at once if Ctrl-C is pressed again. srun and torchrun pass on what their ranks have had."""
        now = time.monotonic()
        if self.stopped and number == signal.SIGINT and now - self.stopped_at > AGAIN:
            raise KeyboardInterrupt
        self.stopped, self.stopped_at = True, now

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
        if self.reason is not None:  # killed between its last checkpoint and its last word, or not at all
            self.progress.say(f"{self.run.path} is finished, at step {self.first}: nothing is left to train")
            return self._finish(self.first, self.seconds)
        for line in opening(self.trainer, self.watched):
            self.progress.say(line)
        for line in decided(self.trainer.corpus, self.watched):
            self.progress.say(f"note: {line}")
        for line in left_out(self.trainer.corpus.bad):
            self.progress.say(line)
        if self.first == 0:
            for message in () if self.watched is None else self.watched.warnings:
                self._warn(0, message)
            self._keep()  # so that a run can be loaded from its first moment
            self._look(0, 0.0)
        try:
            for pause in self.trainer.fit(self.first, self.seconds, self._due):
                if self._pause(pause, config.steps):
                    break
        except (
            Exception
        ) as error:  # a loss that is not finite, a row that cannot be read: the diary says why it ends here
            at = {"step": error.step, "seconds": error.seconds} if isinstance(error, Diverged) else {}
            self._write("end", **at, reason=str(error), failed=True)
            raise

    def _pause(self, pause: Pause, steps: int) -> bool:
        """Writes down, looks, saves; True: enough."""
        config = self.config
        assert config.eval_every is not None
        assert config.checkpoint_every is not None
        self._step_event(pause)
        self._tell_bad(pause.step)
        stop, overdue = self._agreed(self.stopped, time.monotonic() - self.saved_at > config.checkpoint_seconds)
        last, better = pause.step == steps, False
        if last or pause.step % config.eval_every == 0:
            better = self._look(pause.step, pause.seconds, pause.loss)
            last = last or (config.patience is not None and self.best.stale >= config.patience)
        if last:
            stale = f"no better look for {config.patience} looks"
            self.reason = "all steps were made" if pause.step == steps else stale
            self._save(pause)
            self._finish(pause.step, pause.seconds)
        elif better or stop or overdue or pause.step % config.checkpoint_every == 0:
            self._save(pause)
        if stop and not last:
            raise Interrupted(self.run)
        return last

    def _finish(self, step: int, seconds: float) -> None:
        if self.best.value is None:
            self._keep()
        if not self.main:
            return
        kept = self.best.step or step
        looks = {event["step"]: event["metrics"] or event["geometry"] for event in self.run.events("look")}
        before, after = looks.get(0, {}), looks.get(kept) or looks.get(max(looks, default=0), {})
        told: dict[str, Any] = {"before": before, "after": after}
        name = self._leading(after)
        if self.best.value is not None and name is not None and name in before and after[name] < before[name]:
            told["lost"] = below_its_start(self.trainer, name, before[name], after[name], kept)
            self.progress.say(f"warning: {told['lost']}")
        self._write("end", step=step, seconds=seconds, reason=self.reason, best=kept, **told)

    def _leading(self, metrics: dict[str, float]) -> str | None:
        """The metric that says which look is best."""
        return self.config.metric or next(iter(metrics), None)

    def _warn(self, step: int, message: str) -> None:
        self._write("warning", step=step, message=message)
        self.progress.say(f"warning: {message}")

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

    def _tell_bad(self, step: int) -> None:
        """Each row that was left out, once."""
        for line in list(self.trainer.bad)[self.told :]:
            self._write("warning", step=step, message=f"{LEFT_OUT}{line}")
            self.progress.say(f"{LEFT_OUT}{line}")
        self.told = len(self.trainer.bad)

    def _look(self, step: int, seconds: float, loss: float | None = None) -> bool:
        """Looks at rows, before the first step without a loss; True: worth keeping, since none was better."""
        if self.watched is None or not self.watched.rows:
            return False
        trainer = self.trainer
        seen: Look = look(trainer.kept, self.watched, self.fabric.device)
        seen = self.fabric.broadcast(seen) if self.fabric.world_size > 1 else seen
        trainer.bad.update(dict.fromkeys(seen.bad))
        self._tell_bad(step)
        self._write("look", step=step, seconds=seconds, metrics=seen.metrics, geometry=seen.geometry)
        figures = " · ".join(f"{name} {value:.3f}" for name, value in (seen.metrics | seen.geometry).items())
        self.progress.say(f"step {step} · {'before training' if loss is None else f'loss {loss:.3f}'} · {figures}")
        if loss is None:
            self.before = seen.metrics
            return False  # what training gives is kept, for better or worse
        self._look_for_collapse(step, seen, loss)
        name = self._leading(seen.metrics)
        if name is None or name not in seen.metrics:
            return False
        value, best = seen.metrics[name], self.best.value
        if best is not None and value < best:
            self.best.stale += 1
            return False
        self.best = Best(step, value, self.best.stale + 1 if value == best else 0)
        self._keep()
        return True

    def _look_for_collapse(self, step: int, seen: Look, loss: float) -> None:
        setting = self.trainer.method.setting
        chance = self.trainer.method.chance(self.config.batch_size)
        name = self._leading(seen.metrics)
        if name is not None and seen.metrics.get(name, 0.0) > self.before.get(name, 0.0) + RISEN:
            chance = None  # the loss may be where guessing is, and something is learned all the same
        dim = self.trainer.method.embedder.dim
        assert isinstance(dim, int)
        assert self.watched is not None
        by_label = METHODS[setting.name].needs in ("labels", "labels or judged pairs") and len(setting.columns) == 1
        classes = setting.classes if by_label else None
        for message in collapse_warnings(seen.geometry, loss, chance, dim, classes, len(self.watched.rows)):
            self._warn(step, message)

    def _keep(self) -> None:
        kept: Any = self.trainer.kept
        weights = all_whole(kept.state_dict(), keep=self.main)  # by all ranks
        if self.main:
            self.run.save_model(kept, weights)

    def _save(self, pause: Pause) -> None:
        parts, rest = self.trainer.state()
        if self.main:
            facts = rest | {"seconds": pause.seconds, "best": vars(self.best), "reason": self.reason}
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
            self._log({"event": event} | facts)

    def _log(self, event: dict[str, Any]) -> None:
        told = figures(event)
        if self.logger is not None and told:
            self.logger.log_metrics(told, step=event["step"])
