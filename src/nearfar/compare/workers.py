"""Runs side by side: a process a core, because a small network leaves every core but one idle.

Each run is the same wherever it is trained. Its seconds are taken while the other cores are busy with its like, the
same for all arms.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from nearfar.compare.record import Look, Run

if TYPE_CHECKING:
    from nearfar.compare.trainer import Trainer

Event = tuple[Literal["start", "look", "end"], Run, Look | None]


class Workers:
    """Trains the runs that are handed in, in this process or in several.

    Args:
        trainer: Trains one run.
        count: Processes; 1 is this one. They are started afresh (not forked, which CUDA and OpenMP do not survive), so
            the script that asks for more than one must do its work under ``if __name__ == "__main__":``.
    """

    def __init__(self, trainer: Trainer, count: int = 1) -> None:
        self._trainer = trainer
        self._count = count
        self._waiting: deque[Run] = deque()
        self._crew: list[tuple[BaseProcess, Connection]] = []

    def submit(self, *runs: Run) -> None:
        """Hands runs in; they are begun in this order."""
        self._waiting.extend(runs)

    def events(self) -> Iterator[Event]:
        """What happens until nothing is left to do; more may be handed in meanwhile.

        Raises:
            RuntimeError: If a process died. An error inside a run is raised as it is.
        """
        if self._count > 1:
            yield from self._side_by_side()
        while self._waiting:
            run = self._waiting.popleft()
            yield "start", run, None
            for look in self._trainer.train(run):
                yield "look", run, look
            yield "end", run, None

    def __enter__(self) -> Workers:
        if self._count > 1:
            context = multiprocessing.get_context("spawn")
            # Through the pipe as bytes: tensors would otherwise go through shared memory, which containers keep small.
            trainer = pickle.dumps(self._trainer)
            for _ in range(self._count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(trainer, theirs), daemon=True)
                process.start()
                theirs.close()  # so that the death of the process ends the pipe
                self._crew.append((process, ours))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, pipe in self._crew:
            process.terminate()  # nothing of a run is lost that resuming would not repeat
            process.join()
            pipe.close()
        self._crew.clear()

    def _side_by_side(self) -> Iterator[Event]:
        idle = [pipe for _, pipe in self._crew]
        busy: dict[Connection, Run] = {}
        while self._waiting or busy:
            while self._waiting and idle:
                pipe, run = idle.pop(), self._waiting.popleft()
                pipe.send(run)
                busy[pipe] = run
                yield "start", run, None
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                run = busy[pipe]
                try:
                    found = pipe.recv()
                except EOFError:
                    raise RuntimeError(
                        f"a process died while it trained {run}: it was killed, or memory ran out. Go on with resume=, "
                        "and with workers=1"
                    ) from None
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    idle.append(pipe)
                    del busy[pipe]
                yield ("end" if found is None else "look"), run, found


def can_be_sent(trainer: Trainer) -> bool:
    """Whether another process can be given this: not so for networks made by a lambda or a function in a function."""
    try:
        pickle.dumps((trainer.factory, trainer.contrastive, trainer.loss))
    except Exception:  # whatever an object's own pickling raises
        return False
    return True


def _serve(sent: bytes, pipe: Connection) -> None:
    """A worker's life: a run comes in, looks go out, then None; until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and is the first process's to handle
    trainer: Trainer = pickle.loads(sent)
    if trainer.config.threads is not None:
        import torch

        torch.set_num_threads(trainer.config.threads)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            run = pipe.recv()
            try:
                for look in trainer.train(run):
                    pipe.send(look)
                pipe.send(None)
            except BrokenPipeError:
                raise
            except BaseException as error:
                error.add_note(f"in a worker, while it trained {run}:\n{traceback.format_exc()}")
                try:
                    pipe.send(error)
                except (pickle.PicklingError, TypeError, AttributeError):
                    pipe.send(RuntimeError("".join(traceback.format_exception(error))))
