"""What a training run is told: one frozen dataclass. The string under a field is its ``--help``.

Loads no torch: the command line reads its options from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from nearfar.data.config import DataConfig
from nearfar.methods.config import MethodConfig
from nearfar.methods.table import METHODS
from nearfar.names import unknown
from nearfar.training.options import options_of, read_yaml


@dataclass(frozen=True)
class TrainConfig(MethodConfig, DataConfig):
    """Trains an encoder on your data, and writes it to a run folder."""

    config: str | None = None
    """A YAML file with any of these options; what the command line says besides it wins."""
    model: str | None = None
    """The encoder by name (see: nearfar list networks), or your own, as module:factory; by default one that fits the
    data."""
    dim: int | None = None
    """Width of the embeddings; by default that of the encoder's features, and 256 where two encoders share a space."""
    pretrained: bool = False
    """Start a timm: encoder from its published weights; hf: encoders always do."""
    views: str | None = None
    """How views of an image or a series are drawn (see: nearfar list views); none: not at all; by default what suits the
    method and the kind."""
    epochs: float | None = None
    """Passes over the training rows; by default 20."""
    steps: int | None = None
    """Optimiser steps, in place of epochs."""
    batch_size: int = 256
    """Rows of a step, over all devices. More rows are more negatives."""
    classes_per_batch: int | None = None
    """Draw batches of so many classes with as many rows each; by default where labels are needed and classes are many."""
    chunk: int | None = None
    """Encode so many rows of a batch at a time on each device, exactly (cached gradients): a large batch in the memory of a
    small one."""
    accumulate: int = 1
    """Join so many batches into one step whose loss sees all their rows: batch_size times this, chunk by chunk."""
    optimizer: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    """How weights are stepped; lars for batches of thousands."""
    lr: float | None = None
    """Peak learning rate; by default 1e-3 (adamw, adam), 0.05 (sgd), 0.5 (lars), the last two times batch_size / 256."""
    weight_decay: float = 1e-4
    """Decay of weights; biases, norms and the temperature have none."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """The learning rate after the warm-up: down to 0 along a cosine or a line, or level."""
    warmup: float = 0.05
    """Warm-up of the learning rate: steps, or below 1 the part of all steps."""
    clip: float | None = None
    """Largest norm of the gradient."""
    ema: float | None = None
    """Keep an average of the weights with this momentum, such as 0.999; it is what is looked at and kept."""
    precision: Literal["32", "bf16", "16"] = "32"
    """Of the encoder's arithmetic; losses stay in float32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto: an accelerator if there is one."""
    devices: int = 1
    """Processes on this machine, one a device. Under torchrun or SLURM, as many as were started."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """Across devices: a copy of the model on each (ddp), which is what auto means with several; or weights, gradients and
    the optimiser's state divided among them (fsdp), for a model that is too large for each."""
    num_nodes: int = 1
    """Machines."""
    threads: int | None = None
    """CPU threads of a process; by default torch's."""
    seed: int = 0
    """Of the initial weights, the order of rows, views and dropout."""
    log_every: int | None = None
    """Steps between two entries in events.jsonl; by default 1, on an accelerator 10, where looking waits for it."""
    eval_every: int | None = None
    """Steps between two looks at test rows; by default ten looks a run, and one at the end."""
    eval_rows: int = 2000
    """Test rows that are looked at, at most."""
    metric: str | None = None
    """Which metric of a look says what is best: knn, recall@1, mrr; by default the first that there is."""
    patience: int | None = None
    """Stop after so many looks without a better metric."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints; by default one a look."""
    checkpoint_seconds: float = 600.0
    """Write a checkpoint at least this often."""
    out: str | None = None
    """The run folder; by default runs/train-DATA-N."""
    resume: str | None = None
    """Go on with the run in this folder, exactly where its last checkpoint left it."""
    logger: Literal["none", "tensorboard", "csv", "wandb", "mlflow"] = "none"
    """Log to this as well, besides events.jsonl."""
    quick: bool = False
    """A first look: 100 steps, where neither steps nor epochs says how many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method is not None and self.method not in METHODS:
            raise ValueError(unknown("method", self.method, METHODS))
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name} is {value}: wanted {least} or more")
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}: wanted a number above 0")
        for name in ("ema", "momentum"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} is {value}: wanted 0 to below 1, such as 0.99")
        if None not in (self.epochs, self.steps) and self.resume is None:  # a run that goes on has its steps
            raise ValueError(f"epochs is {self.epochs} and steps is {self.steps}: pass one of them")
        if self.strategy == "fsdp" and self.precision == "16":
            raise ValueError("precision 16 scales gradients, which strategy fsdp does not: pass bf16, or strategy ddp")

    @classmethod
    def of(cls, config: TrainConfig | str | Path | None = None, **options: Any) -> TrainConfig:
        """A configuration, or a YAML file of one, with some options changed.

        Raises:
            TypeError: If there is no such option; the message suggests the nearest.
            ValueError: If a value has the wrong type or is out of range.

        Example:
            >>> TrainConfig.of(epochs=3).epochs
            3.0
        """
        known = {} if config is None else asdict(config) if isinstance(config, TrainConfig) else {}
        if isinstance(config, str | Path):
            known = asdict(options_of(cls, read_yaml(config), str(config))) | {"config": None}
        return options_of(cls, known | options)

    @classmethod
    def preset(cls, arguments: Sequence[str]) -> TrainConfig | None:
        """What the run of ``--resume`` was told and the file of ``--config`` holds, for the command line to change; None: neither.

        What then differs from the run was asked for, also where it is a default.
        """
        told: dict[str, str] = {}
        for place, argument in enumerate(arguments):
            name, equals, value = argument.partition("=")
            if name in ("--config", "--resume") and (equals or place + 1 < len(arguments)):
                told[name] = value if equals else arguments[place + 1]
        run = Path(told["--resume"]).expanduser() / RUN_FILE if "--resume" in told else None
        begun = read_yaml(run) if run is not None and run.is_file() else {}
        given = read_yaml(told["--config"]) if "--config" in told else {}
        if not begun and not given:
            return None
        options_of(cls, given, told.get("--config", ""))  # its mistakes are told as the file's
        return options_of(cls, begun | given | ({"resume": told["--resume"]} if begun else {}))

    def resolved(
        self, *, rows: int | None, method: str, classes: int, accelerated: bool, world: int = 1
    ) -> TrainConfig:
        """The same with every default filled in that depends on the data.

        Args:
            rows: Training rows; None: they are streamed, and not counted.
            method: As chosen.
            classes: How many there are among the training rows; 0 where rows come in an order of their own.
            accelerated: Whether the device is no CPU.
            world: Ranks, which share a batch and its chunks: where rows are too few for it, it has as many for each.

        Raises:
            ValueError: If rows are streamed and no number of steps is given.

        Example:
            >>> config = TrainConfig().resolved(rows=1000, method="simclr", classes=0, accelerated=False)
            >>> config.steps, config.lr, config.eval_every
            (60, 0.001, 6)
        """
        batch = self.batch_size * self.accumulate
        if rows is not None and rows < batch:
            batch = max(rows // world, 1) * world
        steps = 100 if self.quick and self.steps is None and self.epochs is None else self.steps
        if steps is None and rows is None:
            raise ValueError("rows are streamed, and nobody knows how many there are: pass steps=, in place of epochs")
        if steps is None:
            assert rows is not None
            steps = max(1, round((20 if self.epochs is None else self.epochs) * (rows // batch)))
        scale = batch / 256 if self.optimizer in ("sgd", "lars") else 1.0
        drawn = self.classes_per_batch
        if drawn is None and METHODS[method].needs.startswith("labels") and classes > batch // 4:
            each = next((k for k in (4, 3, 5, 2) if batch % k == 0), None)  # else a row would be alone of its class
            drawn = None if each is None or batch // each > classes else batch // each
        return replace(
            self,
            method=method,
            epochs=None,
            steps=steps,
            batch_size=batch,
            accumulate=1,
            quick=False,
            chunk=self.chunk or (max(1, self.batch_size // world) if self.accumulate > 1 else None),
            classes_per_batch=drawn,
            lr=self.lr or RATES[self.optimizer] * scale,
            warmup=float(round(self.warmup * steps) if self.warmup < 1 else self.warmup),
            log_every=self.log_every or (10 if accelerated else 1),
            eval_every=self.eval_every or max(1, steps // 10),
            checkpoint_every=self.checkpoint_every or self.eval_every or max(1, steps // 10),
        )

    def saved(self) -> dict[str, Any]:
        """What goes into the run's config.yaml: all but where it was read from and written to."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in fields(self)
            for value in [getattr(self, field.name)]
            if field.name not in ("config", "out", "resume")
        }


RUN_FILE = "config.yaml"
"""What a run was told, in its folder."""
# The smallest sensible value of each whole number. A batch of one row has no pair in it.
LEAST = {
    "steps": 1, "batch_size": 2, "classes_per_batch": 1, "chunk": 1, "accumulate": 1, "devices": 1, "num_nodes": 1,
    "threads": 1, "seed": 0, "log_every": 1, "eval_every": 1, "eval_rows": 2, "patience": 1, "checkpoint_every": 1, "dim": 1,
    "queue": 1, "projection": 0, "warmup": 0, "weight_decay": 0, "weight": 0,
}  # fmt: skip
POSITIVE = ("lr", "clip", "epochs", "temperature", "checkpoint_seconds")
RATES = {"adamw": 1e-3, "adam": 1e-3, "sgd": 0.05, "lars": 0.5}
