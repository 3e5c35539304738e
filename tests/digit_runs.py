"""Facts of two short training runs on scikit-learn's digits, as a page takes them: everything in them was measured."""

from __future__ import annotations

import base64
import io
import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix, roc_curve
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn.functional import normalize

import nearfar as nf
from nearfar.report.run_schema import Item, Look, RunFacts, Step

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TRAIN = 1200


def thumbnail(pixels: np.ndarray, side: int = 8) -> str:
    """A picture of numbers from 0 to 1, as a data URI."""
    picture = Image.fromarray((255 * pixels).round().astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    held = io.BytesIO()
    picture.save(held, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def digit_item(row: int, side: int = 8) -> Item:
    """A digit of the held-out rows."""
    data = load()
    return {
        "name": f"digits/test/{row:04}.png", "label": int(data.target[TRAIN + row]),
        "thumbnail": thumbnail(data.images[TRAIN + row] / 16, side),
    }  # fmt: skip


@lru_cache
def load() -> Any:
    return load_digits()


@lru_cache
def digit_runs(steps: int = 200) -> tuple[RunFacts, RunFacts]:
    """One run at a low temperature, one at a high one and without the labels of nine rows in ten."""
    return _run("supcon", steps, temperature=0.1), _run("few-labels", steps, temperature=0.5, known=0.1)


def _run(name: str, steps: int, *, temperature: float, known: float = 1.0) -> RunFacts:
    torch.manual_seed(0)
    x = torch.tensor(load().data / 16, dtype=torch.float32)
    y = torch.tensor(load().target)
    labels = torch.where(torch.rand(len(y)) < known, y, -1)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    loss, pull = nf.SupConLoss(temperature=temperature), nf.NTXentLoss(temperature=temperature)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps + 1)
    done: list[Step] = []
    looks: list[Look] = []
    spent = 0.0
    for step in range(steps + 1):
        if step % max(steps // 10, 1) == 0:
            looks.append(_look(net, x, y, step, spent))
        start = time.perf_counter()
        rows = torch.randint(0, TRAIN, (128,))
        views = [net(x[rows] + 0.15 * torch.randn(128, 64)) for _ in range(2)]
        terms = {"supervised": loss(views[0], views[1], labels=labels[rows]), "views": pull(views[0], views[1])}
        total = terms["supervised"] + 0.5 * terms["views"]
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        schedule.step()
        spent += time.perf_counter() - start
        done.append({
            "step": step, "seconds": spent, "epoch": step * 128 / TRAIN, "loss": total.item(), "rows": 128 * (step + 1),
            "terms": {key: value.item() for key, value in terms.items()}, "rate": schedule.get_last_lr()[0],
            "temperature": temperature,
        })  # fmt: skip
    with torch.no_grad():
        z = normalize(net(x), dim=1)
    return {
        "name": name,
        "config": {"data": "digits", "steps": steps, "loss": {"name": "SupCon", "temperature": temperature}, "known": known},
        "environment": {"torch": torch.__version__, "device": "cpu", "threads": torch.get_num_threads()},
        "data": {"name": "digits", "rows": {"train": TRAIN, "test": len(y) - TRAIN}, "classes": 10},
        "events": {
            "steps": done, "looks": looks, "end": f"all {steps:,} steps done",
            "warnings": [] if known == 1 else [
                {"step": 0, "message": f"{int((labels < 0).sum()):,} rows have no label: they are nobody's positive."}
            ],
        },
        "class_names": NAMES,
        **_measured(z, y, temperature),  # type: ignore[typeddict-item]
    }  # fmt: skip


@torch.no_grad()
def _look(net: nn.Module, x: Tensor, y: Tensor, step: int, spent: float) -> Look:
    z = normalize(net(x), dim=1)
    test, own = z[TRAIN:], y[TRAIN:]
    same = own[:, None] == own[None]
    distance = torch.cdist(test, test).square()
    other = ~torch.eye(len(test), dtype=torch.bool)
    return {
        "step": step, "seconds": spent,
        "metrics": {"knn": _knn(z, y).score(test.numpy(), own.numpy()), "recall@1": _recall(test, own)},
        "geometry": {
            "alignment": float(distance[same & other].mean()), "uniformity": float((-2 * distance[other]).exp().mean().log()),
            "effective_rank": _rank(torch.linalg.svdvals(test - test.mean(0))), "feature_std": float(test.std(0).mean()),
        },
    }  # fmt: skip


def _knn(z: Tensor, y: Tensor) -> KNeighborsClassifier:
    return KNeighborsClassifier(20, metric="cosine").fit(z[:TRAIN].numpy(), y[:TRAIN].numpy())


def _recall(test: Tensor, own: Tensor) -> float:
    return float((own[(test @ test.T).fill_diagonal_(-2).argmax(1)] == own).double().mean())


def _rank(values: Tensor) -> float:
    part = values / values.sum()
    return float((-(part * part.clamp_min(1e-12).log()).sum()).exp())


def _threshold(z: Tensor, y: Tensor, far: float) -> float:
    """The similarity that so many pairs of different rows reach."""
    i, j = torch.triu_indices(len(z), len(z), 1)
    other = (z[i] * z[j]).sum(1)[y[i] != y[j]]
    return float(np.quantile(other.numpy(), 1 - far))


def _measured(z: Tensor, y: Tensor, temperature: float) -> dict[str, Any]:
    test, own = z[TRAIN:], y[TRAIN:]
    said = _knn(z, y).predict(test.numpy())
    score, n = float((said == own.numpy()).mean()), len(own)
    spread = 1.96 * (score * (1 - score) / n) ** 0.5
    scores = (test @ test.T).fill_diagonal_(-2)
    near = scores.topk(6)
    upper = torch.triu_indices(n, n, 1)
    pairs, same = scores[upper[0], upper[1]], (own[upper[0]] == own[upper[1]])
    far, tar, at = roc_curve(same.numpy(), pairs.numpy())
    equal = int(np.argmin(np.abs(far - (1 - tar))))
    tuned = _threshold(z[:TRAIN], y[:TRAIN], 0.01)
    star = int(np.searchsorted(-at, -tuned, "right")) - 1
    values = torch.linalg.svdvals(test - test.mean(0))
    flat = torch.pca_lowrank(test, 2)[0] * torch.pca_lowrank(test, 2)[1]
    edges = torch.linspace(-1, 1, 61)
    items = [digit_item(row) for row in range(n)]
    kept = values.square()
    return {
        "evaluation": {
            "rows": n, "about": "20 nearest neighbours among the training rows, cosine similarity",
            "metrics": [
                {"name": "knn", "value": score, "low": score - spread, "high": min(score + spread, 1.0), "chance": 0.1,
                 "about": "accuracy of 20 nearest neighbours"},
                {"name": "recall@1", "value": _recall(test, own), "chance": 0.1},
                {"name": "EER", "value": float(far[equal]), "chance": 0.5, "better": "lower"},
                {"name": "effective rank", "value": _rank(values), "fraction": False},
            ],
        },
        "map": {
            "method": "pca", "x": flat[:, 0].tolist(), "y": flat[:, 1].tolist(), "items": items,
            "kept": float(kept[:2].sum() / kept.sum()),
        },
        "gallery": [
            {"item": items[row], "neighbours": [
                {"item": items[int(k)], "score": float(s), "right": bool(own[int(k)] == own[row])}
                for s, k in zip(near.values[row], near.indices[row])
            ]} for row in range(0, n, 12)
        ],
        "histogram": {
            "edges": edges.tolist(), "positives": torch.histogram(pairs[same], edges).hist.tolist(),
            "negatives": torch.histogram(pairs[~same], edges).hist.tolist(), "temperature": temperature,
        },
        "spectrum": {"values": values.tolist(), "effective_rank": _rank(values)},
        "confusion": {"matrix": confusion_matrix(own.numpy(), said).tolist(), "by": "20 nearest neighbours"},
        "roc": {
            "far": far.tolist(), "tar": tar.tolist(), "thresholds": [None if np.isinf(t) else float(t) for t in at],
            "eer": float(far[equal]), "threshold": tuned, "threshold_far": float(far[star]),
            "threshold_tar": float(tar[star]), "about": "the threshold accepts 1% of the pairs of different training rows",
        },
    }  # fmt: skip
