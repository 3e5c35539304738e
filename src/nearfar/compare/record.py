"""The run folder of a comparison: what was asked, every evaluation as it came, and the result.

``config.json``, ``events.jsonl`` (a line an evaluation, flushed at once; each says of which run), ``result.json``,
``report.html``. Whatever stops a comparison, the runs that were finished are on disk, and it goes on from there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

from nearfar.report.files import read_json, write_json


@dataclass(frozen=True)
class Run:
    """One training run: what it is and what it is for."""

    stage: Literal["sweep", "measure"]
    arm: str
    rate: float
    weight: float
    seed: int


RUN = tuple(field.name for field in fields(Run))


@dataclass(frozen=True)
class Look:
    """One evaluation of a run."""

    step: int
    seconds: float
    """Of training so far."""
    rows: int
    """Through the network in training so far."""
    accuracy: float
    lost: bool = False
    """Whether the weights are no longer finite."""


@dataclass
class Curve:
    """The evaluations of a run, in order."""

    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    diverged: bool = False

    def add(self, look: Look) -> None:
        """One more evaluation."""
        self.steps.append(look.step)
        self.seconds.append(look.seconds)
        self.rows.append(look.rows)
        self.accuracy.append(look.accuracy)
        self.diverged |= look.lost

    @property
    def score(self) -> float:
        """The mean accuracy over the evaluations: the area under the learning curve, soon and high being both good."""
        return sum(self.accuracy) / len(self.accuracy)


class RunFolder:
    """A folder that a comparison writes to, and goes on from.

    Args:
        path: Of the folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: TextIO | None = None

    @classmethod
    def create(cls, out: str | Path | None, data: str) -> RunFolder:
        """Makes a new folder: ``out``, or the first free ``runs/compare-DATA-N``.

        Raises:
            ValueError: If ``out`` holds a comparison already, or is a file.
        """
        if out is not None:
            path = Path(out).expanduser()
            if path.is_file():
                raise ValueError(f"{path} is a file: pass a folder as out= (--out)")
            if (path / "config.json").exists():
                raise ValueError(
                    f"{path} holds a comparison already: go on with it by resume= (--resume {path}), or pass another out="
                )
            path.mkdir(parents=True, exist_ok=True)
            return cls(path)
        name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in data)
        number = 1
        while True:
            path = Path("runs") / f"compare-{name}-{number}"
            try:
                path.mkdir(parents=True)
            except FileExistsError:  # of an earlier run, or of one that starts at the same moment
                number += 1
            else:
                return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """A folder that is there already.

        Raises:
            ValueError: If it does not hold a comparison.
        """
        folder = Path(path).expanduser()
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{folder} holds no comparison (no config.json): pass the folder that nearfar compare made"
            )
        return cls(folder)

    @property
    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        return read_json(self.path / "config.json")

    @config.setter
    def config(self, value: dict[str, Any]) -> None:
        write_json(self.path / "config.json", value)

    def finished(self) -> dict[Run, Curve]:
        """Every finished run with its evaluations; of a run that was begun twice, the last time counts.

        Raises:
            ValueError: If a line is not what was written here; the message names the file and the line.
        """
        path = self.path / "events.jsonl"
        finished: dict[Run, Curve] = {}
        begun: dict[Run, Curve] = {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break  # the process was killed while writing it
            try:
                event = json.loads(line)
                kind, run = event.pop("event"), Run(**{name: event.pop(name) for name in RUN})
                if kind == "start":
                    begun[run] = Curve()
                elif kind == "look":
                    begun[run].add(Look(**event))
                else:
                    finished[run] = begun.pop(run)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(
                    f"{path}:{number} cannot be read ({error}): delete the lines of its run, or start anew"
                ) from error
        return finished

    def __enter__(self) -> RunFolder:
        path = self.path / "events.jsonl"
        if path.exists():
            whole = path.read_bytes()
            if not whole.endswith(b"\n"):  # cut the torn line off, or the next one would be glued to it
                path.write_bytes(whole[: whole.rfind(b"\n") + 1])
        self._events = path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def log(self, kind: Literal["start", "look", "end"], run: Run, look: Look | None) -> None:
        """Writes down that a run began, was looked at, or ended."""
        if self._events is None:
            raise RuntimeError("the run folder is closed: write to it inside `with folder:`")
        event = {"event": kind} | asdict(run) | ({} if look is None else asdict(look))
        self._events.write(json.dumps(event, allow_nan=False) + "\n")
        self._events.flush()
