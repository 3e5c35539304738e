"""Run folders as training leaves them, on tiny data: pictures with captions, and folders of identities."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nearfar.data.config import DataConfig
from nearfar.data.open import open_corpus
from nearfar.encoders.embedder import Embedder
from nearfar.encoders.make import make_embedder
from nearfar.losses.softmax import SupConLoss
from nearfar.losses.two_sided import CLIPLoss

COLOURS = {
    "red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220), "yellow": (230, 220, 30), "white": (240, 240, 240),
    "black": (10, 10, 10),
}  # fmt: skip
WORDS = ("a {} square", "something {}", "{} paint", "the colour {}", "one {} picture")


def picture(colour: tuple[int, int, int], seed: int, size: int = 16) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 12, (size, size, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def captions(folder: Path, copies: int = 6) -> Path:
    """A table of coloured pictures and what they show; names of files and classes that are awkward to print."""
    (folder / "bilder").mkdir(parents=True)
    table = folder / "captions.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "label"])
        for copy in range(copies):
            for i, (name, colour) in enumerate(COLOURS.items()):
                path = f"bilder/{name} ñ猫 [{copy}].png"
                picture(colour, seed=97 * copy + i).save(folder / path)
                label = {"white": "<script>alert(1)</script>", "black": "a'b\"c"}.get(name, name)
                writer.writerow([path, WORDS[copy % len(WORDS)].format(name), label])
    return table


def identities(folder: Path, people: int = 12, each: int = 6) -> Path:
    """``folder/who/n.png``: each identity is a pattern of its own, with noise."""
    generator = np.random.default_rng(5)
    for who in range(people):
        pattern = generator.uniform(0, 255, (4, 4))
        (folder / f"who {who:02d}").mkdir(parents=True)
        for n in range(each):
            noisy = np.kron(pattern, np.ones((4, 4))) + np.random.default_rng(100 * who + n).normal(0, 25, (16, 16))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"who {who:02d}" / f"{n}.png")
    return folder


def write_run(folder: Path, embedder: Embedder, config: DataConfig, **others: object) -> Path:
    import yaml

    embedder.save(folder / "model")
    known = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(config).items()}
    (folder / "config.yaml").write_text(yaml.safe_dump(known | others, allow_unicode=True), encoding="utf-8")
    return folder


def captioned_run(folder: Path) -> Path:
    """An image–text run, trained until it tells colours apart."""
    config = DataConfig(str(captions(folder / "data")), test_fraction=0.2)
    corpus = open_corpus(config)
    embedder = make_embedder(
        corpus, {"image": "small-cnn", "text": "text-small"}, dim=16, vocabulary=64, options=SMALL_TEXT
    )
    rows = corpus.train.fetch(range(len(corpus.train)))
    inputs = {c.kind: embedder.prepare(c.kind, rows.columns[c.name]) for c in corpus.columns}
    fit(embedder, lambda: CLIPLoss()(*(embedder(kind, inputs[kind]) for kind in ("image", "text")), labels=rows.labels))
    return write_run(folder / "run", embedder, config)


def identity_run(folder: Path) -> Path:
    """A run on folders of identities, whole ones held out."""
    config = DataConfig(str(identities(folder / "people")), id="label", test_fraction=0.5)
    corpus = open_corpus(config)
    embedder = make_embedder(corpus, "small-cnn", dim=16)
    rows = corpus.train.fetch(range(len(corpus.train)))
    [column] = corpus.columns
    inputs = embedder.prepare("image", rows.columns[column.name])
    fit(embedder, lambda: SupConLoss()(embedder("image", inputs), labels=rows.labels), steps=30)
    return write_run(folder / "run", embedder, config)


SMALL_TEXT = {"text": {"width": 32, "depth": 1, "heads": 2}}


def fit(embedder: Embedder, loss, steps: int = 60) -> None:
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(embedder.parameters(), lr=3e-3)
    embedder.train()
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    embedder.eval()


def events(folder: Path, *lines: dict) -> None:
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
