"""A training step whose batch is larger than what the encoder's memory holds: exact, one chunk's activations at a time.

Gao et al. 2021, arXiv:2101.06983 (GradCache), section 3.2: a contrastive loss needs all embeddings at once, the encoder's
backward pass does not.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearfar.encoders.heads import FeatureNorm
from nearfar.given import at_least
from nearfar.joint.objective import Joint
from nearfar.scores.autograd import full_precision
from nearfar.shards import is_sharded
from nearfar.training.replay import BufferState, RandomState
from nearfar.training.trees import leaves_of, rebuilt, split_rows

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, FeatureNorm)
_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()

Encode = Callable[[Any, Any], Any]
"""Runs a model on some rows of a side: ``encode(model, rows)``."""
_WANTED = {
    "criterion": "a loss such as nf.SupConLoss(), or a function of the embeddings",
    "encode": "a function (model, rows), or None",
    "scaler": "a torch.amp.GradScaler, or None",
}


def cached_step(
    criterion: Callable[..., Tensor],
    model: Any,
    inputs: Any,
    *,
    chunk: int,
    encode: Encode | None = None,
    scaler: Any = None,
    check: bool | None = None,
    **keywords: Any,
) -> Float[Tensor, ""]:
    """Forward and backward of one large batch in the memory of a chunk; gradients add up in ``.grad`` as ever.

    In place of ``criterion(*map(model, inputs), **keywords).backward()``, with the same value and the same gradients:
    (a) chunks are encoded without a graph; (b) the loss of all embeddings gives their gradients, and those of its own
    parameters; (c) each chunk is encoded again, with the random state and the buffers (dropout, running statistics) that
    it met in (a), and takes its embeddings' gradient back. The price is one more forward pass. The rest of the loop
    stays the caller's: ``optimizer.zero_grad()`` before, ``optimizer.step()`` after.

    Args:
        criterion: Called once, as ``criterion(*outputs, **keywords)`` with one output a side: any loss of this package,
            a function, an ``nf.Joint`` (its layer is read chunk by chunk too; pass ``targets=``).
        model: The encoder of every side, or a tuple with one a side.
        inputs: One side, or a tuple or list of sides. A side is a tensor; a dict, for which ``model(**side)`` is called
            (tokenised text); or, inside the tuple of sides, a tuple, for ``model(*side)``. Its tensors have one row a
            sample; numbers and tensors without dimensions go to every chunk as they are.
        chunk: Rows encoded at a time, at least 1. The last chunk of a side may be shorter.
        encode: How to run a model on some rows, ``encode(model, rows)``, where that is not ``model(rows)``. What it
            returns reaches the criterion: a tensor with one row a sample, or a tuple, list or dict of such; a tensor
            without dimensions (a ``logit_scale``) is taken to be one for all.
        scaler: A ``GradScaler``: the loss is scaled before its backward pass; ``scaler.step`` stays yours. The value
            returned is not scaled.
        check: Compare each chunk's two encodings, and refuse a model that is not the same twice: by default where that
            costs no synchronisation, on the CPU.
        **keywords: For the criterion, of the whole batch: ``labels=``, ``pairs=``, …

    Returns:
        The loss, detached.

    Raises:
        ValueError: If ``chunk`` is below 1, the batch is empty (across ranks, one without rows may be), sides and models
            differ in number, tensors of a side differ in rows, inputs carry a graph, or an output has not one row a
            sample.
        TypeError: If there is nothing to split, or the criterion returns no single number.
        RuntimeError: Under ``torch.no_grad``; or if a second encoding differs from the first.

    Warns:
        UserWarning: Once a model, if BatchNorm is in training mode: its statistics are those of a chunk.

    Under ``DistributedDataParallel`` each model is synchronised once, in its last chunk's backward pass; ranks may have
    different numbers of chunks. A loss with ``gather=True`` then sees the rows of all ranks.

    Example:
        >>> import nearfar as nf
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(), nn.Linear(16, 4))
        >>> views = torch.randn(2, 100, 8)
        >>> loss = nf.cached_step(nf.NTXentLoss(), model, tuple(views), chunk=32)
        >>> loss.requires_grad, model[0].weight.grad.shape
        (False, torch.Size([16, 8]))
    """
    if not torch.is_grad_enabled():
        raise RuntimeError("cached_step trains, but gradients are off: leave torch.no_grad(), or call the loss itself")
    for name, given in (("criterion", criterion), ("encode", encode), ("scaler", getattr(scaler, "scale", scaler))):
        if not callable(given) and not (given is None and name != "criterion"):
            raise TypeError(f"{name} is a {type(given).__name__}: wanted {_WANTED[name]}")
    chunks = _read(model, inputs, chunk)
    _refuse_empty(chunks)
    models = {id(c.model): c.model for c in chunks if isinstance(c.model, nn.Module)}.values()
    _warn_of_batch_norm(models, chunks, chunk)
    chunks = _as_many(chunks)
    encode = encode or _call
    if isinstance(criterion, Joint) and criterion._tap is not None and "features" not in keywords:
        criterion, encode = _with_features(criterion, encode, chunks[-1].side)
    tensors = [t for c in chunks for t in leaves_of(c.rows)] + [p for m in models for p in m.parameters()]
    devices = {t.device for t in tensors} - {torch.device("cpu")}

    before = BufferState(models)
    with torch.no_grad():
        for c in chunks:
            c.random = RandomState(devices)
            c.outputs = encode(c.model, c.rows)
        torch.clear_autocast_cache()  # older versions of torch reuse weights cast here, which have no graph
        before.restore()
        sides = [_join([c for c in chunks if c.side == side]) for side in range(chunks[-1].side + 1)]

    loss = criterion(*sides, **keywords)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise TypeError(f"the criterion returned {what}; one number was wanted: take its mean")
    _backward([loss if scaler is None else scaler.scale(loss)])
    value = loss.detach().squeeze()
    del loss, sides  # with its graph

    after = RandomState(devices)
    last = {id(c.model): c for c in chunks}
    try:
        for c in chunks:
            assert c.random is not None
            # the one all-reduce of a model waits for its last chunk
            with contextlib.nullcontext() if last[id(c.model)] is c else _no_sync(c.model):
                c.random.restore()
                again = leaves_of(encode(c.model, c.rows))
                if check or (check is None and again[0].device.type == "cpu"):
                    _compare(again, c.first)
                taught = [(z, g) for z, g in zip(again, c.gradients()) if g is not None and z.requires_grad]
                if taught:
                    _backward([z for z, _ in taught], [g for _, g in taught])
    finally:
        after.restore()
    return value


@dataclass
class _Chunk:
    """Some rows of a side; then the random state they met, what the model made of them, and the gradients of that."""

    side: int
    model: Any
    rows: Any
    start: int
    stop: int
    final: bool  # of its side
    random: RandomState | None = None
    outputs: Any = None
    leaves: list[Tensor] = field(default_factory=list)  # the whole side's, as the criterion saw them

    @property
    def first(self) -> list[Tensor]:
        """What was encoded first."""
        return [z.detach()[self.start : self.stop] if z.ndim else z.detach() for z in self.leaves]

    def gradients(self) -> list[Tensor | None]:
        """Of this chunk's outputs; what is one for all chunks is taught by the last."""
        grads = [z.grad for z in self.leaves]
        return [
            None if g is None or not (g.ndim or self.final) else g[self.start : self.stop] if g.ndim else g
            for g in grads
        ]


def _read(model: Any, inputs: Any, chunk: int) -> list[_Chunk]:
    chunk = at_least("chunk", chunk, 1, "the number of rows to encode at a time, at least 1")
    sides = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    models = list(model) if isinstance(model, tuple | list) else [model] * len(sides)
    if len(models) != len(sides) or not sides:
        raise ValueError(f"{len(models)} models for {len(sides)} sides of inputs: pass one a side, or one for all")
    for one in models:
        if not callable(one):
            raise TypeError(f"a model is a {type(one).__name__}: wanted a module, or a function of the rows")
    return [
        _Chunk(k, m, rows, start, stop, stop == count)
        for k, (m, side) in enumerate(zip(models, sides))
        for rows, start, stop, count in split_rows(f"side {k + 1} of the inputs", side, chunk)
    ]


def _as_many(chunks: list[_Chunk]) -> list[_Chunk]:
    """Sharded weights are gathered by all ranks at once: one with fewer chunks of a side encodes empty ones besides."""
    sharded = [p for c in chunks if isinstance(c.model, nn.Module) for p in c.model.parameters() if is_sharded(p)]
    if not sharded:
        return chunks
    sides = [[c for c in chunks if c.side == side] for side in range(chunks[-1].side + 1)]
    most = torch.tensor([len(side) for side in sides], device=sharded[0].device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    for side, count in zip(sides, most.tolist()):
        last = side[-1]
        rows = rebuilt(last.rows, (leaf[:0] if leaf.ndim else leaf for leaf in leaves_of(last.rows)))
        side += [_Chunk(last.side, last.model, rows, last.stop, last.stop, False) for _ in range(count - len(side))]
    return [c for side in sides for c in side]


def _refuse_empty(chunks: list[_Chunk]) -> None:
    ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not any(c.stop for c in chunks) and not (ranks and torch.distributed.get_world_size() > 1):
        raise ValueError("the batch is empty: there is nothing to learn from")


def _call(model: Any, rows: Any) -> Any:
    if isinstance(rows, Mapping):
        return model(**rows)
    return model(*rows) if isinstance(rows, tuple | list) else model(rows)


def _with_features(criterion: Joint, encode: Encode, last_side: int) -> tuple[Callable[..., Tensor], Encode]:
    """A joint criterion reads a layer while the model runs: what it saw is cached beside the outputs."""
    if criterion.balance is not None:
        raise ValueError(
            'balance="gradient" follows a graph from the features to the outputs, which cached steps do not keep: '
            "build nf.Joint with weights= or alpha= alone"
        )
    if last_side:
        raise ValueError(
            f"nf.Joint takes one side and {last_side + 1} were given: concatenate the views, all first ones first"
        )

    def both(model: Any, rows: Any) -> Any:
        outputs = encode(model, rows)
        return outputs, criterion._features(None, outputs, learning=False).features

    def joint(seen: Any, **keywords: Any) -> Tensor:
        return criterion(seen[0], features=seen[1], **keywords)

    return joint, both


def _join(chunks: list[_Chunk]) -> Any:
    """What the chunks of a side gave, as one: leaves of the loss's graph."""
    shape = chunks[0].outputs
    for c in chunks:
        c.leaves = leaves_of(c.outputs)
        for z in c.leaves:
            if z.ndim and len(z) != c.stop - c.start:
                raise ValueError(
                    f"for {c.stop - c.start} rows the model returned a tensor {tuple(z.shape)}; one row for each was "
                    "wanted: say what to keep by encode=lambda model, rows: model(rows)[0]"
                )
    if not chunks[0].leaves:
        raise TypeError(
            f"the model returned a {type(shape).__name__} without tensors: say what to keep by encode=lambda model, "
            "rows: model(rows).pooler_output"
        )
    wholes = []
    for parts in zip(*(c.leaves for c in chunks), strict=True):
        whole = torch.cat(parts) if parts[0].ndim else parts[0].detach().clone()
        wholes.append(whole.requires_grad_(whole.is_floating_point()))
    for c in chunks:
        c.leaves, c.outputs = wholes, None
    return rebuilt(shape, iter(wholes))


def _backward(tensors: list[Tensor], gradients: list[Tensor] | None = None) -> None:
    with full_precision(tensors[0]):  # autocast is for forward passes
        torch.autograd.backward(tensors, gradients)


def _no_sync(model: Any) -> contextlib.AbstractContextManager[Any]:
    no_sync = getattr(model, "no_sync", None)
    return contextlib.nullcontext() if no_sync is None else no_sync()


def _compare(again: list[Tensor], first: list[Tensor]) -> None:
    """The same up to rounding (kernels may differ where a graph is kept)."""
    for new, old in zip(again, first, strict=True):
        if not new.is_floating_point() or not new.numel():
            continue
        off = float((new.detach() - old).abs().max())
        if off > torch.finfo(new.dtype).eps ** 0.5 * max(float(old.abs().max()), 1e-30):
            raise RuntimeError(
                f"a chunk encoded twice differs by up to {off:.3g}: the model is not the same twice under one random state, "
                "so that its gradients would be wrong. Random numbers from a torch.Generator or a device of the model's own, "
                "or a counter outside its buffers, do that. No gradient of this chunk was added (check=False goes on)"
            )


def _warn_of_batch_norm(models: Any, chunks: list[_Chunk], chunk: int) -> None:
    if all(c.final and not c.start for c in chunks):
        return
    for model in models:
        name = next((n for n, m in model.named_modules() if isinstance(m, _BATCH_NORMS) and m.training), None)
        if name is None or model in _warned:
            continue
        _warned.add(model)
        warnings.warn(
            f"BatchNorm in training mode ({name!r}): each chunk of {chunk} rows is normalised by its own statistics, so that "
            "this step equals a large batch encoded in chunks, not in one; running statistics move once a chunk. "
            "GroupNorm or LayerNorm, or BatchNorm in eval() mode, know no batch. SyncBatchNorm joins the chunks of the ranks, "
            "not those of a rank, and needs as many on each",
            stacklevel=3,
        )
