"""A training run put together: data, encoder, method, optimiser, devices; and what one step is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.data.corpus import Corpus, RawBatch
from nearfar.data.loading import Loader
from nearfar.data.views import View
from nearfar.encoders.momentum import Average
from nearfar.methods.base import Batch, Method, on
from nearfar.training.assemble import make_method, make_view_of, used_columns
from nearfar.training.cached import cached_step
from nearfar.training.checkpoint import flatten_state, unflatten_state
from nearfar.training.config import TrainConfig
from nearfar.training.devices import average_gradients, mixed, seed_step
from nearfar.training.loop import Pause, fit
from nearfar.training.optimiser import make_optimizer, parameter_groups, rate_at

__all__ = ["Trainer"]


class Trainer:
    """Everything that a step needs, and its state.

    Args:
        config: As resolved.
        corpus: What is read.
        embedder: What is trained; a new one, with its initial weights.
        fabric: Launched.
    """

    def __init__(self, config: TrainConfig, corpus: Corpus, embedder: Any, fabric: Any) -> None:
        assert config.method is not None
        assert config.lr is not None
        self.config, self.corpus, self.fabric = config, corpus, fabric
        world = fabric.world_size
        if config.batch_size % world:
            raise ValueError(
                f"batch_size is {config.batch_size} rows over {world} devices: wanted a multiple, such as "
                f"{config.batch_size // world * world}"
            )
        columns = used_columns(config.method, corpus)
        self.view = make_view_of(config, corpus, embedder)
        view = None if self.view is None else self._draw
        self.method: Method = make_method(config, corpus, columns, embedder, view, world > 1)
        self.method.autocast = fabric.autocast
        self.method.to(fabric.device)
        if self.view is not None:
            self.view.to(fabric.device)
        self.ema = None if config.ema is None else Average(self.method.embedder, config.ema, warmup=True)
        groups = parameter_groups([self.method], config.weight_decay)
        raw = make_optimizer(config.optimizer, groups, config.lr, fabric.device.type)
        self.network, self.optimizer = fabric.setup(self.method.network, raw)
        own = {id(p) for p in self.method.network.parameters()}
        self.others = [p for p in self.method.parameters() if p.requires_grad and id(p) not in own]
        self.loader = self._loader(columns)
        self.terms: dict[str, Tensor] = {}
        self.bad: dict[str, None] = {}
        """Rows that could not be read and were left out, in the order met."""
        self.rate = 0.0
        self._step = 0
        self.method.train()

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def fit(self, start: int, seconds: float, pause: Any) -> Iterator[Pause]:
        """Trains from a step on; see ``nearfar.training.loop.fit``."""
        steps = self.config.steps
        assert steps is not None
        return fit(
            self._loss,
            self.optimizer,
            self.loader.batches(start),
            steps=steps,
            every=pause,
            start=start,
            seconds=seconds,
            before=self._before,
            backward=self._backward,
            update=self._update,
        )

    def _before(self, step: int) -> None:
        config = self.config
        assert config.lr is not None
        assert config.steps is not None
        self._step = step
        seed_step(config.seed, step, self.fabric.global_rank)
        self.rate = config.lr * rate_at(step, config.steps, config.schedule, int(config.warmup))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate

    def _loss(self, batch: Batch) -> Tensor:
        self.bad.update(dict.fromkeys(batch.bad))
        batch = on(batch, self.fabric.device)
        sides = self.method.sides(batch)
        chunk = self.config.chunk
        if chunk is None or chunk >= len(batch):
            return self._total(self.network(sides), batch)
        precision = self.fabric.strategy.precision
        value = cached_step(
            lambda *outputs: self._total(outputs, batch),
            self.method.network,
            tuple(sides),
            chunk=chunk,
            encode=self._encode,
            scaler=getattr(precision, "scaler", None),
        )
        average_gradients(list(self.method.network.parameters()), self.fabric)  # past the wrapper, which would have
        return value

    def _draw(self, inputs: Any, which: int) -> Any:
        """A view of each row: by seed, step and place in the batch of all ranks, so that ranks change nothing."""
        if not isinstance(self.view, View):  # the user's own, which draws from torch's generator
            assert self.view is not None
            return self.view(inputs)
        generator = torch.Generator().manual_seed(mixed(self.config.seed, self._step, which))
        each = self.loader.batch_size
        return self.view(
            inputs, generator=generator, rows=(self.fabric.global_rank * each, self.fabric.world_size * each)
        )

    def _encode(self, network: nn.Module, side: Any) -> Any:
        with self.fabric.autocast():
            (output,) = network([side])
        return self.fabric.strategy.precision.convert_output(output)

    def _total(self, outputs: Any, batch: Batch) -> Tensor:
        terms = self.method.terms(outputs, batch)
        total = self.method.total(terms)
        seen = torch.stack([total, *terms.values()]).detach()
        if (
            self.fabric.world_size > 1
        ):  # of all ranks, also where a loss does not gather: ranks must agree whether it is finite
            seen = self.fabric.all_reduce(seen, reduce_op="mean")
            total = total + (seen[0] - total).detach()  # the value is the mean, the gradient this rank's
        self.terms = dict(zip(terms, seen[1:]))
        return total

    def _backward(self, loss: Tensor) -> None:
        if loss.requires_grad:  # else a cached step has been through it
            self.fabric.backward(loss)
        average_gradients(self.others, self.fabric)

    def _update(self) -> None:
        config = self.config
        if config.clip is not None:
            self.fabric.clip_gradients(self.network, self.optimizer, max_norm=config.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.method.after_step(self._step)
        if self.ema is not None:
            self.ema.update(self.method.embedder)

    # ---- what is read ------------------------------------------------------------------------------------------------

    def _loader(self, columns: tuple[Any, ...]) -> Loader:
        config, fabric = self.config, self.fabric
        return Loader(
            self.corpus.train,
            config.batch_size // fabric.world_size,
            seed=config.seed,
            rank=fabric.global_rank,
            world=fabric.world_size,
            classes_per_batch=config.classes_per_batch,
            prepare=Prepare(self.method.embedder, columns),
        )

    # ---- state -------------------------------------------------------------------------------------------------------

    @property
    def kept(self) -> nn.Module:
        """The embedder that is looked at and kept: the average, where there is one."""
        return self.method.embedder if self.ema is None else self.ema.module

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """All that the next step depends on, but for the step's number: tensors by part, and the rest."""
        tensors, rest = flatten_state(self.optimizer.state_dict())
        parts = {"method": dict(self.method.state_dict()), "optimizer": tensors}
        if self.ema is not None:
            parts["ema"] = dict(self.ema.state_dict())
        return parts, {"optimizer": rest, "scaler": self.fabric.strategy.precision.state_dict()}

    def load(self, parts: dict[str, dict[str, Tensor]], rest: dict[str, Any]) -> None:
        """Puts a state back."""
        self.method.load_state_dict(parts["method"])
        self.optimizer.load_state_dict(unflatten_state(parts["optimizer"], rest["optimizer"]))
        if self.ema is not None:
            self.ema.load_state_dict(parts["ema"])
        if rest["scaler"]:
            self.fabric.strategy.precision.load_state_dict(rest["scaler"])


class Prepare:
    """From rows as read to what the towers take, on the CPU: in the loader's workers.

    Args:
        embedder: Whose towers.
        columns: Those that the method reads.
    """

    def __init__(self, embedder: Any, columns: tuple[Any, ...]) -> None:
        self.embedder, self.columns = embedder, columns

    def __call__(self, raw: RawBatch) -> Batch:
        """One batch."""
        columns = {c.name: self.embedder.prepare(c.kind, raw.columns[c.name]) for c in self.columns}
        alone = raw.same.get(self.columns[0].name) if len(self.columns) == 1 else None  # a value is all that a row is
        groups = alone if raw.groups is None else raw.groups
        return Batch(raw.rows, columns, raw.labels, groups, raw.bad, raw.similar, raw.same)
