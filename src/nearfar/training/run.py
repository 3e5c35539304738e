"""A run is a folder: what was asked, what happened, checkpoints, and the encoder that came out.

``config.yaml``, ``environment.json``, ``events.jsonl``, ``checkpoints/``, ``model/``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from nearfar.data.place import contents_of, is_there, whole_path
from nearfar.report.files import read_json, write_json, write_text
from nearfar.training.checkpoint import last_checkpoint
from nearfar.training.config import EARLIER, TrainConfig
from nearfar.training.events import free_folder, read_events
from nearfar.training.options import read_yaml


class Run:
    """A training run, finished or not, by its folder.

    Args:
        path: Of the folder.

    Attributes:
        path: Of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, out: str | None, data: str, source: str | None = None) -> Run:
        """Makes a new folder: ``out``, or the first free ``runs/train-DATA-N``.

        Args:
            out: The folder, if one was asked for.
            data: Name of the data.
            source: Where they were read from, if from a path.

        Raises:
            ValueError: If ``out`` holds a run already, or is a file or the folder of the data.
        """
        if out is None:
            return cls(free_folder("train", data))
        path = Path(out).expanduser()
        if path.is_file():
            raise ValueError(f"{path} is a file: pass a folder as out= (--out)")
        if (path / "config.yaml").exists() or (path / "config.json").exists():
            raise ValueError(
                f"{path} holds a run already: go on with it by resume= (--resume {path}), or pass another out="
            )
        if source is not None and path.is_dir() and path.resolve() == Path(source).expanduser().resolve():
            raise ValueError(f"{path} is the folder of the data, which a run would spoil: pass another out= (--out)")
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """A folder that is there already.

        Raises:
            ValueError: If it does not hold a training run.
        """
        run = cls(Path(path).expanduser())
        if not (run.path / "config.yaml").is_file():
            raise ValueError(
                f"{run.path} holds no training run (no config.yaml): pass the folder that nearfar train made"
            )
        return run

    def begin(self, config: TrainConfig, environment: dict[str, Any]) -> None:
        """Writes down what was asked; the configuration comes last, and makes the folder a run."""
        import yaml

        write_json(self.path / "environment.json", environment)
        write_text(self.path / "config.yaml", yaml.safe_dump(config.saved(), sort_keys=False, allow_unicode=True))

    @property
    def config(self) -> TrainConfig:
        """As resolved: every default filled in."""
        return TrainConfig.of(**EARLIER | read_yaml(self.path / "config.yaml"))

    @property
    def environment(self) -> dict[str, Any]:
        """The machine, the data and the model."""
        return read_json(self.path / "environment.json")

    @property
    def source(self) -> dict[str, Any]:
        """Where its data were and what they held (``path``, ``contents``); empty for data in memory, and of earlier versions."""
        known = self.path / "environment.json"
        return (read_json(known).get("source") or {}) if known.is_file() else {}

    def is_own(self, data: str, own: str) -> bool:
        """Whether data are those it was trained on: they lie where those lay, or hold the same in another place.

        Args:
            data: As they are named now.
            own: As ``config.yaml`` names its own.
        """
        then = self.source
        if whole_path(data) == then.get("path", whole_path(own)):
            return True
        return then.get("contents") is not None and contents_of(data) == then["contents"]

    def find_data(self, own: str) -> str:
        """Where its data are, seen from here: where they were, or by their name, if that holds the same.

        Args:
            own: As ``config.yaml`` names them.

        Raises:
            ValueError: If they came from a path that is not there, or that is others' here. A path such as ``photos/cats``
                would else be asked for on the Hub, as a name.
        """
        then = self.source
        if then.get("contents") is not None and whole_path(own) != then["path"]:
            if is_there(then["path"]):
                return then["path"]
            if contents_of(own) != then["contents"]:
                here = f", and {own} here holds others" if is_there(own) else ""
                raise ValueError(
                    f"{own}, which {self.path} was trained on, is not here: it was {then['path']}{here}; name the data (--data)"
                )
            return own
        known = self.path / "environment.json"
        name = read_json(known).get("data", {}).get("name", own) if known.is_file() else own
        if name != own and not is_there(own):  # of missing shards others say more
            raise ValueError(
                f"{own}, which {self.path} was trained on, is not here: go to the folder that the path begins in, or name the "
                "data"
            )
        return own

    def moved(self, data: str) -> None:
        """Writes down where its data are now."""
        then = self.source
        if then and then["path"] != whole_path(data):
            write_json(self.path / "environment.json", self.environment | {"source": then | {"path": whole_path(data)}})

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def events(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """What happened, in order; of one kind, if asked for: step, look, warning, end."""
        return (e for e in read_events(self.path / "events.jsonl") if kind is None or e["event"] == kind)

    @property
    def metrics(self) -> dict[str, float]:
        """Of the last look."""
        last: dict[str, float] = {}
        for event in self.events("look"):
            last = event["metrics"]
        return last

    @property
    def end(self) -> dict[str, Any]:
        """How it ended: ``reason``, ``best`` (the step whose weights are kept), figures ``before`` training and ``after``, in
        those weights, and ``lost`` if that is worse. Empty while it has not.
        """
        return next((event for event in self.events("end") if "failed" not in event), {})

    @property
    def unfinished(self) -> str | None:
        """That it has not come to its end, and what its weights are then, in words; None: it has, or it is not known."""
        if not (self.path / "events.jsonl").is_file() or self.finished:
            return None
        last = last_checkpoint(self.checkpoints)
        step = 0 if last is None else read_json(last / "state.json")["best"]["step"]
        weights = f"of step {step:,}, the best so far" if step else "those before training"
        return f"{self.path} has not come to its end: its weights are {weights} (go on with nearfar train --resume {self.path})"

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return bool(self.end)

    def embedder(self, device: str = "cpu") -> Any:
        """What was trained: the best by the metric that was watched, else the last."""
        from nearfar.encoders.embedder import Embedder

        return Embedder.load(self.path / "model", device)

    def save_model(self, embedder: Any, weights: dict[str, Tensor]) -> None:
        """Writes ``model/``, with weights gathered from all ranks; a reader finds the old ones or the new ones."""
        beside, final = self.path / f".model-{os.getpid()}", self.path / "model"
        shutil.rmtree(beside, ignore_errors=True)
        embedder.save(beside, weights)
        final.mkdir(exist_ok=True)
        for path in sorted(beside.iterdir(), key=lambda path: path.suffix == ".json"):
            path.replace(final / path.name)
        beside.rmdir()

    def changes(self, digits: int = 4) -> dict[str, str]:
        """Figures before training and after, in the weights that are kept, as text: ``{"mrr": "0.5590 → 0.5812"}``."""
        before, after = self.end.get("before", {}), self.end.get("after", self.metrics)
        arrows = {name: f"{before[name]:.{digits}f} → " if name in before else "" for name in after}
        return {name: f"{arrows[name]}{value:.{digits}f}" for name, value in after.items()}

    def __repr__(self) -> str:
        """Where it is, and how good it was before training and is now."""
        seen = ", ".join(f"{name} {told}" for name, told in self.changes(3).items())
        return f"<Run {self.path}{': ' if seen else ''}{seen}>"
