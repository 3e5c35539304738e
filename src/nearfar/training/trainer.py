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
from nearfar.shards import all_whole, is_sharded, sharded_like
from nearfar.training.assemble import make_method, make_view_of, used_columns
from nearfar.training.cached import cached_step
from nearfar.training.checkpoint import flatten_state, unflatten_state
from nearfar.training.config import Start, TrainConfig
from nearfar.training.devices import average_gradients, mixed, pass_over_unused, seed_step
from nearfar.training.loop import Pause, fit
from nearfar.training.optimiser import make_optimizer, parameter_groups, rate_at
from nearfar.training.pace import Freeze, paces, start_of
from nearfar.training.sharding import clip_sharded, shard, share_buffers

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
        self.start: Start = start_of(embedder)
        self.freeze = Freeze(embedder, self.method, config)
        self.sharded = config.strategy == "fsdp" and world > 1
        pass_over_unused(self.method.network)
        self.network = fabric.setup_module(self.method.network)  # first: sharding puts other parameters in place
        if self.sharded:
            for copy in (m for m in (*self.method.modules(), self.ema) if isinstance(m, Average)):
                shard(copy.module, fabric.strategy.device_mesh["data_parallel"])
        by_pace = paces(self.method.embedder, self.method.parameters(), config)
        groups = parameter_groups([self.method], config.weight_decay, by_pace)
        raw = make_optimizer(config.optimizer, groups, config.lr, fabric.device.type)
        self.optimizer = fabric.setup_optimizers(raw)
        averaged = {id(p) for p in self.method.network.parameters() if is_sharded(p) or not self.sharded}
        self.others = [p for p in self.method.parameters() if p.requires_grad and id(p) not in averaged]
        self.loader = self._loader(columns)
        self.terms: dict[str, Tensor] = {}
        self.bad: dict[str, None] = {}
        """Rows that could not be read and were left out, in the order met."""
        self.rate = 0.0
        self._step = 0
        self.method.train()
        if self.sharded:  # the first module that is called counts as the root: not the embedder, at the first look
            self.network([])

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
        self.rate = config.lr * rate_at(step, config.steps, config.schedule, int(config.warmup or 0))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["pace"]
        self.freeze.before(step)

    def _loss(self, batch: Batch) -> Tensor:
        self.bad.update(dict.fromkeys(batch.bad))
        batch = on(batch, self.fabric.device)
        sides = self.method.sides(batch)
        chunk = self.config.chunk
        if self.sharded:
            share_buffers(self.method.network)
        if chunk is None or chunk >= self.loader.batch_size:  # not the rows that could be read: ranks must agree
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
        if not self.sharded:  # past the wrapper, which would have; sharded weights see to it themselves, chunk by chunk
            average_gradients(list(self.method.network.parameters()), self.fabric)
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
        self.freeze.hold(self._step)
        if config.clip is not None and self.sharded:
            clip_sharded(self.method.parameters(), config.clip)
        elif config.clip is not None:
            scaler = getattr(self.fabric.strategy.precision, "scaler", None)
            if scaler is not None:  # which knows fused optimisers, where Fabric's own clipping refuses them
                scaler.unscale_(self.optimizer.optimizer)
            learned = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(learned, config.clip)
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
        """All that the next step depends on, but for the step's number: tensors by part, and the rest.

        Tensors are whole whatever the strategy. All ranks must call this; the first one gets the tensors.
        """
        now = self.optimizer.state_dict()
        order = self._order()
        tensors, rest = flatten_state(now | {"state": {order[own]: entries for own, entries in now["state"].items()}})
        parts = {"method": self.method.state_dict(), "optimizer": tensors}
        if self.ema is not None:
            parts["ema"] = self.ema.state_dict()
        first = self.fabric.is_global_zero
        whole = {name: all_whole(part, keep=first) for name, part in parts.items()}
        return whole, {"optimizer": rest, "scaler": self.fabric.strategy.precision.state_dict()}

    def _order(self) -> list[int]:
        """The number in a checkpoint of each parameter, as the optimiser counts them: its groups differ by strategy."""
        place = {id(p): number for number, p in enumerate(self.method.parameters())}
        learned = [(group["plain"], place[id(p)]) for group in self.optimizer.param_groups for p in group["params"]]
        number = {key: number for number, key in enumerate(sorted(learned))}
        return [number[key] for key in learned]

    def load(self, parts: dict[str, dict[str, Tensor]], rest: dict[str, Any]) -> None:
        """Puts a state back, whatever the strategy that it comes from."""
        _load(self.method, parts["method"])
        learned = [p for group in self.optimizer.param_groups for p in group["params"]]
        saved, state = unflatten_state(parts["optimizer"], rest["optimizer"]), {}
        for own, (number, like) in enumerate(zip(self._order(), learned)):
            if number in saved:
                state[own] = {
                    name: _laid_like(sharded_like(value, like), like)
                    if getattr(value, "shape", None) == like.shape
                    else value
                    for name, value in saved[number].items()
                }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.ema is not None:
            _load(self.ema, parts["ema"])
        if rest["scaler"]:
            self.fabric.strategy.precision.load_state_dict(rest["scaler"])


def _laid_like(value: Tensor, like: Tensor) -> Tensor:
    """The same numbers in the layout of a parameter, such as channels last: a fused optimiser reads them side by side."""
    if is_sharded(like) or value.stride() == like.stride():
        return value
    return torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)


def _load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    now = module.state_dict()
    module.load_state_dict({name: sharded_like(tensor, now.get(name)) for name, tensor in tensors.items()})


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
