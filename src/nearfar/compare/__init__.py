"""Does contrastive supervision make this network converge sooner, on these data? ``nearfar.compare(...)`` answers.

The package is also the function: ``nf.compare(data="digits")`` is ``nearfar.compare.convergence.compare``, whatever was
imported first. Loads no torch by itself.

Example:
    >>> import nearfar as nf
    >>> import nearfar.compare.statistics  # the package does not hide the function, nor the function the package
    >>> callable(nf.compare)
    True
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

from nearfar.compare.arms import ARMS, Arm
from nearfar.compare.config import CompareConfig

__all__ = ["ARMS", "Arm", "CompareConfig", "Comparison", "Interrupted", "compare"]  # pyright: ignore[reportUnsupportedDunderAll]

_LAZY = {"compare": "convergence", "Interrupted": "convergence", "Comparison": "result"}


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.compare(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.compare)

    def __getattr__(self, name: str) -> Any:
        if name in _LAZY:
            import importlib

            return getattr(importlib.import_module(f"nearfar.compare.{_LAZY[name]}"), name)
        raise AttributeError(f"module 'nearfar.compare' has no attribute {name!r}")


sys.modules[__name__].__class__ = _CallableModule
