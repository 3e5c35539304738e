"""A comparison at work: every arm swept, then measured with fresh seeds; written down as it goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from nearfar.compare.arms import BASELINE, select_arms
from nearfar.compare.config import SWEEP_SEED
from nearfar.compare.inputs import Rows
from nearfar.compare.learner import check_network
from nearfar.compare.progress import Progress
from nearfar.compare.record import Curve, Run, RunFolder
from nearfar.compare.result import Comparison
from nearfar.compare.summary import sweep_runs
from nearfar.compare.sweep import Choice, Plan, plan
from nearfar.compare.trainer import Trainer
from nearfar.compare.workers import Workers, can_be_sent
from nearfar.training.environment import describe_machine


class Interrupted(KeyboardInterrupt):
    """Stopped by hand. ``comparison`` holds the table so far, ``folder`` is where to go on from."""

    def __init__(self, comparison: Comparison, folder: Path) -> None:
        super().__init__(f"interrupted: go on with resume={str(folder)!r} (nearfar compare --resume {folder})")
        self.comparison, self.folder = comparison, folder


@dataclass
class Study:
    """A comparison that can start: every arm has been built once, so that what cannot work is said first."""

    trainer: Trainer
    name: str
    """Of the network."""
    progress: Progress

    def __post_init__(self) -> None:
        task, config = self.trainer.task, self.trainer.config
        self.device = _device(config.device)
        with torch.random.fork_rng():
            network = self.trainer.network()
            check_network(network, task.train.inputs[:2], task.class_names, self.name)
            self.parameters = sum(p.numel() for p in network.parameters())
            batch = Rows(task.train.inputs[: config.batch_size], task.train.labels[: config.batch_size]).to(self.device)
            for arm in config.arms:
                learner = self.trainer.learner(Run("sweep", arm, config.rates[0], 1.0, SWEEP_SEED))
                learner.loss(batch.inputs, batch.labels)
        if not can_be_sent(self.trainer):
            self.trainer.config = replace(config, workers=1)

    def describe(self) -> dict[str, Any]:
        """What is compared, on what, where: the part of the result that is known before any run."""
        trainer, task = self.trainer, self.trainer.task
        return {
            "config": asdict(replace(trainer.config, out=None, resume=None)),
            "data": {
                "name": task.name,
                "train": len(task.train),
                "validation": len(task.validation),
                "test": len(task.test),
                "in_shape": list(task.in_shape),
                "classes": list(task.class_names),
                "left_out": list(task.bad),
                "fingerprint": task.fingerprint(),
            },
            "model": {"name": self.name, "parameters": self.parameters},
            "losses": {"task": repr(trainer.loss), "contrastive": repr(trainer.contrastive)},
            "environment": describe_machine(self.device, trainer.config.threads),
        }

    def outline(self) -> str:
        """What is about to happen, in a sentence."""
        config, task = self.trainer.config, self.trainer.task
        side_by_side = f", {config.workers} side by side" if (config.workers or 1) > 1 else ""
        return (
            f"{task.name}: {len(task.train):,} rows to train on, {len(task.validation):,} to choose rates by, "
            f"{len(task.test):,} to test on, {task.num_classes} classes. {self.name}, {self.parameters:,} parameters. "
            f"{len(config.arms)} arms, each {config.budget} trials of {config.sweep_seeds} seeds and {config.seeds} fresh "
            f"seeds: {self.runs} runs of {config.steps} steps, batches of {config.batch_size}{side_by_side}."
        )

    @property
    def runs(self) -> int:
        """How many runs there are in all."""
        config = self.trainer.config
        assert config.budget is not None
        assert config.sweep_seeds is not None
        assert config.seeds is not None
        return len(config.arms) * (config.budget * config.sweep_seeds + config.seeds)

    def run(self, folder: RunFolder) -> Comparison:
        """Sweeps, measures and summarises; writes as it goes, and leaves out what the folder has already.

        Raises:
            Interrupted: If stopped by Ctrl-C.
        """
        threads, config = torch.get_num_threads(), self.trainer.config
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        try:
            with folder, self.progress, Workers(self.trainer, config.workers or 1) as workers:
                self._run(folder, workers)
        except KeyboardInterrupt as error:
            comparison = Comparison.load(folder.path)
            comparison.save()
            raise Interrupted(comparison, folder.path) from error
        finally:
            torch.set_num_threads(threads)
        comparison = Comparison.load(folder.path)
        comparison.save()
        return comparison

    def _run(self, folder: RunFolder, workers: Workers) -> None:
        config = self.trainer.config
        done = folder.finished()
        self.progress.begin(self.runs, len(done))
        choices = self._sweep(done, folder, workers)
        if choices[BASELINE].score == 0:
            raise ValueError(
                f"the baseline diverged at every rate, {', '.join(map(str, config.rates))}: pass lower rates"
            )
        assert config.seeds is not None
        # seed by seed, the arms side by side: whatever the machine does, it does to all of them
        seeds = range(config.seed, config.seed + config.seeds)
        wanted = [Run("measure", name, c.rate, c.weight, seed) for seed in seeds for name, c in choices.items()]
        workers.submit(*_missing(wanted, done))
        for run in self._finish(done, folder, workers):
            if all(other in done for other in wanted if other.seed == run.seed):
                Comparison.load(folder.path).save(report=False)  # the table so far, whatever comes

    def _sweep(self, done: dict[Run, Curve], folder: RunFolder, workers: Workers) -> dict[str, Choice]:
        """Every arm's plan, side by side: a trial of one is trained while another's next depends on its last."""
        config = self.trainer.config
        assert config.budget is not None
        choices: dict[str, Choice] = {}

        asked: dict[str, tuple[Plan, list[Run]]] = {}

        def go_on(name: str, steps: Plan, score: float | None) -> None:
            try:
                while True:
                    trial = sweep_runs(config, name, *steps.send(score))
                    asked[name] = steps, trial
                    missing = _missing(trial, done)
                    if missing:
                        return workers.submit(*missing)
                    score = fmean(done[run].score for run in trial)
            except StopIteration as end:
                choices[name] = end.value
                self.progress.chosen(name, end.value)

        for name, arm in select_arms(config.arms).items():
            go_on(name, plan(arm, config.rates, config.budget), None)
        for run in self._finish(done, folder, workers):
            steps, trial = asked[run.arm]
            if not _missing(trial, done):
                go_on(run.arm, steps, fmean(done[each].score for each in trial))
        return {name: choices[name] for name in select_arms(config.arms)}

    def _finish(self, done: dict[Run, Curve], folder: RunFolder, workers: Workers) -> Iterable[Run]:
        """Writes down what happens; gives every run as it is finished."""
        begun: dict[Run, Curve] = {}
        for kind, run, look in workers.events():
            folder.log(kind, run, look)
            if kind == "start":
                begun[run] = Curve()
                self.progress.run(run)
            elif look is not None:
                begun[run].add(look)
            else:
                done[run] = begun.pop(run)
                self.progress.advance()
                yield run


def _missing(runs: list[Run], done: dict[Run, Curve]) -> list[Run]:
    return [run for run in runs if run not in done]


def _device(name: str) -> torch.device:
    try:
        torch.empty(1, device=name).fill_(0)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        gist = str(error).partition("\n")[0]
        raise ValueError(
            f"device {name!r} cannot be used here ({gist}): pass cpu, or one that this torch sees"
        ) from error
    return torch.device(name)
