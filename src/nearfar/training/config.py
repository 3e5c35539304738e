"""What a training run is told: one frozen dataclass. The string under a field is its ``--help``.

Loads no torch: the command line reads its options from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from nearfar.data.config import EARLIER as EARLIER_DATA
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
    """The encoder by name (see: nearfar list networks); your own, as module:factory; or the folder of a run, a checkpoint or
    an embedder, to start from its weights. By default one that fits the data."""
    dim: int | None = None
    """Width of the embeddings; by default that of the encoder's features, and 256 where two encoders share a space."""
    pretrained: bool = False
    """Start a timm: encoder from its published weights; hf: encoders and folders always do. Of module:factory or embedder=: it
    brings weights that were trained before."""
    allow_code: bool = False
    """Import and run the module:factory that the encoder in the folder of model was made by."""
    freeze: bool = False
    """Keep the weights that the run starts from as they are: only what is new learns (heads, projections, --dim)."""
    freeze_steps: float | None = None
    """Keep them so for the first steps alone: how many, or below 1 the part of all steps."""
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
    """Peak learning rate; by default 1e-3 (adamw, adam), 0.05 (sgd), 0.5 (lars), the last two times batch_size / 256. Of weights
    that were trained before a tenth of that, and a fiftieth in a transformer (2e-5)."""
    head_factor: float | None = None
    """How many times as fast what is new learns (heads, projections, temperature) beside weights that were trained before; by
    default so many that it has the usual rate, and 1 at least."""
    layer_decay: float | None = None
    """Each layer of weights that were trained before learns at this part of the rate of the one above it, such as 0.9."""
    weight_decay: float = 1e-4
    """Decay of weights; biases, norms and the temperature have none."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """The learning rate after the warm-up: down to 0 along a cosine or a line, or level."""
    warmup: float | None = None
    """Warm-up of the learning rate: steps, or below 1 the part of all steps; by default 0.05, and 0.1 from weights that were
    trained before."""
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
    """Which metric of a look says what is best: knn, recall@1, mrr; by default the first that there is. Of equals the last
    is kept."""
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
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}: wanted a number above 0, up to 1, such as 0.9")
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
            known = asdict(options_of(cls, read_options(config), str(config))) | {"config": None}
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
        begun = EARLIER | read_yaml(run) if run is not None and run.is_file() else {}
        given = read_options(told["--config"]) if "--config" in told else {}
        if not begun and not given:
            return None
        options_of(cls, given, told.get("--config", ""))  # its mistakes are told as the file's
        return options_of(cls, begun | given | ({"resume": told["--resume"]} if begun else {}))

    def resolved(
        self,
        *,
        rows: int | None,
        method: str,
        classes: int,
        accelerated: bool,
        world: int = 1,
        start: Start = "scratch",
    ) -> TrainConfig:
        """The same with every default filled in that depends on the data.

        Args:
            rows: Training rows; None: they are streamed, and not counted.
            method: As chosen.
            classes: How many there are among the training rows; 0 where rows come in an order of their own.
            accelerated: Whether the device is no CPU.
            world: Ranks, which share a batch and its chunks: where rows are too few for it, it has as many for each.
            start: What the encoder's weights are at the start.

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
            steps = max(1, round((EPOCHS if self.epochs is None else self.epochs) * (rows // batch)))
        usual = usual_rate(self.optimizer, batch)
        lr = self.lr or usual_rate(self.optimizer, batch, start)
        warmup = (0.05 if start == "scratch" else 0.1) if self.warmup is None else self.warmup
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
            lr=lr,
            head_factor=self.head_factor or (1.0 if start == "scratch" else max(1.0, usual / lr)),
            warmup=_steps(warmup, steps),
            freeze_steps=None if self.freeze_steps is None else _steps(self.freeze_steps, steps),
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


def usual_rate(optimizer: str, batch: int, start: Start = "scratch") -> float:
    """The peak learning rate where nobody says otherwise.

    Example:
        >>> usual_rate("adamw", 64), usual_rate("adamw", 64, "transformer"), usual_rate("sgd", 512)
        (0.001, 2e-05, 0.1)
    """
    return RATES[optimizer] * (batch / 256 if optimizer in ("sgd", "lars") else 1.0) / GENTLER[start]


def _steps(part: float, steps: int) -> float:
    """A number of steps, or below 1 that part of all."""
    return float(round(part * steps) if part < 1 else part)


def read_options(path: str | Path) -> dict[str, Any]:
    """The options of a file; of the folder of an earlier version's run, with what was done before it was an option."""
    path = Path(path).expanduser()
    of_run = path.name == RUN_FILE and (path.parent / "environment.json").is_file()
    return (EARLIER if of_run else {}) | read_yaml(path)


RUN_FILE = "config.yaml"
"""What a run was told, in its folder."""
EARLIER: dict[str, Any] = EARLIER_DATA | {"head_factor": 1.0}
"""What was done before there was an option for it: of the folder of a run that does not name the option."""
Start = Literal["scratch", "network", "transformer"]
"""What an encoder begins with: new weights, or those of a network or a transformer that was trained before."""
GENTLER: dict[Start, float] = {"scratch": 1, "network": 10, "transformer": 50}
"""By what the usual learning rate is divided, so that what was learned before is not lost."""
# The smallest sensible value of each whole number. A batch of one row has no pair in it.
LEAST = {
    "steps": 1, "batch_size": 2, "classes_per_batch": 1, "chunk": 1, "accumulate": 1, "devices": 1, "num_nodes": 1,
    "threads": 1, "seed": 0, "log_every": 1, "eval_every": 1, "eval_rows": 2, "patience": 1, "checkpoint_every": 1, "dim": 1,
    "queue": 1, "projection": 0, "warmup": 0, "weight_decay": 0, "weight": 0, "freeze_steps": 0,
}  # fmt: skip
POSITIVE = ("lr", "head_factor", "clip", "epochs", "temperature", "checkpoint_seconds")
EPOCHS = 20.0
"""Passes over the training rows, where nobody says otherwise."""
RATES = {"adamw": 1e-3, "adam": 1e-3, "sgd": 0.05, "lars": 0.5}
