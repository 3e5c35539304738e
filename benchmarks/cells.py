"""One cell of the table: one loss at one size, every contender.

A contender first takes one step in a process of its own: that gives its extra memory and its errors, and keeps one that cannot
run from hurting the others. Those that can are then timed in turn in one process. What has no hope, going by the size before,
is not tried.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from measure import probe, share, timed, write_reference
from peers import Contender
from processes import GB, Row, forked, free_memory
from workloads import Workload

COMPILING = 180.0  # seconds that may go into compiling
REFERENCE_ROWS = 4096  # up to which the dense form in float64 is the reference


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
    return f"over {limits.step:.0f} s a step: not run" if seconds > 1.5 * limits.step else None


def first_step(
    contender: Contender, workload: Workload, n: int, d: int, reference: Path | None, past: Past, limits: Limits
) -> Row:
    """A contender's probe, or why there is none."""
    why = refusal(contender, n, d, past, limits)
    if why is not None:
        return {"error": why}
    allowed = 15 + limits.step + (COMPILING if contender.compiled else 0)
    found = forked(lambda: probe(contender, workload, n, d, reference), allowed, limits.bytes())
    expected = foreseen(contender, n, d, past)
    if found.pop("time", False) or found.get("seconds", 0) > limits.step:
        found = {"error": f"over {limits.step:.0f} s a step"}
    elif found.pop("memory", False) and expected is not None and expected[1] > limits.bytes() / 4:
        found["error"] = f"out of memory: would need {expected[1] / GB:,.0f} GB"
    elif "seconds" in found:
        past[contender.loss, contender.name] = {"n": n, "d": d, "seconds": found["seconds"], "bytes": found["bytes"]}
    return found


def cell(workload: Workload, n: int, d: int, contenders: list[Contender], past: Past, limits: Limits) -> list[Row]:
    """Every contender's row at one size."""
    probes: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        reference = None
        path = Path(folder) / "reference.pt"
        if n <= REFERENCE_ROWS and forked(lambda: write_reference(workload, n, d, path), 300, limits.bytes()) == {}:
            reference = path  # else it did not fit
        for contender in contenders:
            probes[contender.name] = first_step(contender, workload, n, d, reference, past, limits)
    able = [contender for contender in contenders if "seconds" in probes[contender.name]]
    seconds = {contender.name: probes[contender.name]["seconds"] for contender in able}
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
    stopped = spent.get("error") or spent.get("failed", {}).get(contender.name)
    if stopped:
        return found | {"error": f"timing stopped: {stopped}"}
    seconds, rounds = spent["times"][contender.name]
    rate = spent["rates"]["bfloat16" if contender.name.endswith("bf16") else "float32"]
    found |= {"milliseconds": round(seconds * 1e3, 4), "rounds": rounds, "product_gigaflops": round(rate, 1)}
    flops = workload.flops(n, d)
    return found if flops is None else found | {"share": round(share(flops, seconds, rate), 4)}
