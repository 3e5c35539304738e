"""What every loss is: a pure function that returns an :class:`Outcome`, and the thin module around it.

An outcome says how to get the value, how to get the values by query, and what was seen. :func:`loss_function` makes the public
function of it; :class:`Loss` holds options and learnable parameters.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, ParamSpec

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from nearfar.losses.arguments import Options, Reading, check_names, nearest, tracing
from nearfar.scores import Scores
from nearfar.scores.autograd import full_precision
from nearfar.scores.gather import ALONE, Ranks
from nearfar.types import Rule

P = ParamSpec("P")


@dataclass(frozen=True)
class Outcome:
    """A loss that has read its arguments."""

    value: Callable[[], Float[Tensor, ""]]
    per_query: Callable[[], Float[Tensor, " n"]] | None
    stats: Callable[[], dict[str, Tensor]]


TRACED = 1024
"""Up to so many rows in all ``torch.compile`` sees through a loss; beyond, the engine, outside its graph, is faster and smaller."""
TRACED_AT_COST = 128
"""The same where a graph makes twice the scores that the engine visits, or distances by their definition."""


def _value(outcome: Callable[P, Outcome], *args: P.args, **kwargs: P.kwargs) -> Float[Tensor, ""]:
    with _island(args, kwargs):
        return outcome(*args, **kwargs).value()


def _island(args: Sequence[Any], kwargs: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Autocast off, from the reading of the arguments to the mean: no product of a loss is rounded."""
    like = next((z for z in (*args, *kwargs.values()) if isinstance(z, Tensor) and z.device.type != "meta"), None)
    return contextlib.nullcontext() if like is None else full_precision(like)


class LossFunction(Generic[P]):
    """A pure loss: calling it gives the value; ``outcome`` also its values by query and what it saw.

    Args:
        outcome: What reads a call's arguments.
        traced: Up to so many rows ``torch.compile`` sees through it.
        apart: Of a call's arguments, whether each row meets only those given with it: then there is no matrix to hold.
    """

    def __init__(
        self, outcome: Callable[P, Outcome], traced: int, apart: Callable[..., bool] = lambda *_, **__: False
    ) -> None:
        self.outcome, self.traced, self.apart = outcome, traced, apart
        self.takes: dict[str, Reading] = getattr(outcome, "takes", {})
        functools.update_wrapper(self, outcome)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Float[Tensor, ""]:
        """The loss, a scalar."""
        return self.run(self.outcome, args, kwargs)

    def run(
        self, outcome: Callable[..., Outcome], args: Sequence[Any], kwargs: Mapping[str, Any], **options: Any
    ) -> Float[Tensor, ""]:
        """The value; under ``torch.compile`` outside the graph where it would hold the scores of many rows."""
        if torch.compiler.is_compiling() and self._many(args, {**options, **kwargs}):
            from nearfar.losses.outside import outside  # the compiler is there by now, and slow to import

            return outside(_value, outcome, *args, **kwargs)
        return _value(outcome, *args, **kwargs)

    def _many(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether more rows score each other than a graph should hold."""
        if self.apart(*args, **kwargs):
            return False
        given = [z for z in (*args, *kwargs.values()) if isinstance(z, Tensor)]
        matrices = [z for z in given if z.ndim > 1 and z.is_floating_point()]
        return sum(z.numel() // max(z.shape[-1], 1) for z in matrices) > self.traced

    def __repr__(self) -> str:
        return f"<loss {self.__name__}>"  # pyright: ignore[reportAttributeAccessIssue]


def loss_function(outcome: Callable[P, Outcome]) -> LossFunction[P]:
    """Make the public functional form of a loss."""
    return LossFunction(outcome, TRACED)


def costly_to_trace(outcome: Callable[P, Outcome]) -> LossFunction[P]:
    """The same for a loss whose rows all score each other, or by distances."""
    return LossFunction(outcome, TRACED_AT_COST)


def unless(apart: Callable[..., bool], most: int) -> Callable[[Callable[P, Outcome]], LossFunction[P]]:
    """The same for a loss of at most so many rows, or of any number in calls where they do not score each other."""
    return lambda outcome: LossFunction(outcome, most, apart)


def without_scores(outcome: Callable[P, Outcome]) -> LossFunction[P]:
    """The same for a loss whose rows do not score each other: there is no matrix that a graph would hold."""
    return LossFunction(outcome, sys.maxsize)


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
        for name, rule in self.function.takes.items():
            if name in options:
                rule(name, options[name])
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
        """Detached tensors of what the last call saw, such as how many queries had no positive: of this rank's queries alone.

        Nothing is asked of other ranks, so that one of them may look by itself.
        """
        if callable(self._stats):
            self._stats = self._stats()
        return self._stats

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stats": {}}

    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, ""]:
        """The loss, a scalar; the arguments are those of the functional form."""
        return self.function.run(self.outcome, args, kwargs, **self.options)

    def per_query(self, *args: Any, **kwargs: Any) -> Float[Tensor, " n"]:
        """The loss's value for each query (of this rank), 0 for queries that do not enter the mean.

        Raises:
            TypeError: For a loss that is no mean over queries.
        """
        with _island(args, kwargs):
            outcome = self.outcome(*args, **kwargs)
            if outcome.per_query is None:
                raise TypeError(
                    f"{type(self).__name__} does not decompose into queries in this call; use its scalar value"
                )
            return outcome.per_query()

    @override
    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if not isinstance(value, Tensor))


def all_of(keep: Tensor) -> bool:
    """Whether nothing is left out, where a look costs less than the operations that it spares."""
    return keep.device.type == "cpu" and not tracing() and bool(keep.all())


def having(scores: Scores, *rules: Rule) -> Bool[Tensor, " n"] | None:
    """Which queries have a pair of every rule; ``None``: all, where a look costs less than the operations that it spares."""
    look = scores.query_rows.device.type == "cpu" and not tracing()
    if look and all(scores.pairs.every(rule) for rule in rules):
        return None
    return functools.reduce(torch.logical_and, [scores.count(rule) > 0 for rule in rules])


def kept(values: Tensor, keep: Tensor | None) -> Tensor:
    """0 for queries that do not enter the mean, whose values may be infinite."""
    return values if keep is None else torch.where(keep, values, 0.0)


# ---- means ----------------------------------------------------------------------------------------------------------


def mean_weights(keep: Tensor, weights: Tensor | None, dtype: torch.dtype, ranks: Ranks = ALONE) -> Float[Tensor, " n"]:
    """Weights of a mean over the queries of all ranks that are kept; all 0 where none is."""
    shares = keep.to(dtype) if weights is None else weights * keep
    total = ranks.total(shares.sum())
    return shares / total.clamp(min=torch.finfo(dtype).tiny)


def averaged(
    values: Callable[[], Tensor],
    keep: Tensor | None,
    weights: Tensor | None,
    stats: Callable[[], dict[str, Tensor]],
    ranks: Ranks = ALONE,
) -> Outcome:
    """The mean of values by query over the queries of all ranks that are kept (``None``: all are)."""

    def per_query() -> Tensor:
        return kept(values(), keep)

    def value() -> Tensor:
        if weights is None and ranks.alone and (keep is None or all_of(keep)):
            found = values()
            return found.mean() if len(found) else found.sum()
        found = per_query()
        counted = torch.ones_like(found) if keep is None else keep
        return ranks.total((found * mean_weights(counted, weights, found.dtype, ranks)).sum())

    return Outcome(value, per_query, stats)


def query_stats(scores: Scores, *, negatives: bool = False) -> Callable[[], dict[str, Tensor]]:
    """What every in-batch loss counts, when asked."""
    pairs = replace(scores.pairs)  # not the scores, whose rows hold a graph; nor what was found out about them

    def count() -> dict[str, Tensor]:
        without = {"queries_without_positive": (pairs.count("positives") == 0).sum()}
        if negatives:
            without["queries_without_negative"] = (pairs.count("negatives") == 0).sum()
        return {"queries": torch.tensor(pairs.shape[0]), **without}

    return count


Form = Literal["out", "in"]
"""Several positives: the mean of log-probabilities, or the logarithm of their mean."""
