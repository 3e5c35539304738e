"""Where a run's figures go besides ``events.jsonl``: TensorBoard, a CSV file, Weights & Biases, MLflow.

A logger is made of the run's folder and configuration and takes ``log_metrics(metrics, step)`` and ``finalize(status)``;
``fresh`` says that it holds nothing of the steps before, which a resumed run then tells it anew. Each keeps its files in the
run's folder, and none goes on the network unless a login or a server of its own says so.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

Status = Literal["finished", "interrupted", "failed"]


@runtime_checkable
class Logger(Protocol):
    """What takes a run's figures."""

    fresh: bool

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Figures of a step; those of a look come in a second call."""

    def finalize(self, status: Status) -> None:
        """No more of them, for now or for ever."""


class TensorBoard:
    """Event files in ``tensorboard/``. What was written of steps after ``first`` is struck out."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first: int) -> None:
        from torch.utils.tensorboard.summary import hparams
        from torch.utils.tensorboard.writer import SummaryWriter

        place = folder / "tensorboard"
        self.fresh = not place.exists()
        self.writer = SummaryWriter(place, purge_step=None if self.fresh else first + 1)
        if self.fresh:
            known = {name: value if type(value) in (int, float) else str(value) for name, value in config.items()}
            for summary in hparams(known, {"loss": 0.0}):
                self.writer._get_file_writer().add_summary(summary)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """A scalar each."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def finalize(self, status: Status) -> None:
        """Everything is on disk afterwards."""
        self.writer.close()


class Table:
    """``csv/metrics.csv``: a row a step, and one a look. A resumed run writes it anew."""

    fresh = True

    def __init__(self, folder: Path, config: Mapping[str, Any], first: int) -> None:
        self.path = folder / "csv" / "metrics.csv"
        self.path.parent.mkdir(exist_ok=True)
        self._begin(["step"], [])

    def _begin(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        self.columns, self.file = columns, self.path.open("w", encoding="utf-8", newline="")
        self.writer = csv.DictWriter(self.file, columns)
        self.writer.writeheader()
        self.writer.writerows(rows)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """A row; columns that are new are added to the rows before."""
        new = [name for name in metrics if name not in self.columns]
        if new:
            self.file.close()
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            self._begin([*self.columns, *new], rows)
        self.writer.writerow({"step": step} | dict(metrics))
        self.file.flush()

    def finalize(self, status: Status) -> None:
        """Closes the file."""
        self.file.close()


class WeightsAndBiases:
    """A run of Weights & Biases, offline without a login. Its files are in ``wandb/``; its name there in ``wandb.id``."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first: int) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else merely importing it calls home
        import wandb
        from requests.utils import get_netrc_auth

        known = wandb.setup().settings
        login = known.api_key or known.identity_token_file or get_netrc_auth(known.base_url)
        offline = not login and "WANDB_MODE" not in os.environ  # else it asks for one, and waits
        if offline:
            wandb.termlog("no login was found: the run stays offline, in its own folder (wandb sync sends it)")
        self.fresh, name = _name(folder / "wandb.id", lambda: uuid.uuid4().hex[:8])
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "nearfar"),
            name=os.environ.get("WANDB_NAME", folder.resolve().name),
            id=name,
            resume="allow",
            dir=folder,
            config=dict(config),
            mode="offline" if offline else None,
            settings=wandb.Settings(console="off"),  # the terminal is the user's
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Joins what was told of the same step."""
        self.run.log(dict(metrics), step=step)

    def finalize(self, status: Status) -> None:
        """Waits until all is written, or sent."""
        self.run.finish(exit_code=int(status != "finished"))


class MLflow:
    """A run of MLflow, in ``mlflow/`` or at ``MLFLOW_TRACKING_URI``. Its name there is in ``mlflow.id``.

    MLflow keeps twice what it is told twice. So a resumed run asks what is there, and tells the rest: neither the steps
    between the last checkpoint and a kill come twice, nor is one missing whose telling the kill cut off.
    """

    fresh = True

    def __init__(self, folder: Path, config: Mapping[str, Any], first: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault(
            "MLFLOW_ALLOW_FILE_STORE", "true"
        )  # a database wants the whole of mlflow, and 9 s at first
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.metric = Metric
        self.uri = os.environ.get("MLFLOW_TRACKING_URI", (folder / "mlflow").resolve().as_uri())
        self.client = MlflowClient(self.uri)
        with self._answering():
            _, self.id = _name(folder / "mlflow.id", lambda: self._begin(folder.resolve().name))
            there = self.client.get_run(self.id).data
            left = [Param(name, str(value)) for name, value in config.items() if name not in there.params]
            self.client.log_batch(self.id, params=left)
            self.client.update_run(self.id, status="RUNNING")
            told = {name: self.client.get_metric_history(self.id, name) for name in there.metrics}
        self.last = {name: max(metric.step for metric in history) for name, history in told.items()}

    def _begin(self, name: str) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "nearfar")
        found = self.client.get_experiment_by_name(experiment)
        place = found.experiment_id if found is not None else self.client.create_experiment(experiment)
        return self.client.create_run(place, run_name=name).info.run_id

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Says in words that there is no server, after the minutes for which MLflow's client tries to reach it."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            raise OSError(
                f"MLflow at {self.uri} cannot be used ({error}): resume the run when it can, or with --logger none"
            ) from error

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """At once, but for what is there. MLflow knows no ``@`` in names: recall@1 is recall_at_1 there."""
        now = int(time.time() * 1000)
        named = {name.replace("@", "_at_"): value for name, value in metrics.items()}
        told = [self.metric(name, value, now, step) for name, value in named.items() if step > self.last.get(name, -1)]
        if told:
            with self._answering():
                self.client.log_batch(self.id, metrics=told)

    def finalize(self, status: Status) -> None:
        """Says how it ended."""
        word = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}[status]
        with self._answering():
            self.client.set_terminated(self.id, word)


def _name(path: Path, make: Any) -> tuple[bool, str]:
    """Whether a run is new to a logger, and what it is called there: so that a resumed run goes on in the same one."""
    if path.is_file():
        return False, path.read_text(encoding="utf-8").strip()
    name = make()
    path.write_text(name, encoding="utf-8")
    return True, name


@dataclass(frozen=True)
class Row:
    """A row of ``LOGGERS``."""

    make: type[Any]
    """Called with the run's folder, its configuration, and the step that it goes on from."""
    needs: str | None
    """The package that it wants, by the name that is imported and installed."""


LOGGERS = {
    "tensorboard": Row(TensorBoard, "tensorboard"), "csv": Row(Table, None), "wandb": Row(WeightsAndBiases, "wandb"),
    "mlflow": Row(MLflow, "mlflow"),
}  # fmt: skip


def check_logger(name: str) -> None:
    """Finds out before a run begins whether it can be logged.

    Raises:
        ImportError: If its package is not installed; the message says the remedy.
    """
    needs = LOGGERS[name].needs if name in LOGGERS else None
    if needs is not None and importlib.util.find_spec(needs) is None:
        raise ImportError(f"logger {name!r} needs {needs}: pip install {needs}")


def make_logger(name: str, folder: Path, config: Mapping[str, Any], first: int = 0) -> Logger | None:
    """A logger by name; None for ``"none"``.

    Args:
        name: A row of ``LOGGERS``, or ``"none"``.
        folder: The run's, where its files go.
        config: What the run was told, to be kept beside its figures.
        first: The step that the run goes on from.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> logger = make_logger("csv", folder, {})
        >>> logger.log_metrics({"loss": 0.5}, step=1), logger.log_metrics({"knn": 0.75}, step=1), logger.finalize("finished")
        (None, None, None)
        >>> (folder / "csv" / "metrics.csv").read_text().split()
        ['step,loss,knn', '1,0.5,', '1,,0.75']
    """
    return LOGGERS[name].make(folder, config, first) if name in LOGGERS else None


def figures(event: Mapping[str, Any]) -> dict[str, float]:
    """What of an event is logged: loss, its terms, rate and temperature of a step; metrics and geometry of a look.

    Example:
        >>> figures({"event": "step", "step": 3, "loss": 0.5, "terms": {}, "rate": 0.1, "temperature": None})
        {'loss': 0.5, 'rate': 0.1}
    """
    if event["event"] == "look":
        return event["metrics"] | event["geometry"]
    if event["event"] != "step":
        return {}
    told = {name: event[name] for name in ("loss", "rate", "temperature") if event[name] is not None}
    return told | event["terms"]
