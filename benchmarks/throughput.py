"""SimCLR-type training of a small ResNet on Fashion-MNIST: rows a second, ours and a loop on lightly's transforms and loss.

    python benchmarks/throughput.py [--batch 256] [--rounds 3] [--threads 2]

Same network, head, batch, optimiser, precision and kind of views; what differs is what a library gives: how views are
drawn (on the batch; by image, in a DataLoader) and the loss. The peer runs with 0 and with 2 worker processes, and with
the network laid out as PyTorch does by itself; the best of these is what the first ratio is against. Contenders take
turns, in one process, so that whatever the machine does, it does to all.

Needs lightly (`pip install --no-deps -r benchmarks/requirements.txt`), torchvision's Python files
(`pip install --no-deps torchvision`: only its transforms of Pillow images are loaded) and Debian's dataset-fashion-mnist.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import json
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "src")]

import nearfar as nf  # noqa: E402
from nearfar.data.corpus import Corpus  # noqa: E402
from nearfar.data.open import open_corpus  # noqa: E402
from nearfar.encoders.heads import ProjectionHead  # noqa: E402
from nearfar.encoders.make import make_embedder  # noqa: E402
from nearfar.training.assemble import resolve  # noqa: E402
from nearfar.training.devices import make_fabric  # noqa: E402
from nearfar.training.environment import describe_machine  # noqa: E402
from nearfar.training.trainer import Trainer  # noqa: E402

Steps = Callable[[int], list[float]]
"""Makes so many steps; the loss of each."""


def ours(config: nf.TrainConfig, corpus: Corpus, embedder: nn.Module) -> Steps:
    """What `nf.train` does in a step: loader, views on the batch, forward, loss, backward, update."""
    fabric = make_fabric(config)
    trainer = Trainer(config, corpus, copy.deepcopy(embedder), fabric)
    paused = trainer.fit(0, 0.0, lambda step: True)
    return lambda count: [next(paused).loss for _ in range(count)]


def lightly(config: nf.TrainConfig, corpus: Corpus, embedder: Any, workers: int, plain: bool = False) -> Steps:
    """The loop of lightly's documentation: a DataLoader over Pillow images, its SimCLRTransform, its NTXentLoss.

    `plain` lays the network's weights and activations channels first, as PyTorch does unless told otherwise.
    """
    bare("torchvision")
    transforms = importlib.import_module("lightly.transforms")
    loss_module = importlib.import_module("lightly.loss.ntx_ent_loss")
    tower = embedder.towers["image"]
    mean, std = tower.mean.flatten().tolist(), tower.std.flatten().tolist()
    # the recipe of `nearfar list views`, simclr, for small grey images
    transform = transforms.SimCLRTransform(
        input_size=corpus.size[0], cj_prob=0.8, cj_strength=0.5, min_scale=0.2, random_gray_scale=0.0, gaussian_blur=0.0,
        hf_prob=0.5, normalize={"mean": mean, "std": std},
    )  # fmt: skip
    train: Any = corpus.train
    loader = torch.utils.data.DataLoader(
        Pictures(train, transform), config.batch_size, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    network = copy.deepcopy(tower)
    if plain:
        network.network = nn.Sequential(*network.network)
        for p in network.parameters():
            p.data = p.data.contiguous(memory_format=torch.contiguous_format)
    model = nn.Sequential(network, ProjectionHead(embedder.dim, 128)).train()
    criterion = loss_module.NTXentLoss(temperature=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)

    def losses() -> Iterator[float]:
        while True:
            for first, second in loader:
                optimizer.zero_grad()
                loss = criterion(model(first), model(second))
                loss.backward()
                optimizer.step()
                yield loss.item()

    made = losses()
    return lambda count: [next(made) for _ in range(count)]


class Pictures(torch.utils.data.Dataset[Any]):
    """Rows of a part as Pillow images, through a transform: what lightly's data sets give."""

    def __init__(self, part: Any, transform: Any) -> None:
        from PIL import Image

        self.images = [Image.fromarray(x[0].numpy()) for x in part.fetch(range(len(part))).columns["image"]]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> list[Tensor]:
        return self.transform(self.images[row])


def bare(package: str) -> None:
    """Lets `package.x` be imported without the package's own start, which wants compiled operators for this torch."""
    if package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    module = types.ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations)
    module.__version__ = "0.0"  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules[package] = module


def main(arguments: list[str] | None = None) -> int:
    """Prints a table and writes `results/throughput.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="of each contender in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--model", default="resnet-small")
    parser.add_argument("--width", type=int, default=32, help="channels of resnet-small's stem; 16 is ResNet-20's")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "throughput.json"))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    config = nf.TrainConfig(
        data=asked.data, method="simclr", batch_size=asked.batch, steps=10_000, model=asked.model, device="cpu",
        threads=asked.threads, schedule="constant", warmup=0.0,
    )  # fmt: skip
    corpus = open_corpus(config)
    config = resolve(config, corpus, False)
    torch.manual_seed(0)
    embedder = make_embedder(corpus, asked.model, options={"image": {"width": asked.width}})
    contenders: dict[str, Steps] = {"nearfar": ours(config, corpus, embedder)}
    for workers in (0, 2):
        contenders[f"lightly, {workers} workers"] = lightly(config, corpus, embedder, workers)
    contenders["lightly, channels first"] = lightly(config, corpus, embedder, 0, plain=True)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    busy: dict[str, list[float]] = {name: [] for name in contenders}
    losses: dict[str, float] = {}
    for steps in contenders.values():
        steps(2)  # what a process pays once
    for number in range(asked.rounds):
        for name, steps in contenders.items():
            begun, processor = time.perf_counter(), time.process_time()
            losses[name] = steps(asked.steps)[-1]
            seconds[name].append((time.perf_counter() - begun) / asked.steps)
            busy[name].append((time.process_time() - processor) / asked.steps)
        print(
            f"round {number + 1}: " + ", ".join(f"{name} {seconds[name][-1]:.3f} s" for name in contenders), flush=True
        )
    return report(asked, seconds, busy, losses)


def report(
    asked: argparse.Namespace, seconds: dict[str, list[float]], busy: dict[str, list[float]], losses: dict[str, float]
) -> int:
    """The table and the file. Processor seconds are this process's, without those of a DataLoader's workers."""
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    peer = min((name for name in middle if name != "nearfar"), key=middle.__getitem__)
    ratios = [a / b for a, b in zip(seconds[peer], seconds["nearfar"])]  # within a round
    alone = statistics.median(busy["lightly, 0 workers"]) / statistics.median(busy["nearfar"])
    for name, median in middle.items():
        processor = statistics.median(busy[name])
        print(
            f"{name:24} {median:.3f} s a step, {asked.batch / median:6.0f} rows/s, {processor:.3f} s of processor, "
            f"loss {losses[name]:.3f}"
        )
    print(
        f"nearfar is {statistics.median(ratios):.2f} times as fast as {peer} ({min(ratios):.2f} to {max(ratios):.2f} by round)"
    )
    plain = statistics.median(busy["lightly, channels first"]) / statistics.median(busy["nearfar"])
    print(f"by processor time, without worker processes: {alone:.2f} times, channels first {plain:.2f} times")
    result = {
        "processor_ratio": alone, "processor_ratio_channels_first": plain,
        "data": asked.data, "model": asked.model, "width": asked.width, "batch": asked.batch, "steps": asked.steps,
        "seconds_a_step": seconds,
        "processor_seconds_a_step": busy,
        "median": middle, "loss": losses, "peer": peer, "ratio": statistics.median(ratios), "ratios": ratios,
        "environment": describe_machine(torch.device("cpu"), asked.threads),
    }  # fmt: skip
    Path(asked.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
