"""One run, from its seed to its last step: the same numbers wherever and whenever it is trained."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nearfar.compare.arms import ARMS
from nearfar.compare.config import CompareConfig
from nearfar.compare.inputs import Task
from nearfar.compare.learner import Learner
from nearfar.compare.record import Look, Run
from nearfar.encoders.factory import Factory
from nearfar.encoders.precision import building, dtype_of
from nearfar.training.loop import Diverged, Pause, fit, shuffled_batches

# Where Adam steps all parameters in one kernel; a fifth of a small network's step on a CPU otherwise.
FUSED = ("cpu", "cuda", "mps")


@dataclass
class Trainer:
    """What every run of a comparison needs; can be sent to another process if the factory and the losses can."""

    config: CompareConfig
    """With every field filled in that depends on the data."""
    task: Task
    factory: Factory
    contrastive: nn.Module
    loss: nn.Module
    _warm: set[str] = field(default_factory=set)

    def learner(self, run: Run) -> Learner:
        """The network of a run. Its initial weights depend on the seed alone, so that they are the same in all arms."""
        torch.manual_seed(run.seed)
        network = self.network()
        torch.manual_seed(run.seed)  # and so is what the network draws while training
        with building(dtype_of(network)):
            return Learner(
                ARMS[run.arm],
                network,
                self.task.num_classes,
                task=copy.deepcopy(self.loss),
                contrastive=copy.deepcopy(self.contrastive),
                weight=run.weight,
                features=self.config.features,
                generator=torch.Generator().manual_seed(run.seed),
            ).to(self.config.device)

    def network(self) -> Any:
        """What every arm starts from."""
        with building():
            return self.factory(self.task.in_shape, self.task.num_classes)

    def train(self, run: Run) -> Iterator[Look]:
        """Trains, looking every few steps: at validation rows in the sweep, at the test rows afterwards.

        Torch's random state is the run's own until it ends, and then what it was before.
        """
        watched = (self.task.validation if run.stage == "sweep" else self.task.test).to(
            torch.device(self.config.device)
        )
        steps = looks(self.config)
        with torch.random.fork_rng():
            if run.stage == "measure" and run.arm not in self._warm:
                self._warm_up(run)
            learner = self.learner(run)
            try:
                for pause in self._fit(learner, run, steps[-1]):
                    accuracy = learner.accuracy(watched.inputs, watched.labels)
                    yield Look(pause.step, pause.seconds, learner.rows, accuracy)
                    steps.remove(pause.step)
            except Diverged as stop:  # it answers nothing any more, and costs as much a step as it did
                for step in steps:
                    yield Look(step, stop.seconds * step / stop.step, learner.rows * step // stop.step, 0.0, lost=True)

    def _fit(self, learner: Learner, run: Run, steps: int) -> Iterator[Pause]:
        assert self.config.eval_every is not None
        assert self.config.batch_size is not None
        device = torch.device(self.config.device)
        train = self.task.train.to(device)
        order = torch.Generator().manual_seed(run.seed)
        batches = shuffled_batches(len(train), self.config.batch_size, order)
        return fit(
            lambda batch: learner.loss(train.inputs[batch], train.labels[batch]),
            torch.optim.Adam(learner.parameters(), lr=run.rate, fused=device.type in FUSED),
            (batch.to(device) for batch in batches),
            steps=steps,
            every=self.config.eval_every,
        )

    def _warm_up(self, run: Run) -> None:
        """A few steps for nobody, so that what a process pays once is not on the clock of the first run it measures."""
        with contextlib.suppress(Diverged):
            list(self._fit(self.learner(run), run, 3))
        self._warm.add(run.arm)


def looks(config: CompareConfig) -> list[int]:
    """The steps at which a run is evaluated.

    Example:
        >>> looks(CompareConfig(steps=10, eval_every=4))
        [4, 8, 10]
    """
    assert config.steps is not None
    assert config.eval_every is not None
    return [*range(config.eval_every, config.steps, config.eval_every), config.steps]
