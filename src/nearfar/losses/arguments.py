"""What losses take and refuse: the common options, and checks that say what was given, what was wanted and the remedy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.scores import BACKENDS
from nearfar.scores.autograd import in_transform
from nearfar.types import Backend, Precision

# Loss functions annotate plain tensors: they check shapes themselves, to say what was wanted and what to do.


class Options(TypedDict, total=False):
    """What every in-batch loss takes beside its own arguments, at the constructor or at the call."""

    normalize: bool
    """Divide rows by their norm; each loss has its own default."""
    weights: Tensor
    """One weight a query (or a sample, where views are concatenated) for the mean."""
    offsets: Tensor
    """One number a key, added to its score after the temperature (softmax losses): logQ correction; −∞ leaves it out."""
    query_rows: Tensor
    """Sample ids of the queries ``(n,)``: with ``key_rows`` they tell that a key is the query's own sample."""
    key_rows: Tensor
    """Sample ids of the keys ``(m,)``."""
    backend: Backend | None
    """The plan by name; the fastest by default."""
    precision: Precision | None
    """``"bf16"`` rounds the rows to bfloat16 before their products (not in losses against classes, noise or moments)."""
    gather: bool | Literal["ring"]
    """See the rows of all ranks: gather their keys, or (softmax losses) let them go round, for less memory (docs/scaling.md)."""
    validate: bool | None
    """Check values (NaN, ranges) too: by default where that costs no synchronisation, on the CPU."""


def nearest(name: str, known: Any) -> str:
    """The end of an error about an unknown name: the nearest known one, and all of them."""
    known = sorted(map(str, known))
    plain = {other.lower(): other for other in known}
    close = difflib.get_close_matches(str(name).lower(), plain, 1)
    return (f": did you mean {plain[close[0]]!r}?" if close else ";") + f" known are {', '.join(map(repr, known))}"


def check_names(options: Mapping[str, Any]) -> None:
    """Refuse unknown names of options, backends and precisions."""
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        name = min(unknown)
        raise TypeError(f"there is no option {name!r}{nearest(name, Options.__annotations__)}")
    backend, precision = options.get("backend"), options.get("precision")
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known{nearest(backend, BACKENDS)}")
    if options.get("gather") not in (None, False, True, "ring"):
        raise ValueError(f"gather={options['gather']!r} is not known: True, False or 'ring'")
    if precision is not None and precision != "bf16":
        raise ValueError(
            f"precision={precision!r} is not known{nearest(precision, ['bf16'])}, or None for full precision"
        )


def choice(what: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a value that is not among the known ones."""
    if value not in known:
        raise ValueError(f"{what}={value!r} is not known{nearest(value, known)}")


def check_range(what: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = True) -> None:
    """Refuse a number outside a range; tensors on an accelerator are taken on trust, since looking would wait."""
    if isinstance(value, Tensor):
        if value.device.type != "cpu" or tracing():
            return
        value = float(value.detach().min())
    if not (value > low if open_low else value >= low) or not value < high:
        bound = f"{'above' if open_low else 'at least'} {low:g}" + (f" and below {high:g}" if high < math.inf else "")
        raise ValueError(f"{what} is {value:g}, but must be finite and {bound}")


def refuse(options: Options, name: Literal["offsets", "weights"], why: str) -> None:
    """Refuse an option that a loss could only ignore."""
    if options.get(name) is not None:
        raise TypeError(f"{name}= were given, but {why}")


def tracing() -> bool:
    """Whether values cannot be looked at: under torch.compile or a transform of torch.func."""
    return torch.compiler.is_compiling() or in_transform()


def check_rows(name: str, rows: Tensor, validate: bool | None) -> None:
    """Refuse rows with NaN or infinity, naming the first."""
    look = rows.device.type == "cpu" if validate is None else validate
    if not look or tracing() or _finite_sum(rows):
        return
    bad = (~rows.detach().isfinite()).any(-1).reshape(-1).nonzero()
    if len(bad):  # else the sum alone overflowed
        raise ValueError(
            f"{name} has NaN or infinity in {len(bad)} of {rows.shape[0]} rows, first in row {int(bad[0])}: "
            "look at the learning rate, at the encoder's last layer, or at mixed precision without loss scaling"
        )


def check_weights(weights: Tensor | None, validate: bool | None) -> Tensor | None:
    """Refuse weights of a mean that are below 0 or not finite, naming the first."""
    look = weights is not None and (weights.device.type == "cpu" if validate is None else validate) and not tracing()
    if look and weights is not None:
        bad = (~((weights >= 0) & weights.isfinite())).reshape(-1).nonzero()
        if len(bad):
            place = int(bad[0])
            raise ValueError(
                f"weights has {weights.reshape(-1)[place]:g} in row {place}: a mean takes weights of 0 or more, and 0 leaves out"
            )
    return weights


def check_offsets(offsets: Tensor | None, validate: bool | None) -> None:
    """Refuse offsets that are NaN or +∞, naming the first; −∞ leaves its key out."""
    look = offsets is not None and (offsets.device.type == "cpu" if validate is None else validate) and not tracing()
    if look and offsets is not None:
        bad = (~(offsets < torch.inf)).reshape(-1).nonzero()
        if len(bad):
            place = int(bad[0])
            raise ValueError(
                f"offsets has {offsets.reshape(-1)[place]:g} in row {place}: a key's offset is a number, and −∞ leaves the key out"
            )


def _finite_sum(rows: Tensor) -> bool:
    return math.isfinite(float(rows.detach().sum(dtype=torch.float32 if rows.itemsize < 4 else None)))


def as_matrix(name: str, rows: Any) -> Float[Tensor, "n d"]:
    """Refuse what is no float matrix."""
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name} is a {type(rows).__name__}; a tensor of embeddings (n, d) was wanted")
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(f"{name} has shape {tuple(rows.shape)} and dtype {rows.dtype}; floats (n, d) were wanted")
    return rows


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any is; else float32: statistics of half-precision rows are never kept in half precision."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


# ---- temperature ----------------------------------------------------------------------------------------------------


def scale_of(
    temperature: float | Tensor, logit_scale: float | Tensor | None, like: Tensor, validate: bool | None = None
) -> float | Tensor:
    """``1/τ``, or the multiplier that takes its place."""
    if logit_scale is not None:
        check_range("logit_scale", logit_scale, 0.0)
        return logit_scale.to(like.dtype) if isinstance(logit_scale, Tensor) else logit_scale
    check_range("temperature", temperature, 0.0)
    return temperature.to(like.dtype).reciprocal() if isinstance(temperature, Tensor) else 1.0 / temperature


def parameter(value: float | Tensor, like: Tensor) -> Tensor:
    """A number as a tensor that element functions can read and that keeps its gradient."""
    if isinstance(value, Tensor):
        return value.to(device=like.device, dtype=like.dtype)
    return torch.full((), value, dtype=like.dtype, device=like.device)
