"""One contender's step: its seconds, extra memory and errors, each alone; and the times of all in turn, round after round, with
the machine's own (1024×d)(d×1024) product in each round.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peers import Contender
from processes import Row, failure, high_water, reset_high_water, return_freed_memory
from workloads import Call, Workload, inputs

BURST = 0.02  # seconds that a contender runs at a stretch: a single call among others would time cold caches
WARM_ROWS = 512  # of the call that loads a contender's code
PRODUCT_ROWS = 1024


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
    return 3 if seconds < 2 else 2 if seconds < 5 else 1


def timed(
    contenders: list[Contender], seconds: dict[str, float], workload: Workload, n: int, d: int, budget: float
) -> Row:
    """Median times of contenders that run in turn, and the product's rates among them."""
    steps: dict[str, Callable[[], Any]] = {}
    times: dict[str, list[float]] = {}
    products: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    failed: dict[str, str] = {}

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        """What the work gives; None if it fails, and then the contender is out."""
        try:
            return work()
        except Exception as error:
            failed[name] = failure(error)["error"]
            waiting.discard(name)

    waiting = {contender.name for contender in contenders}
    for contender in contenders:
        name = contender.name
        call, given = attempt(name, contender.build), inputs(workload.kind, n, d)
        steps[name], times[name] = (lambda call=call, given=given: step(call, given)), []
        if contender.compiled or seconds[name] < 2:
            attempt(name, steps[name])
    while waiting:
        for dtype, found in products.items():
            found.append(product_seconds(d, dtype))
        for name in [name for name in steps if name in waiting]:
            times[name] += attempt(name, lambda name=name: burst(steps[name])) or []
            if sum(times[name]) >= budget and len(times[name]) >= least_rounds(seconds[name]):
                waiting.discard(name)
    return {
        "rates": {str(dtype).removeprefix("torch."): gigaflops(found, d) for dtype, found in products.items() if found},
        "times": {name: [statistics.median(found), len(found)] for name, found in times.items() if name not in failed},
        "failed": failed,
    }


def rates(d: int) -> Row:
    """The product's rates, alone."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return {name: gigaflops([product_seconds(d, dtype) for _ in range(5)], d) for name, dtype in dtypes.items()}


def share(flops: float, seconds: float, rate: float) -> float:
    """Of the product's rate in gigaflops, counting the least work, whatever a contender spends."""
    return flops / seconds / 1e9 / rate
