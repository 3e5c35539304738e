"""Reading a layer's output without changing the model: a forward hook keeps a copy, until it is taken.

A copy, because what follows may write into the layer's output: ``nn.ReLU(inplace=True)``, ``x += shortcut``. It is made
of the pooled features, which the contrast needs anyway, so that even large maps cost next to nothing.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

Pool = Literal["mean", "first"]

# Passes of a training model that may wait for their call of the criterion; each keeps its graph alive.
MOST_WAITING = 8
_REMEDY = "Call the criterion right after the model has run once, on all rows; or pass features= at the call"


def pooled(features: Tensor, pool: str) -> Tensor:  # plain types, as it is compiled with the model
    """Features as rows ``(n, d)``: the mean over places ``(n, d, h, w)`` or tokens ``(n, tokens, d)``, or the first token."""
    if features.ndim == 3:
        return features[:, 0] if pool == "first" else features.mean(1)
    return features.flatten(2).mean(2) if features.ndim > 3 else features


@dataclass(eq=False)
class Captured:
    """What a layer gave in one forward pass."""

    features: Float[Tensor, "n ..."]
    """A copy, as rows where the layer gives more."""
    at: Tensor | GradientEdge
    """Where gradients at the layer's own output are taken; where it carried none, the output itself."""
    number: int = 0
    """Which pass it was, as the graph has it; 0: the graph does not tell."""
    waits: bool = False
    """Whether it is kept when the layer runs again: the model was training, with gradients."""
    version: int | None = None
    """How often an output without gradients had been written to."""
    fresh: bool = True
    """Whether it ran since the last training call."""


class Tap:
    """What a module gives in each forward pass, each taken once.

    The module holds the tap, the tap holds no module: whoever owns the tap neither owns the model nor keeps it alive.
    A copy of the model carries a hook that does nothing.

    Args:
        module: The layer to read.
        pool: How its output becomes rows, see ``pooled``.

    Raises:
        TypeError: If it is not a module.
    """

    def __init__(self, module: nn.Module, pool: Pool = "mean") -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"features is a {type(module).__name__}, wanted a layer of the model such as model.avgpool; "
                "features that are already tensors go to the call: criterion(outputs, targets, features=f)"
            )
        self.name = type(module).__name__
        self._catch = _Catch(pool)
        # Plain arguments, not bound methods: the finaliser must not keep this object alive.
        self._remove = weakref.finalize(self, module.register_forward_hook(self._catch).remove)

    def take(self, outputs: Any = None) -> Captured | None:
        """What the layer gave in the pass that made these outputs; None: it has not run since the last call.

        Args:
            outputs: What the model returned. Where they carry no graph, the last pass is meant.

        Raises:
            RuntimeError: If it cannot be told which pass is meant.
            TypeError: If the module does not return a tensor, or a tuple that starts with one.
        """
        catch = self._catch
        if catch.other is not None:
            other, keys = catch.other, ""
            catch.clear()
            if hasattr(other, "keys"):
                keys = f" with {', '.join(map(str, other))}"
            raise TypeError(
                f"{self.name} returns a {type(other).__name__}{keys}, not a tensor: name a layer inside it that returns "
                "one, or pass the tensor to the call: criterion(outputs, targets, features=f)"
            )
        ends = [tensor.grad_fn for tensor in _tensors(outputs) if tensor.grad_fn is not None]
        one = self._compiled(ends) if catch.compiled is not None else self._waiting(ends)
        return None if one is None else _settled(one, catch.pool)

    def forget(self) -> None:
        """Uses up what was captured."""
        self._catch.clear()

    def close(self) -> None:
        """Takes the hook off the module."""
        self._remove()
        self._catch.clear()

    def _waiting(self, ends: list[Node]) -> Captured | None:
        """The pass whose mark is on the way to the outputs, which end in these nodes of the graph."""
        catch = self._catch
        waiting = catch.waiting
        reached = catch.marks(ends, enough=waiting[0].number if len(waiting) == 1 else 0) if waiting else set()
        found = [one for one in waiting if one.number in reached]
        if reached and not found:
            raise RuntimeError(
                f"no features: {self.name} did run for these outputs, but what it gave is gone: a pass serves one call of "
                f"the criterion, and {MOST_WAITING} passes wait at most. {_REMEDY}"
            )
        if not found:  # outputs without a graph, or features beside the way to them
            found = [one for one in waiting if one.fresh]
            found = found if ends else found[-1:]
        if not found:
            return None
        *others, one = found
        before = catch.marks([one.at.node]) if others and isinstance(one.at, GradientEdge) else set[int]()
        if not {other.number for other in others} <= before:  # not one after the other
            catch.clear()
            raise RuntimeError(
                f"{self.name} ran {len(found)} times for these outputs, or since the last call, and it cannot be told "
                f"which run is meant. {_REMEDY}. (nn.DataParallel runs it on each copy of the model.)"
            )
        catch.waiting = [other for other in waiting if other is not one and other.number]
        for other in catch.waiting:
            other.fresh &= not one.waits
        return one

    def _compiled(self, ends: list[Node]) -> Captured:
        """The last pass of a compiled model, which may leave no marks: features and outputs come from the same graphs."""
        output = self._catch.compiled
        assert output is not None
        self._catch.clear()
        if output.requires_grad and ends and _copied(output).isdisjoint(_way_to(ends)):
            raise RuntimeError(
                f"these outputs do not come from the last run of {self.name}, the only one that is kept of a compiled "
                f"model. {_REMEDY}"
            )
        return Captured(output, output)


class _Catch:
    """The hook itself, which stays with the module; a copy keeps nothing."""

    _names = itertools.count()

    def __init__(self, pool: Pool) -> None:
        self.pool: Pool = pool
        self.mark = f"nearfar.joint {next(self._names)}"
        self.count = 0
        self.read = True
        self.clear()

    def clear(self) -> None:
        """Forgets what was captured."""
        self.waiting: list[Captured] = []
        self.compiled: Tensor | None = None
        self.other: Any = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self.read:
            return
        first = output[0] if isinstance(output, tuple | list) and output else output
        if torch.compiler.is_compiling():  # part of the model's graph: what is counted there compiles it anew each time
            self.compiled, self.other = (_copy(first, self.pool), None) if isinstance(first, Tensor) else (None, first)
            return
        if torch._C._current_graph_task_id() != -1:  # activation checkpointing repeats an old pass in the backward pass
            return
        self.compiled, self.other = None, None if isinstance(first, Tensor) else first
        self.waiting = [one for one in self.waiting if one.fresh and one.waits]
        if isinstance(first, Tensor):
            self.waiting = [*self.waiting, self._captured(first, module.training)][-MOST_WAITING:]

    def _captured(self, output: Tensor, training: bool) -> Captured:
        copy = _copy(output, self.pool)
        if not copy.requires_grad:
            followed = not (output.is_inference() or output.requires_grad)
            return Captured(copy, output, version=output._version if followed else None)
        self.count += 1
        at = get_gradient_edge(output)
        _notes(at.node)[self.mark] = self.count
        return Captured(copy, at, self.count, training)

    def marks(self, ends: Iterable[Node], enough: int = 0) -> set[int]:
        """The numbers of the passes on the way to nodes of the graph; the search may stop at one of them."""
        found: set[int] = set()
        for node in _way_to(ends):
            number = _notes(node).get(self.mark)
            if number is not None:
                found.add(number)
                if number == enough:
                    break
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"pool": self.pool}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state.get("pool", "mean"))
        self.read = False  # nobody knows of the copy


def check_given(features: Any) -> Float[Tensor, "n ..."]:
    """Features given to the call, if they are a tensor of floats.

    Raises:
        TypeError: If they are not.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise TypeError(f"features are {kind}: floats in a tensor were wanted, (n, d), (n, tokens, d) or (n, d, h, w)")
    return features


def _copy(output: Tensor, pool: str) -> Tensor:
    """Rows that nothing else writes to."""
    rows = pooled(output, pool)
    return rows.clone() if output.ndim < 3 or (output.ndim == 3 and pool == "first") else rows


def _settled(one: Captured, pool: Pool) -> Captured:
    """Features that got their gradient after they were captured: what a checkpoint that reenters returns."""
    output = one.at
    if (
        one.version is not None
        and isinstance(output, Tensor)
        and output.requires_grad
        and output._version == one.version
    ):
        return Captured(_copy(output, pool), output)
    return one


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """The tensors in what a model returned."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping | tuple | list):
        for part in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(part)


def _notes(node: Node) -> dict[str, int]:
    """What is written down at a node of the graph, and goes with it."""
    return node.metadata  # type: ignore[return-value]  # typed as a method, which it is not


def _copied(copy: Tensor) -> set[Node]:
    """The nodes that copied an output as rows, a few in a line, and the one that gave it."""
    nodes, node = set[Node](), copy.grad_fn
    while node is not None and node.next_functions and len(nodes) < 4:
        nodes.add(node)
        node = node.next_functions[0][0] if len(node.next_functions) == 1 else None
    return nodes


def _way_to(ends: Iterable[Node]) -> Iterator[Node]:
    """The nodes of the graph that lead to these, the nearest first."""
    queue = deque(ends)
    seen = set(queue)
    while queue:
        yield (node := queue.popleft())
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                queue.append(before)


def check_captured(captured: Captured | None, name: str | None, wants_gradient: bool) -> Captured:
    """What a tap held, or why there is nothing to use.

    Args:
        captured: The features, if any.
        name: The layer they come from; None: no layer is read.
        wants_gradient: Whether they are to be trained.

    Raises:
        RuntimeError: If there are no features, or they carry no gradient where one is wanted.
    """
    if name is None:
        raise RuntimeError(
            "no features: build the criterion with features=model.avgpool (your layer), attach(layer) to a copied or "
            "loaded one, or pass features= at the call"
        )
    if captured is None:
        raise RuntimeError(
            f"no features: {name} has not run since the last call. Run the model before each call of the criterion, hook "
            "a layer that its forward pass uses, or pass features= at the call. A compiled model that ran before the "
            "criterion was built does not see the hook: call torch.compiler.reset()"
        )
    if wants_gradient and not captured.features.requires_grad:
        raise RuntimeError(
            f"the features of {name} carry no gradient, so that contrast would teach the model nothing: the forward pass "
            "ran under torch.no_grad, every layer up to there is frozen, or the layer lies within a checkpoint that "
            "reenters (pass checkpoint(..., use_reentrant=False))"
        )
    return captured
