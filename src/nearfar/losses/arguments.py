"""What losses take and refuse: the common options, and checks that say what was given, what was wanted and the remedy."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.given import as_tensor, is_integer
from nearfar.losses.numbers import PER_BATCH, Number, tracing
from nearfar.scores import BACKENDS
from nearfar.types import Backend, Precision

P = ParamSpec("P")
R = TypeVar("R")

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
    if backend is not None:
        choice("backend", backend, tuple(BACKENDS))
    if "normalize" in options:
        flag("normalize", options["normalize"])
    if options.get("validate") is not None:
        flag("validate", options["validate"])
    if options.get("gather") not in (None, False, True, "ring"):
        raise ValueError(f"gather={options['gather']!r} is not known: True, False or 'ring'")
    if precision is not None and precision != "bf16":
        raise ValueError(
            f"precision={precision!r} is not known{nearest(precision, ['bf16'])}, or None for full precision"
        )


def choice(what: str, value: Any, known: Sequence[str]) -> None:
    """Refuse a value that is not among the known ones."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{what}={value!r} is not known{nearest(value, known)}")


def check_range(what: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = True) -> None:
    """Refuse what is no number, or one outside a range."""
    Number(low, high, open_low, constant=True)(what, value)


Reading = Callable[[str, Any], Any]
"""What an argument may be: called with its name and what was given, it returns what to use, or refuses it."""


def one_of(*known: str) -> Reading:
    """One of the known names."""

    def rule(what: str, value: Any) -> Any:
        choice(what, value, known)
        return value

    return rule


def flag(what: str, value: Any) -> bool:
    """True or False, and nothing that Python takes for it."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{what} is {value!r}: True or False was wanted")
    return bool(value)


def a_generator(what: str, value: Any) -> torch.Generator | None:
    """A generator, or None: torch's own."""
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"{what} is {value!r}: a generator was wanted, torch.Generator().manual_seed(0)")
    return value


def or_none(rule: Reading) -> Reading:
    """The same, or None."""
    return lambda what, value: None if value is None else rule(what, value)


def takes(**rules: Reading) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare what a loss function's own arguments may be, by name: they are read at every call, and when its module is built."""

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def reading(*args: P.args, **kwargs: P.kwargs) -> R:
            given: dict[str, Any] = kwargs
            for name, rule in rules.items():
                if name in given:
                    given[name] = rule(name, given[name])
            return function(*args, **kwargs)

        reading.takes = rules  # pyright: ignore[reportAttributeAccessIssue]
        return reading

    return declare


def refuse(options: Options, name: Literal["offsets", "weights"], why: str) -> None:
    """Refuse an option that a loss could only ignore."""
    if options.get(name) is not None:
        raise TypeError(f"{name}= were given, but {why}")


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


def with_tensors(options: Options, device: torch.device) -> Options:
    """The options with what they have a row or a key as tensors beside the embeddings: lists and arrays will do."""
    given: dict[str, Any] = dict(options)
    for name, wanted in _COLUMNS.items():
        if given.get(name) is not None:
            given[name] = column = as_tensor(name, given[name], wanted, device)
            if column.layout != torch.strided:
                raise TypeError(f"{name} are {column.layout}: wanted a dense tensor, {name}.to_dense()")
            if column.is_complex() or (wanted == _IDS and not is_integer(column)):
                raise TypeError(f"{name} are {column.dtype}: wanted {wanted}")
    return given  # pyright: ignore[reportReturnType]


_IDS = "sample ids, integers"
_COLUMNS = {"weights": "one number a row", "offsets": "one number a row", "query_rows": _IDS, "key_rows": _IDS}


def check_weights(weights: Tensor | None, validate: bool | None, rows: int | None = None) -> Tensor | None:
    """Refuse weights of a mean that are not one a row, below 0 or not finite, naming the first."""
    if weights is not None and rows is not None and weights.shape != (rows,):
        raise ValueError(f"weights have shape {tuple(weights.shape)}; one number a row, ({rows},), was wanted")
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


def as_floats(name: str, rows: Any, beside: Tensor | None = None, wanted: str = "(n, d)") -> Float[Tensor, "..."]:
    """Refuse what is no dense tensor of floats, or lies on another device than what it goes with."""
    if not isinstance(rows, Tensor):
        remedy = ": pass torch.as_tensor(…)" if isinstance(rows, list | np.ndarray) else ""
        raise TypeError(f"{name} is a {type(rows).__name__}; a tensor of embeddings {wanted} was wanted{remedy}")
    if rows.layout != torch.strided or rows.is_nested or rows.device.type == "meta":
        kind = "nested" if rows.is_nested else rows.layout if rows.layout != torch.strided else "on the meta device"
        raise ValueError(f"{name} is a tensor that is {kind}; a dense one of floats {wanted} was wanted")
    if not rows.is_floating_point():
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)} and dtype {rows.dtype}; floats {wanted} were wanted; labels are integers, in "
            "labels=, and who else belongs together is said by pairs="
        )
    if beside is not None and rows.device != beside.device:
        raise ValueError(
            f"{name} lies on {rows.device}, what goes with it on {beside.device}: both need the same device"
        )
    return rows


def as_matrix(name: str, rows: Any, beside: Tensor | None = None) -> Float[Tensor, "n d"]:
    """Refuse what is no matrix of floats, or lies on another device than what it goes with."""
    rows = as_floats(name, rows, beside)
    if rows.ndim != 2:
        hint = "; labels are integers, in labels=" if rows.ndim == 1 and beside is not None else ""
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)} and dtype {rows.dtype}; floats (n, d) were wanted{hint}"
        )
    return rows


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any is; else float32: statistics of half-precision rows are never kept in half precision."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


# ---- temperature ----------------------------------------------------------------------------------------------------


def scale_of(temperature: float | Tensor, logit_scale: float | Tensor | None, like: Tensor) -> float | Tensor:
    """``1/τ``, or the multiplier that takes its place."""
    if logit_scale is not None:
        scale = PER_BATCH("logit_scale", logit_scale)
        return scale.to(like) if isinstance(scale, Tensor) else scale
    found = PER_BATCH("temperature", temperature)
    return found.to(like).reciprocal() if isinstance(found, Tensor) else 1.0 / found


def parameter(value: float | Tensor, like: Tensor) -> Tensor:
    """A number as a tensor that element functions can read and that keeps its gradient."""
    if isinstance(value, Tensor):
        return value.to(device=like.device, dtype=like.dtype)
    return torch.full((), value, dtype=like.dtype, device=like.device)
