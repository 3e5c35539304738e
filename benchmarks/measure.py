"""Measuring one cell of the table: one loss at one size, every contender.

A contender first takes one step in a process of its own, under a limit of time and memory: that gives its extra memory and
its errors, and keeps one that cannot run from hurting the others. Those that can are then timed in turn, round after round,
in one process, with the machine's own (1024×d)(d×1024) product in each round.

The process that asks for all this computes nothing itself: a fork after threads have been started may hang.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
import resource
import select
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peers import Contender
from workloads import Call, Workload, inputs

GB = 1e9
BURST = 0.02  # seconds that a contender runs at a stretch: a single call among others would time cold caches
COMPILING = 180.0  # seconds that may go into compiling
WARM_ROWS = 512  # of the call that loads a contender's code
REFERENCE_ROWS = 4096  # up to which the dense form in float64 is the reference
PRODUCT_ROWS = 1024
Row = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What a contender may spend.

    Attributes:
        step: Seconds a step, beyond which it is not run.
        budget: Seconds of timing.
        memory: Bytes beyond the process's start; None: most of what is free.
    """

    step: float = 30.0
    budget: float = 1.0
    memory: int | None = None

    def bytes(self) -> int:
        return int(0.85 * free_memory()) if self.memory is None else self.memory


def free_memory() -> int:
    """Bytes that may still be had."""
    with contextlib.suppress(OSError):
        found = re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())
        if found:
            return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


# ---- a process of its own --------------------------------------------------------------------------------------------


def forked(work: Callable[[], Row], seconds: float, memory: int | None = None) -> Row:
    """What `work` returns, done in a forked process; or `{"error": …}`, with `"memory"` or `"time"` true if that was it."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(reading)
        _child(work, writing, memory)
    os.close(writing)
    try:
        answer = _read(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if answer is None:
        return {"error": f"over {seconds:.0f} s", "time": True}
    return json.loads(answer) if answer else {"error": "killed by the system", "memory": True}


def _child(work: Callable[[], Row], writing: int, memory: int | None) -> None:
    try:
        os.setpgid(0, 0)  # so that compilers that it starts end with it
        if memory is not None:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_AS, (size + memory, resource.RLIM_INFINITY))
        answer = work()
    except ModuleNotFoundError as error:
        answer = {"error": f"not installed ({error.name})"}
    except BaseException as error:
        answer = failure(error)
    with contextlib.suppress(BaseException):
        os.write(writing, json.dumps(answer).encode())
    os._exit(0)


def failure(error: BaseException) -> Row:
    """An exception in a line, and whether it says that memory ran out."""
    words = str(error)
    asked = re.search(r"tried to allocate (\d+) bytes", words)
    if asked:
        return {"error": f"out of memory at {int(asked[1]) / GB:.1f} GB more", "memory": True}
    if isinstance(error, MemoryError) or "bad_alloc" in words or "allocate memory" in words:
        return {"error": "out of memory", "memory": True}
    return {"error": f"{type(error).__name__}: {(words.splitlines() or [''])[0][:120]}"}


def _read(source: int, deadline: float) -> bytes | None:
    """Everything that is written, or None if it takes too long."""
    found = b""
    while True:
        ready, _, _ = select.select([source], [], [], max(deadline - time.monotonic(), 0.0))
        if not ready:
            return None
        more = os.read(source, 1 << 16)
        if not more:
            return found
        found += more


# ---- one contender, one step -----------------------------------------------------------------------------------------


def leaves(given: tuple[Tensor, ...]) -> list[Tensor]:
    return [z for z in given if z.requires_grad]


def step(call: Call, given: tuple[Tensor, ...]) -> Tensor:
    """Forward and backward; some take their own backward."""
    for z in leaves(given):
        z.grad = None
    value = call(*given)
    if value.requires_grad:
        value.backward()
    return value.detach()


def high_water() -> int:
    """Most bytes that the process has held, since the last `reset_high_water` where the system can do that."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_high_water() -> int:
    """Lets the C library give back what was freed, forgets the high-water mark, and returns the new one."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return high_water()


def return_freed_memory() -> None:
    """Blocks of a megabyte are given back as they are freed, or the allocator's luck would be measured."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def probe(contender: Contender, workload: Workload, n: int, d: int, reference: Path | None) -> Row:
    """Seconds, extra memory and errors of one step, in a process that has done nothing else."""
    return_freed_memory()
    call = contender.build()
    step(call, inputs(workload.kind, n if contender.compiled else min(n, WARM_ROWS), d))
    given = inputs(workload.kind, n, d)
    gradients = sum(z.nbytes for z in leaves(given))
    before, start = reset_high_water(), time.perf_counter()
    value = step(call, given)
    found: Row = {"seconds": time.perf_counter() - start, "bytes": max(high_water() - before - gradients, 0)}
    if reference is not None and contender.same:
        wanted = torch.load(reference, weights_only=True)
        found |= errors(value, given[0].grad, wanted["value"], wanted["gradient"])
    return found


def errors(value: Tensor, gradient: Tensor | None, exact: Tensor, exact_gradient: Tensor) -> Row:
    """Relative error of a value, and of a gradient: its largest, over the largest entry."""
    assert gradient is not None
    off = float((gradient.double() - exact_gradient).abs().max() / exact_gradient.abs().max())
    relative = abs(float(value) - float(exact)) / abs(float(exact)) if float(exact) else math.nan
    return {name: x if math.isfinite(x) else None for name, x in (("value_error", relative), ("gradient_error", off))}


def write_reference(workload: Workload, n: int, d: int, path: Path) -> Row:
    """The dense form in float64."""
    given = inputs(workload.kind, n, d, torch.float64)
    value = step(workload.dense, given)
    torch.save({"value": value, "gradient": given[0].grad}, path)
    return {}


# ---- everybody in turn -----------------------------------------------------------------------------------------------


def clock(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def burst(work: Callable[[], Any]) -> list[float]:
    """Times of calls in a row, for a while."""
    times = [clock(work)]
    while sum(times) < BURST:
        times.append(clock(work))
    return times


def product_seconds(d: int, dtype: torch.dtype) -> float:
    """One (1024×d)(d×1024) product, the median of a few."""
    a, b = torch.randn(PRODUCT_ROWS, d, dtype=dtype), torch.randn(d, PRODUCT_ROWS, dtype=dtype)
    out = torch.empty(PRODUCT_ROWS, PRODUCT_ROWS, dtype=dtype)
    return statistics.median(clock(lambda: torch.mm(a, b, out=out)) for _ in range(7))


def gigaflops(seconds: list[float], d: int) -> float:
    """The rate of the product, from its times."""
    return 2 * PRODUCT_ROWS**2 * d / statistics.median(seconds) / 1e9


def least_rounds(seconds: float) -> int:
    return 3 if seconds < 3 else 2 if seconds < 8 else 1


def timed(
    contenders: list[Contender], seconds: dict[str, float], workload: Workload, n: int, d: int, budget: float
) -> Row:
    """Median times of contenders that run in turn, and the product's rates among them."""
    steps: dict[str, Callable[[], Any]] = {}
    for contender in contenders:
        call, given = contender.build(), inputs(workload.kind, n, d)
        steps[contender.name] = lambda call=call, given=given: step(call, given)
        if contender.compiled or seconds[contender.name] < 2:
            steps[contender.name]()
    times: dict[str, list[float]] = {name: [] for name in steps}
    products: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    waiting = set(steps)
    while waiting:
        for dtype, found in products.items():
            found.append(product_seconds(d, dtype))
        for name in [name for name in steps if name in waiting]:
            times[name] += burst(steps[name])
            if sum(times[name]) >= budget and len(times[name]) >= least_rounds(seconds[name]):
                waiting.remove(name)
    return {
        "rates": {"float32": gigaflops(products[torch.float32], d), "bf16": gigaflops(products[torch.bfloat16], d)},
        "times": {name: [statistics.median(found), len(found)] for name, found in times.items()},
    }


def rates(d: int) -> Row:
    """The product's rates, alone."""
    return {
        "float32": gigaflops([product_seconds(d, torch.float32) for _ in range(5)], d),
        "bf16": gigaflops([product_seconds(d, torch.bfloat16) for _ in range(5)], d),
    }


# ---- a cell ----------------------------------------------------------------------------------------------------------

Past = dict[tuple[str, str], Row]
"""The last measured size of each (loss, contender): `n`, `d`, `seconds`, `bytes`."""


def foreseen(contender: Contender, n: int, d: int, past: Past) -> tuple[float, float] | None:
    """Seconds and bytes that a step will take, going by the last size measured."""
    last = past.get((contender.loss, contender.name))
    if last is None:
        return None
    growth = n / last["n"]
    return last["seconds"] * growth**contender.power * max(d / last["d"], 1), last["bytes"] * growth**contender.memory


def refusal(contender: Contender, n: int, d: int, past: Past, limits: Limits) -> str | None:
    """Why not to try, if there is no hope."""
    expected = foreseen(contender, n, d, past)
    if expected is None:
        return None
    seconds, size = expected
    if size > 1.5 * limits.bytes():
        return f"would need {size / GB:,.0f} GB"
    return f"over {limits.step:.0f} s a step: not run" if seconds > 2 * limits.step else None


def first_step(
    contender: Contender, workload: Workload, n: int, d: int, reference: Path | None, past: Past, limits: Limits
) -> Row:
    """A contender's probe, or why there is none."""
    why = refusal(contender, n, d, past, limits)
    if why is not None:
        return {"error": why}
    allowed = 10 + 2 * limits.step + (COMPILING if contender.compiled else 0)
    found = forked(lambda: probe(contender, workload, n, d, reference), allowed, limits.bytes())
    expected = foreseen(contender, n, d, past)
    if found.pop("time", False) or found.get("seconds", 0) > limits.step:
        found = {"error": f"over {limits.step:.0f} s a step"}
    elif found.pop("memory", False) and expected is not None:
        found["error"] = f"out of memory: would need {expected[1] / GB:,.0f} GB"
    elif "seconds" in found:
        past[contender.loss, contender.name] = {"n": n, "d": d, "seconds": found["seconds"], "bytes": found["bytes"]}
    return found


def cell(
    workload: Workload, n: int, d: int, contenders: list[Contender], past: Past, limits: Limits, once: bool = False
) -> list[Row]:
    """Every contender's row at one size; `once`: the probe's own step is the time."""
    probes: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.pt"
        if n <= REFERENCE_ROWS:
            forked(lambda: write_reference(workload, n, d, path), 300, limits.bytes())
        reference = path if path.exists() else None  # none where it did not fit
        for contender in contenders:
            probes[contender.name] = first_step(contender, workload, n, d, reference, past, limits)
    able = [contender for contender in contenders if "seconds" in probes[contender.name]]
    seconds = {contender.name: probes[contender.name]["seconds"] for contender in able}
    if once:
        spent: Row = {"rates": forked(lambda: rates(d), 60), "times": {name: [s, 1] for name, s in seconds.items()}}
    else:
        compiling = COMPILING * sum(contender.compiled for contender in able)
        allowed = 60 + compiling + sum(5 * max(limits.budget, 3 * s) for s in seconds.values())
        spent = forked(lambda: timed(able, seconds, workload, n, d, limits.budget), allowed)
    return [row(contender, workload, n, d, probes[contender.name], spent) for contender in contenders]


def row(contender: Contender, workload: Workload, n: int, d: int, probed: Row, spent: Row) -> Row:
    """One line of the results."""
    found: Row = {"loss": workload.name, "n": n, "d": d, "contender": contender.name}
    if contender.note:
        found["note"] = contender.note
    if not contender.same:
        found["same"] = False
    if "error" in probed:
        return found | {"error": probed["error"]}
    found |= {"extra_mb": round(probed["bytes"] / 2**20, 2)}
    found |= {name: probed[name] for name in ("value_error", "gradient_error") if name in probed}
    if "error" in spent:
        return found | {"error": f"timing stopped: {spent['error']}"}
    seconds, rounds = spent["times"][contender.name]
    rate = spent["rates"]["bf16" if contender.name.endswith("bf16") else "float32"]
    found |= {"milliseconds": round(seconds * 1e3, 4), "rounds": rounds, "product_gigaflops": round(rate, 1)}
    flops = workload.flops(n, d)
    return found if flops is None else found | {"share": round(share(flops, seconds, rate), 4)}


def share(flops: float, seconds: float, rate: float) -> float:
    """Of the product's rate in gigaflops, counting the least work, whatever a contender spends."""
    return flops / seconds / 1e9 / rate
