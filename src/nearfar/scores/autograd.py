"""What the engine's autograd functions share."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=type[torch.autograd.Function])


def presigned(function: F) -> F:
    """Keep the signature of ``forward``, which torch would otherwise work out at every call (some 20 µs)."""
    forward: Any = function.forward
    forward.__signature__ = inspect.signature(forward)
    return function


def one_gradient(function: F) -> F:
    """Refuse several gradients at once, as ``jacrev`` has them, where the way back writes in place."""
    backward: Any = function.backward

    @functools.wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> Any:
        for gradient in gradients:
            if isinstance(gradient, Tensor) and _mapped(gradient):
                raise RuntimeError(
                    "this plan takes one gradient at a time, not several at once, as jacrev and is_grads_batched=True have "
                    "them: pass backend='dense' to the loss, which takes them"
                )
        return backward(ctx, *gradients)

    function.backward = staticmethod(checked)
    return function


def _mapped(gradient: Tensor) -> bool:
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return functorch.is_batchedtensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


def full_precision(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Autocast off, where it is on."""
    kind = like.device.type
    if not torch.amp.is_autocast_available(kind):  # as on the meta device
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def in_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, …) is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]


def beyond_a_gradient() -> bool:
    """Whether more is asked than one gradient, as ``vmap``, ``jvp``, ``hessian`` and a ``grad`` of a ``grad`` do."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    if not in_transform():
        return False
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    kinds = [one.key() for one in functorch.get_interpreter_stack()]
    return len(kinds) > 1 or kinds[0] != functorch.TransformType.Grad


def batched(gradient: Tensor) -> bool:
    """Whether it stands for several at once, as with ``is_grads_batched=True``: then nothing may be written in place."""
    return in_transform() or torch._C._functorch.is_legacy_batchedtensor(gradient)  # pyright: ignore[reportAttributeAccessIssue]


def once(gradient: Tensor | None, *inputs: Tensor | None) -> Tensor | None:
    """A gradient that says what to do when it is differentiated again, by any of ``inputs``: all that it depends on.

    What comes from above is among them: a gradient that stands alone would be taken for a constant, and lost silently.
    """
    if gradient is None or not torch.is_grad_enabled():
        return gradient
    return _Once.apply(gradient, *inputs)  # pyright: ignore[reportReturnType]


def made_in_forward(ctx: Any, gradient: Tensor) -> Iterator[Tensor | None]:
    """The gradients of a number that were made together with it, and saved behind as many inputs, whose they are."""
    saved = ctx.saved_tensors  # asked for once: a checkpoint makes them anew
    many = len(saved) // 2
    inputs, parts = saved[:many], saved[many:]
    if torch.is_grad_enabled():  # by what comes from above it can be differentiated: a factor
        return (None if part is None else _Once.apply(part, *inputs) * gradient for part in parts)  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
    return (None if part is None else _times(part, gradient) for part in parts)


def _times(part: Tensor, gradient: Tensor) -> Tensor:
    """A saved gradient times what comes from above: in its own memory, if the graph goes after this pass."""
    if torch.compiler.is_compiling() or batched(gradient) or _graph_is_kept():
        return part * gradient
    if gradient.device.type == "cpu" and float(gradient) == 1.0:
        return part
    return part.mul_(gradient)


def _graph_is_kept() -> bool:
    """Whether this backward pass leaves its graph to another one; yes, where torch doesn't tell."""
    known = getattr(torch._C, "_autograd")  # noqa: B009, which its stubs do not have
    return getattr(known, "_get_current_graph_task_keep_graph", lambda: True)()


class _Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *inputs: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError(
            "this plan has no second derivative: pass backend='dense' to the loss, which has all of them"
        )
