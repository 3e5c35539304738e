"""Contrastive learning for PyTorch: pull what belongs together near, push the rest far.

The public names are loaded on first use, so that ``import nearfar`` costs little over ``import torch``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives. The one place to add one.
_PUBLIC: dict[str, tuple[str, ...]] = {
    "nearfar.pairs": ("Pairs",),
    "nearfar.losses.contrastive": ("ContrastiveLoss", "SpectralLoss"),
    "nearfar.losses.triplet": ("TripletLoss",),
    "nearfar.losses.softmax": ("InfoNCELoss", "NTXentLoss", "SupConLoss"),
    "nearfar.losses.two_sided": ("CLIPLoss", "SigLIPLoss"),
    "nearfar.losses.raw_softmax": ("NPairsLoss", "NCALoss"),
    "nearfar.losses.negatives": ("DCLLoss", "HardNegativeLoss", "DebiasedLoss"),
    "nearfar.losses.weighting": ("CircleLoss", "MultiSimilarityLoss", "LiftedStructureLoss"),
    "nearfar.losses.noise": ("NCELoss", "Noise", "unigram_noise"),
    "nearfar.losses.information": ("MutualInformationLoss",),
    "nearfar.losses.proxies": ("ProxyAnchorLoss", "ProxyNCALoss", "CenterLoss"),
    "nearfar.losses.margins": ("ArcFaceLoss", "CosFaceLoss"),
    "nearfar.losses.moments": ("BarlowTwinsLoss", "VICRegLoss", "AlignUniformLoss"),
    "nearfar.losses.table": ("LOSSES",),
    "nearfar.joint": ("Joint",),
    "nearfar.encoders.memory": ("MemoryBank",),
    "nearfar.encoders.embedder": ("Embedder",),
    "nearfar.encoders.load": ("load",),
    "nearfar.data.samplers": ("PKSampler",),
    "nearfar.data.datasets": ("PairDataset",),
    "nearfar.data.sources": ("SOURCES",),
    "nearfar.training.cached": ("cached_step",),
    "nearfar.training.train": ("train",),
    "nearfar.training.config": ("TrainConfig",),
    "nearfar.training.run": ("Run",),
    "nearfar.methods.table": ("METHODS",),
    "nearfar.compare.convergence": ("compare",),
    "nearfar.evaluation.evaluate": ("evaluate",),
    "nearfar.evaluation.evaluation": ("Evaluation",),
    "nearfar.estimator": ("ContrastiveEncoder",),
}  # fmt: skip

_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
_MODULES = ("functional", "pairs", "joint", "losses", "scores", "data", "report")

__all__ = ["__version__", *sorted(_HOME), *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from nearfar import functional as functional


def __getattr__(name: str) -> Any:
    if name in _HOME:
        module = importlib.import_module(_HOME[name])
        value = getattr(module, name)
        globals()[name] = value  # the next look-up is an ordinary one; also wins over a submodule of the same name
        return value
    if name in _MODULES:
        return importlib.import_module(f"nearfar.{name}")
    raise AttributeError(f"module 'nearfar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
