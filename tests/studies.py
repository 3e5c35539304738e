"""Comparisons whose outcome is known: written by hand, or small enough to train in a moment."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import nn

from nearfar.compare import CompareConfig
from nearfar.compare.record import Curve, Look, Run
from nearfar.compare.summary import sweep_runs

EVERY = 10


def study(arms: dict[str, list[list[float]]], slower: dict[str, float] | None = None, rows=1, **config):
    """``about`` and finished runs of arms whose seeds have these accuracies, an evaluation every 10 steps.

    A step takes 0.01 seconds times ``slower[arm]``. The sweep likes later arms of the table better.
    """
    seeds, looks = len(next(iter(arms.values()))), len(next(iter(arms.values()))[0])
    settings = CompareConfig(
        arms=tuple(arms), rates=(1e-3, 1e-2, 1e-1), budget=3, sweep_seeds=1, seeds=seeds, steps=EVERY * looks, eval_every=EVERY,
        batch_size=64, **config,
    )  # fmt: skip
    runs: dict[Run, Curve] = {}
    for place, (name, curves) in enumerate(arms.items()):
        for rate, accuracy in zip(settings.rates, (0.1, 0.5 + place / 100, 0.2)):
            for run in sweep_runs(settings, name, rate, 1.0):
                runs[run] = curve([accuracy] * looks)
        for seed, accuracies in enumerate(curves):
            runs[Run("measure", name, 1e-2, 1.0, seed)] = curve(accuracies, (slower or {}).get(name, 1.0), rows)
    about = {
        "config": asdict(settings),
        "data": {
            "name": "blobs", "train": 100, "validation": 20, "test": 50, "in_shape": [4], "classes": ["a", "b"],
            "left_out": [], "fingerprint": "0",
        },
        "model": {"name": "mlp", "parameters": 10},
        "losses": {"task": "CrossEntropyLoss()", "contrastive": "SupConLoss()"},
        "environment": {"processor": "abacus"},
        "in_memory": {"data": True, "model": False},
    }  # fmt: skip
    return about, runs


def curve(accuracies: list[float], slower: float = 1.0, rows: int = 1) -> Curve:
    found = Curve()
    for k, accuracy in enumerate(accuracies, 1):
        found.add(Look(EVERY * k, 0.01 * EVERY * k * slower, 64 * EVERY * k * rows, accuracy))
    return found


def arriving(*looks: int, of: int = 20, low: float = 0.2, high: float = 0.9) -> list[list[float]]:
    """One seed each, at ``low`` until its look (1 is the first), at ``high`` from then on; 0: never."""
    return [[high if look and k >= look else low for k in range(1, of + 1)] for look in looks]


def blobs(n: int = 240, classes: int = 3, width: int = 6, seed: int = 0):
    """Inputs and labels: Gaussian blobs that a small network learns within tens of steps."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = 2 * torch.randn(classes, width, generator=random)
    return centres[labels] + torch.randn(n, width, generator=random), labels


def tiny(in_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(in_shape[0], 16), nn.ReLU(), nn.Linear(16, num_classes))


SMALL = {
    "rates": (1e-2,), "budget": 1, "sweep_seeds": 1, "seeds": 2, "steps": 12, "eval_every": 4, "batch_size": 32, "show": False,
    "arms": ("task", "joint"),
}  # fmt: skip
