"""Work in a process of its own, under a limit of time and memory, and how much memory it took.

The process that asks computes nothing itself: a fork after threads have been started may hang.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GB = 1e9
Row = dict[str, Any]


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
            with contextlib.suppress(ValueError, OSError):
                size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
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


# ---- memory --------------------------------------------------------------------------------------------------------


def free_memory() -> int:
    """Bytes that may still be had."""
    with contextlib.suppress(OSError):
        found = re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())
        if found:
            return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


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
