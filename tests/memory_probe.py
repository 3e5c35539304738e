"""How much memory a loss takes, forward and backward, beyond its inputs and their gradients.

    python tests/memory_probe.py supcon:16384 clip:8192 all:4096:classes=2 supcon:4096:backend=dense

prints one line of JSON a case. Each runs in a process of its own, forked before any of them has taken memory:

* ``peak_mb``: by how much the process's high-water mark rose, less the gradients (a small warm-up call came before);
* ``tensors_mb``: the most that tensors held at one time, by the profiler, less the gradients;
* ``largest_elements``, ``largest_in``: the largest single allocation in float32 numbers, and the operator that made it.

The two differ by what the C library's allocator keeps. glibc's, left to itself, keeps matrices of some megabytes that were
given back (in steps of one, here 8 MB; up to twice as much in all); ``MALLOC_MMAP_THRESHOLD_=1048576`` in the environment
makes it return them.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import nearfar as nf
from nearfar.scores import tile_size

MB = 2**20
D = 128
LOSSES: dict[str, tuple[Callable[..., torch.nn.Module], bool]] = {
    # name: how to build it, and whether it takes two sides (rows of each) in place of labels
    "supcon": (nf.SupConLoss, False),
    "supcon-in": (lambda **o: nf.SupConLoss(form="in", **o), False),
    "ntxent": (nf.NTXentLoss, True),
    "clip": (nf.CLIPLoss, True),
    "infonce": (nf.InfoNCELoss, True),
    "siglip": (nf.SigLIPLoss, True),
    "hard": (lambda **o: nf.TripletLoss(mining="hard", **o), False),
    "all": (lambda **o: nf.TripletLoss(mining="all", **o), False),
    "semihard": (lambda **o: nf.TripletLoss(mining="semihard", **o), False),
    "soft": (lambda **o: nf.TripletLoss(mining="all", soft=True, **o), False),
    "multisimilarity": (nf.MultiSimilarityLoss, False),
    "circle": (nf.CircleLoss, False),
    "lifted": (nf.LiftedStructureLoss, False),
    "contrastive": (nf.ContrastiveLoss, False),
    "nca": (nf.NCALoss, False),
    "dcl": (nf.DCLLoss, False),
    "hardnegative": (nf.HardNegativeLoss, False),
    "debiased": (nf.DebiasedLoss, False),
    "spectral": (nf.SpectralLoss, True),
    "spectral, labels": (nf.SpectralLoss, False),
    "uniform": (nf.AlignUniformLoss, True),
    "jsd": (lambda **o: nf.MutualInformationLoss(estimator="jsd", **o), True),
}


def inputs(name: str, rows: int, classes: int | None, features: int = D) -> tuple[list[Tensor], dict[str, Any]]:
    """Float32 rows; labels with eight rows a class, or so many classes, in random order."""
    random = torch.Generator().manual_seed(0)
    count = 2 if LOSSES[name][1] else 1
    z = [torch.randn(rows, features, generator=random).requires_grad_() for _ in range(count)]
    if count == 2:
        return z, {}
    classes = max(rows // 8, 1) if classes is None else classes
    return z, {"labels": (torch.arange(rows) % classes)[torch.randperm(rows, generator=random)]}


def high_water() -> int:
    """Most memory that the process has held, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(
    name: str,
    rows: int,
    classes: int | None = None,
    backend: str | None = None,
    only: str | None = None,
    features: int = D,
) -> dict[str, Any]:
    """One case, in this process, which should have done nothing else; `only` the "peak" or the "tensors"."""
    torch.set_num_threads(1)
    loss = LOSSES[name][0](**({} if backend is None else {"backend": backend}))

    def call(z: list[Tensor], keywords: dict[str, Any]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(*z, **keywords), z)

    with tile_size(256):
        call(*inputs(name, 2304 if backend is None else 600, classes, 16))  # so that the same code has been loaded
    z, keywords = inputs(name, rows, classes, features)
    gradients = sum(x.nbytes for x in z)
    found: dict[str, Any] = {"case": f"{name}:{rows}", "classes": classes, "backend": backend}
    if only != "tensors":
        before, start = high_water(), time.perf_counter()
        call(z, keywords)
        found["seconds"] = round(time.perf_counter() - start, 2)
        found["peak_mb"] = (high_water() - before - gradients) / MB
    return found if only == "peak" else found | allocations(lambda: call(z, keywords), gradients)


def allocations(run: Callable[[], object], gradients: int) -> dict[str, Any]:
    """What the profiler saw of the tensors' memory."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    held = highest = 0
    for event in memory:
        held += event["args"]["Bytes"]
        highest = max(highest, held)
    largest = max(memory, key=lambda e: e["args"]["Bytes"])
    around = [e for e in events if e.get("cat") == "cpu_op" and e["ts"] <= largest["ts"] <= e["ts"] + e["dur"]]
    innermost = max(around, key=lambda e: e["ts"], default={"name": "?"})
    return {
        "tensors_mb": (highest - gradients) / MB, "largest_elements": largest["args"]["Bytes"] // 4,
        "largest_in": innermost["name"],
    }  # fmt: skip


def forked(**case: Any) -> dict[str, Any]:
    """A case in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, json.dumps(measure(**case)).encode())
        except BaseException as error:
            os.write(writing, json.dumps({"case": case, "error": repr(error)[:1000]}).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = json.load(pipe)
    os.waitpid(child, 0)
    return answer


def parsed(text: str) -> dict[str, Any]:
    """``name:rows`` and options, as in the examples above."""
    name, rows, *options = text.split(":")
    case: dict[str, Any] = {"name": name, "rows": int(rows)}
    for option in options:
        key, _, value = option.partition("=")
        case[key] = int(value) if value.isdigit() else value
    return case


if __name__ == "__main__":
    for text in sys.argv[1:]:
        case = parsed(text)  # the profiler sees the case alone, and takes seconds to start in each process
        print(json.dumps((measure if case.get("only") == "tensors" else forked)(**case)), flush=True)
