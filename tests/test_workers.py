"""Runs side by side: all done, each once, in their order; errors and deaths told; nobody left behind."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crew import Trainer
from nearfar.compare.record import Run
from nearfar.compare.workers import Workers


def runs(*arms: str) -> list[Run]:
    return [Run("measure", arm, 0.1, 1.0, seed) for seed, arm in enumerate(arms)]


@pytest.mark.parametrize("count", [1, 2])
def test_every_run_is_trained_once_also_those_handed_in_on_the_way(count):
    first, second = runs("a", "b", "c"), [Run("sweep", "later", 0.1, 1.0, 9)]
    begun, looks, ended, where = [], {}, [], set()
    with Workers(Trainer(), count) as workers:
        workers.submit(*first)
        for kind, run, look in workers.events():
            if kind == "start":
                begun.append(run)
            elif look is not None:
                looks.setdefault(run, []).append(look)
            else:
                ended.append(run)
                if run == first[1]:
                    workers.submit(*second)
        workers.submit(*runs("again"))  # there may be a second round
        ended += [run for kind, run, _ in workers.events() if kind == "end"]
    assert begun == first + second
    assert sorted(ended, key=str) == sorted([*first, *second, *runs("again")], key=str)
    for run in first:
        assert [look.step for look in looks[run]] == [1, 2]
        assert looks[run][1].accuracy == run.seed
        where.add(looks[run][0].rows)
    assert (where == {os.getpid()}) == (count == 1)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("arm", "message"),
    [("breaks", "this loss is broken"), ("dies", r"a process died while it trained Run\(.*Go on with resume=")],
)
def test_an_error_is_raised_here_and_a_death_is_told(arm, message):
    with pytest.raises(RuntimeError, match=message) as error:
        everything(*runs("a", arm, "b", "c"))
    if arm == "breaks":
        assert "in a worker, while it trained Run(" in "".join(error.value.__notes__)
    assert not multiprocessing.active_children()


def test_whoever_stops_early_leaves_nobody_behind():
    with Workers(Trainer(), 2) as workers:
        workers.submit(*runs(*"abcdef"))
        next(iter(workers.events()))
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


def test_workers_end_when_the_first_process_is_killed():
    code = (
        "import os\nfrom test_workers import Trainer, Workers, runs\n"
        "with Workers(Trainer(), 2) as workers:\n"
        "    workers.submit(*runs('a', 'b'))\n"
        "    print(*{look.rows for _, _, look in workers.events() if look is not None and look.step == 1}, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -9
    workers = [int(pid) for pid in done.stdout.split()]
    assert workers
    begun = time.monotonic()
    while any(_lives(pid) for pid in workers):
        assert time.monotonic() - begun < 20
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def everything(*wanted: Run) -> list:
    with Workers(Trainer(), 2) as workers:
        workers.submit(*wanted)
        return list(workers.events())
