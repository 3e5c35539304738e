"""The run folder of a comparison: what was asked, every evaluation as it came, and the result.

``config.json``, ``events.jsonl`` (a line an evaluation, flushed at once; each says of which run), ``result.json``,
``report.html``. Whatever stops a comparison, the runs that were finished are on disk, and it goes on from there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from nearfar.report.files import read_json, write_json
from nearfar.training.events import EventLog, free_folder, read_events


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
        self._events: EventLog | None = None

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
        return cls(free_folder("compare", data))

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
        finished: dict[Run, Curve] = {}
        begun: dict[Run, Curve] = {}
        path = self.path / "events.jsonl"
        for number, event in enumerate(read_events(path), 1):
            try:
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
        self._events = EventLog(self.path / "events.jsonl")
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
        self._events.write(kind, **asdict(run), **({} if look is None else asdict(look)))
