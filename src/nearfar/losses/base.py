"""What every loss shares: reading its arguments, the mean, the functional form, and the module around it.

A loss is a pure function that returns an :class:`Outcome`: how to get its value, how to get its values by query, and what it
saw. :func:`loss_function` makes the public function of it; :class:`Loss` is the thin module that holds its options.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, ParamSpec, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from nearfar.pairs import Pairs
from nearfar.scores import BACKENDS, Scores, normalize
from nearfar.scores.autograd import full_precision, in_transform
from nearfar.scores.gather import gather_rows
from nearfar.types import Backend, Precision, Similarity

P = ParamSpec("P")
# Loss functions annotate plain tensors: they check shapes themselves, to say what was wanted and what to do.


class Options(TypedDict, total=False):
    """What every in-batch loss takes beside its own arguments, at the constructor or at the call."""

    normalize: bool
    """Divide rows by their norm; each loss has its own default."""
    weights: Tensor
    """One weight a query (or a sample, where views are concatenated) for the mean."""
    offsets: Tensor
    """One number a key, added to its score after the temperature (softmax losses): logQ correction."""
    query_rows: Tensor
    """Sample ids of the queries ``(n,)``: with ``key_rows`` they tell that a key is the query's own sample."""
    key_rows: Tensor
    """Sample ids of the keys ``(m,)``."""
    backend: Backend | None
    """The plan by name; the fastest by default."""
    precision: Precision | None
    """``"bf16"`` rounds the rows to bfloat16 before their products."""
    gather: bool
    """See the rows of all ranks."""
    validate: bool | None
    """Check values (NaN, ranges) too: by default where that costs no synchronisation, on the CPU."""


@dataclass(frozen=True)
class Outcome:
    """A loss that has read its arguments."""

    value: Callable[[], Float[Tensor, ""]]
    per_query: Callable[[], Float[Tensor, " n"]] | None
    stats: Callable[[], dict[str, Tensor]]


class LossFunction(Generic[P]):
    """A pure loss: calling it gives the value; ``outcome`` also its values by query and what it saw."""

    def __init__(self, outcome: Callable[P, Outcome]) -> None:
        self.outcome = outcome
        functools.update_wrapper(self, outcome)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Float[Tensor, ""]:
        """The loss, a scalar."""
        return self.outcome(*args, **kwargs).value()

    def __repr__(self) -> str:
        return f"<loss {self.__name__}>"  # pyright: ignore[reportAttributeAccessIssue]


def loss_function(outcome: Callable[P, Outcome]) -> LossFunction[P]:
    """Make the public functional form of a loss."""
    return LossFunction(outcome)


class Loss(nn.Module):
    """The module around a functional loss: it holds options and learnable parameters, nothing else."""

    function: ClassVar[LossFunction[...]]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        unknown = set(options) - (set(Options.__annotations__) | self.own_options)
        if unknown:
            name = min(unknown)
            raise TypeError(f"{type(self).__name__} has no option {name!r}{nearest(name, self._known())}")
        check_names({name: value for name, value in options.items() if name in Options.__annotations__})
        self.options = options
        self._stats: dict[str, Tensor] | Callable[[], dict[str, Tensor]] = {}

    own_options: ClassVar[frozenset[str]] = frozenset()

    def _known(self) -> list[str]:
        named = {name for name, p in inspect.signature(type(self)).parameters.items() if p.kind is not p.VAR_KEYWORD}
        return sorted(set(Options.__annotations__) | self.own_options | named)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the functional form that come from parameters and buffers."""
        return {}

    def outcome(self, *args: Any, **kwargs: Any) -> Outcome:
        """Read the arguments, without computing the value yet."""
        outcome = self.function.outcome(*args, **{**self.options, **self.arguments(), **kwargs})
        # counted when somebody looks, since small batches are all overhead
        # (and past nn.Module's own __setattr__, which looks for parameters)
        self.__dict__["_stats"] = outcome.stats() if torch.compiler.is_compiling() else outcome.stats
        return outcome

    @property
    def stats(self) -> dict[str, Tensor]:
        """Detached tensors of what the last call saw, such as how many queries had no positive."""
        if callable(self._stats):
            self._stats = self._stats()
        return self._stats

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stats": {}}

    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, ""]:
        """The loss, a scalar; the arguments are those of the functional form."""
        return self.outcome(*args, **kwargs).value()

    def per_query(self, *args: Any, **kwargs: Any) -> Float[Tensor, " n"]:
        """The loss's value for each query, 0 for queries that do not enter the mean.

        Raises:
            TypeError: For a loss that is no mean over queries.
        """
        outcome = self.outcome(*args, **kwargs)
        if outcome.per_query is None:
            raise TypeError(f"{type(self).__name__} does not decompose into queries in this call; use its scalar value")
        return outcome.per_query()

    @override
    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if not isinstance(value, Tensor))


# ---- arguments ------------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Batch:
    """A call in its canonical form."""

    scores: Scores
    weights: Float[Tensor, " n"] | None


def read(
    views: Sequence[Tensor],
    *,
    sided: bool,
    labels: Tensor | None,
    pairs: Pairs | None,
    options: Options,
    normalized: bool,
    similarity: Similarity = "dot",
) -> Batch:
    """Bring any call form to queries, keys and pairs (docs/losses.md, "Call forms").

    Args:
        views: One, two or more matrices of embeddings.
        sided: Whether two matrices are queries and keys, or views to be concatenated.
        labels: Once a sample.
        pairs: In place of labels.
        options: The call's options.
        normalized: The loss's default for ``normalize``.
        similarity: What a score is.
    """
    check_names(options)
    if not views:
        raise TypeError(
            "no embeddings were given: call loss(z, labels=y), loss(z1, z2) or loss(queries, keys, pairs=…)"
        )
    if len(views) == 1 and isinstance(views[0], Tensor) and views[0].ndim == 3 and not sided:
        views = tuple(views[0].unbind(1))
    views = [as_matrix(f"embeddings {k + 1}" if len(views) > 1 else "embeddings", z) for k, z in enumerate(views)]
    for k, z in enumerate(views):
        check_rows(f"embeddings {k + 1}" if len(views) > 1 else "embeddings", z, options.get("validate"))
        if z.shape[1] != views[0].shape[1]:
            raise ValueError(f"embeddings have {views[0].shape[1]} and {z.shape[1]} features: both need the same")
    if labels is not None and pairs is not None:
        raise ValueError("labels and pairs were both given: pass one (Pairs.by_label(labels) | pairs unites them)")
    if pairs is not None and not isinstance(pairs, Pairs):
        raise TypeError(
            f"pairs is a {type(pairs).__name__}; use Pairs.from_matrix(…) or another constructor of nf.Pairs"
        )
    if sided and len(views) > 2:
        raise TypeError(f"{len(views)} matrices were given; one or two (queries, keys) were wanted")
    if len(views) > 1 and pairs is None and len({len(z) for z in views}) > 1:
        raise ValueError(
            f"the sides have {' and '.join(str(len(z)) for z in views)} rows, so that row i of one has no partner: "
            "pass pairs=, or the same number of rows"
        )
    if labels is not None:
        labels = torch.as_tensor(labels, device=views[0].device)
        if len(labels) != len(views[0]):
            raise ValueError(
                f"labels have {len(labels)} entries but there are {len(views[0])} samples: pass one label a sample"
                + (" (not one a view)" if len(labels) == sum(map(len, views)) and len(views) > 1 else "")
            )
    if (options.get("query_rows") is None) != (options.get("key_rows") is None):
        raise ValueError("query_rows and key_rows go together: pass the sample ids of both sides, or of neither")
    dtype, n, count = working_dtype(*views), len(views[0]), len(views)
    stacked = count if not sided and pairs is None else 1  # views one behind the other
    sides = {"query": stacked * n, "key": stacked * n if count in (1, stacked) else len(views[1])}
    columns = [
        _per_row(name, options.get(name), side, sides[side], stacked)
        for name, side in (("weights", "query"), ("offsets", "key"), ("query_rows", "query"), ("key_rows", "key"))
    ]
    if options.get("gather"):
        views, labels, pairs, columns = gather_rows(tuple(views), labels, pairs, columns, stacked)
        n = len(views[0])
    weights, offsets, query_rows, key_rows = columns

    unit = options.get("normalize", normalized)
    with full_precision(views[0]):
        if count in (1, stacked):
            queries = keys = torch.cat([z.to(dtype) for z in views]) if count > 1 else views[0].to(dtype)
            if pairs is None:
                pairs = _own_pairs(n, count, labels, views[0].device)
            pairs = pairs.excluding_self()
        else:
            if count > 2:
                raise TypeError(f"{count} matrices were given with pairs=; one or two (queries, keys) were wanted")
            queries, keys = (z.to(dtype) for z in views)
            if pairs is None:
                pairs = Pairs.aligned(n, views[0].device) if labels is None else Pairs.by_label(labels)
        if options.get("precision") == "bf16":
            same, unit, full = keys is queries, False, normalize if unit else lambda z: z
            queries = _rounded(full(queries))
            keys = queries if same else _rounded(full(keys))
    if pairs.shape != (len(queries), len(keys)):
        raise ValueError(
            f"pairs are {pairs.shape[0]} × {pairs.shape[1]} but there are {len(queries)} queries and {len(keys)} keys"
        )
    if query_rows is not None and key_rows is not None:
        pairs = pairs.excluding(query_rows, key_rows)
    offsets = None if offsets is None else offsets.to(dtype)
    scores = Scores(queries, keys, pairs.to(queries.device), similarity, offsets, options.get("backend"), unit)
    return Batch(scores, None if weights is None else weights.to(dtype))


def _own_pairs(n: int, count: int, labels: Tensor | None, device: torch.device) -> Pairs:
    if labels is not None:
        return Pairs.by_label(labels if count == 1 else labels.repeat(count, *[1] * (labels.ndim - 1)))
    if count == 1:
        raise ValueError(
            "one matrix of embeddings was given without labels or pairs, so that nothing belongs together: "
            "pass labels=, pairs=, or a second view"
        )
    return Pairs.views(n, count, device)


def _per_row(name: str, values: Tensor | None, what: str, rows: int, stacked: int) -> Tensor | None:
    if values is None:
        return None
    if values.ndim != 1 or len(values) not in (rows, rows // stacked):
        raise ValueError(f"{name} have shape {tuple(values.shape)}; one number a {what}, ({rows},), was wanted")
    return values.repeat(stacked) if len(values) != rows else values


def _rounded(rows: Tensor) -> Tensor:
    """Rows as bfloat16 sees them; the gradient passes straight through."""
    return rows + (rows.detach().bfloat16().to(rows.dtype) - rows.detach())


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


# ---- means ----------------------------------------------------------------------------------------------------------


def mean_weights(keep: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Float[Tensor, " n"]:
    """Weights of a mean over the queries that are kept; all 0 where none is."""
    kept = keep.to(dtype) if weights is None else weights * keep
    total = kept.sum()
    return kept / total.masked_fill(total == 0, 1.0)


def averaged(
    values: Callable[[], Tensor], keep: Tensor, weights: Tensor | None, stats: Callable[[], dict[str, Tensor]]
) -> Outcome:
    """The mean of values by query over the queries that are kept."""

    def per_query() -> Tensor:
        found = values()
        return torch.where(keep, found, torch.zeros_like(found))

    def value() -> Tensor:
        found = per_query()
        return (found * mean_weights(keep, weights, found.dtype)).sum()

    return Outcome(value, per_query, stats)


def query_stats(scores: Scores, *, negatives: bool = False) -> Callable[[], dict[str, Tensor]]:
    """What every in-batch loss counts, when asked."""
    pairs = scores.pairs  # not the scores, whose rows hold a graph

    def count() -> dict[str, Tensor]:
        without = {"queries_without_positive": (pairs.count("positives") == 0).sum()}
        if negatives:
            without["queries_without_negative"] = (pairs.count("negatives") == 0).sum()
        return {"queries": torch.tensor(pairs.shape[0]), **without}

    return count


Form = Literal["out", "in"]
"""Several positives: the mean of log-probabilities, or the logarithm of their mean."""
