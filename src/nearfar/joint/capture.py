"""Reading a layer's output without changing the model: a forward hook that keeps what it saw until it is taken."""

from __future__ import annotations

import weakref
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class Tap:
    """The last output of a module, taken once.

    The module holds the tap, the tap holds no module: whoever owns the tap neither owns the model nor keeps it alive.
    A copy of the model carries a tap of its own that nobody reads, and no tensors.

    Args:
        module: Whose output to keep.

    Raises:
        TypeError: If it is not a module.
    """

    def __init__(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"features is a {type(module).__name__}, wanted a layer of the model such as model.avgpool; "
                "features that are already tensors go to the call: criterion(outputs, targets, features=f)"
            )
        self.name = type(module).__name__
        self._catch = _Catch()
        # Plain arguments, not bound methods: the finaliser must not keep this object alive.
        self._remove = weakref.finalize(self, module.register_forward_hook(self._catch).remove)

    def take(self) -> Float[Tensor, "n ..."] | None:
        """The output of the last forward pass since the last call, or None.

        Raises:
            TypeError: If the module does not return a tensor, or a tuple that starts with one.
        """
        output, self._catch.output = self._catch.output, None
        first = output[0] if isinstance(output, tuple | list) and output else output
        if first is None or isinstance(first, Tensor):
            return first
        keys = f" with {', '.join(map(str, first))}" if hasattr(first, "keys") else ""
        raise TypeError(
            f"{self.name} returns a {type(first).__name__}{keys}, not a tensor: name a layer inside it that returns "
            "one, or pass the tensor to the call: criterion(outputs, targets, features=f)"
        )

    def close(self) -> None:
        """Takes the hook off the module."""
        self._remove()
        self._catch.output = None


class _Catch:
    """The hook itself, which stays with the module; copied and pickled empty."""

    def __init__(self) -> None:
        self.output: Any = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.output = output

    def __getstate__(self) -> dict[str, None]:
        return {"output": None}


def check_given(features: Any) -> Float[Tensor, "n ..."]:
    """Features given to the call, if they are a tensor of floats.

    Raises:
        TypeError: If they are not.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise TypeError(f"features are {kind}: floats in a tensor were wanted, (n, d), (n, tokens, d) or (n, d, h, w)")
    return features


def check_captured(
    captured: Float[Tensor, "n ..."] | None, name: str | None, wants_gradient: bool
) -> Float[Tensor, "n ..."]:
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
    if wants_gradient and not captured.requires_grad:
        raise RuntimeError(
            f"the features of {name} carry no gradient, so that contrast would teach the model nothing: the forward pass "
            "ran under torch.no_grad, or every layer up to there is frozen"
        )
    return captured
