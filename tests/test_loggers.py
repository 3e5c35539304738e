"""What loggers hold, read back by their own readers; over a crash too. Nothing is sent anywhere."""

from __future__ import annotations

import csv
import importlib.util
import json
import socket
import struct
import sys
from collections import namedtuple
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import nearfar as nf
from nearfar.training.loggers import LOGGERS, make_logger
from nearfar.training.session import Session
from train_cases import images

Told = list[tuple[int, str, float]]
OPTIONS = {
    "method": "supcon", "views": "none", "batch_size": 16, "steps": 5, "eval_every": 2, "checkpoint_every": 2,
    "model": "small-cnn", "threads": 1, "temperature": 0.25,
}  # fmt: skip


def read_tensorboard(folder: Path) -> tuple[Told, dict[str, str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    told = [(e.step, name, e.value) for name in events.Tags()["scalars"] for e in events.Scalars(name)]
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    known = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    return told, {name: str(value) for name, value in known.items()}


def read_csv(folder: Path) -> tuple[Told, None]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [(int(r["step"]), k, float(v)) for r in rows for k, v in r.items() if v and k != "step"], None


def leveldb_log(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, which W&B writes: blocks of 32 KB, and a header of 7 bytes a piece."""
    at, record = 7, b""  # W&B's own header
    while at + 7 <= len(data):
        if at % 32768 > 32768 - 7:  # no room for a header
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def read_wandb(folder: Path) -> tuple[Told, dict[str, str]]:
    from wandb.proto.wandb_internal_pb2 import Record

    told, known, names = [], {}, set()
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        names.add(path.stem)
        for data in leveldb_log(path.read_bytes()):
            record = Record.FromString(data)
            for item in record.history.item:
                name = item.key or item.nested_key[0]
                if not name.startswith("_"):
                    told.append((record.history.step.num, name, float(json.loads(item.value_json))))
            known |= {item.key: json.loads(item.value_json) for item in record.run.config.update if item.key}
    assert names == {f"run-{(folder / 'wandb.id').read_text()}"}  # one run, also where it was resumed
    return told, {name: str(value) for name, value in known.items()}


def read_mlflow(folder: Path) -> tuple[Told, dict[str, str]]:
    from mlflow import MlflowClient

    client = MlflowClient((folder / "mlflow").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "nearfar"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (folder.name, "FINISHED")
    told = [
        (m.step, name.replace("_at_", "@"), m.value)
        for name in run.data.metrics
        for m in client.get_metric_history(run.info.run_id, name)
    ]
    return told, run.data.params


READERS = {"tensorboard": read_tensorboard, "csv": read_csv, "wandb": read_wandb, "mlflow": read_mlflow}


def wanted(run: nf.Run) -> dict[tuple[int, str], float]:
    """What the events say, spelled out."""
    known = {}
    for e in run.events("step"):
        assert e["temperature"] == 0.25
        told = {"loss": e["loss"], "supcon": e["terms"]["supcon"], "rate": e["rate"], "temperature": 0.25}
        known |= {(e["step"], name): value for name, value in told.items()}
    for e in run.events("look"):
        names = ("alignment", "uniformity", "effective_rank", "feature_std")
        told = {"knn": e["metrics"]["knn"], "recall@1": e["metrics"]["recall@1"]} | {n: e["geometry"][n] for n in names}
        known |= {(e["step"], name): value for name, value in told.items()}
    return known


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No account, no server, and no name that is looked up."""
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_PROJECT",
        "WANDB_NAME",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    asked, look_up = [], socket.getaddrinfo

    def getaddrinfo(host, *arguments, **options):
        if host not in (None, "localhost", "127.0.0.1", "::1"):
            asked.append(host)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield
    assert asked == []


def crash(monkeypatch, out: Path, logger: str) -> None:
    """A run that ends at its third step, one after its last checkpoint."""

    def broken(self, step: int) -> None:
        if step == 3:
            raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_tell_bad", broken)
        with pytest.raises(RuntimeError, match="the disk is full"):
            nf.train(corpus=images(), out=str(out), logger=logger, show=False, **OPTIONS)


@pytest.mark.parametrize("logger", READERS)
def test_a_logger_holds_what_happened_once_and_the_options(logger, alone, monkeypatch, tmp_path):
    """Over a crash after step 3 and a run that goes on from step 2."""
    needs = LOGGERS[logger].needs
    if needs is not None:
        pytest.importorskip(needs)
    out = tmp_path / "run"
    crash(monkeypatch, out, logger)
    run = nf.train(corpus=images(), resume=str(out), show=False)
    told, known = READERS[logger](out)
    expected = wanted(run)
    assert {step for step, _ in expected} == {0, 1, 2, 3, 4, 5}  # 0: the look before training
    assert {(step, name): value for step, name, value in told} == pytest.approx(expected, rel=1e-6)
    if logger != "wandb":  # which keeps both of step 3, which are the same
        assert len(told) == len(expected)
    if known is not None:
        for name, value in run.config.saved().items():
            assert str(known[name]) in (str(value), f"{value}.0"), name
    inside = {path.name for path in out.iterdir()} - {
        "config.yaml",
        "environment.json",
        "events.jsonl",
        "checkpoints",
        "model",
    }
    assert inside <= {logger, f"{logger}.id"}


@pytest.mark.parametrize("logger", ["tensorboard", "csv"])
def test_a_logger_that_comes_later_is_told_what_was_before(logger, alone, monkeypatch, tmp_path):
    crash(monkeypatch, tmp_path / "run", "none")
    run = nf.train(corpus=images(), resume=str(tmp_path / "run"), logger=logger, show=False)
    told, _ = READERS[logger](run.path)
    assert {(step, name): value for step, name, value in told} == pytest.approx(wanted(run), rel=1e-6)


class Server:
    """Keeps what MLflow's client is told, as a tracking server does: twice what it is told twice, parameters once for all."""

    def __init__(self) -> None:
        self.runs, self.status, self.params, self.metrics, self.down = 0, "", {}, [], False

    def __call__(self, uri: str) -> Server:
        return self

    def get_experiment_by_name(self, name: str) -> None:
        self._answer()

    def create_experiment(self, name: str) -> str:
        return name

    def create_run(self, place: str, run_name: str) -> SimpleNamespace:
        self.runs += 1
        return SimpleNamespace(info=SimpleNamespace(run_id="1"))

    def get_run(self, run: str) -> SimpleNamespace:
        self._answer()
        return SimpleNamespace(data=SimpleNamespace(params=self.params, metrics={m.key: m.value for m in self.metrics}))

    def get_metric_history(self, run: str, name: str) -> list[Any]:
        return [metric for metric in self.metrics if metric.key == name]

    def log_batch(self, run: str, metrics: Sequence[Any] = (), params: Sequence[Any] = ()) -> None:
        self._answer()
        assert not {p.key for p in params} & self.params.keys()
        self.params |= {p.key: p.value for p in params}
        self.metrics += metrics

    def update_run(self, run: str, status: str) -> None:
        self.status = status

    set_terminated = update_run

    def _answer(self) -> None:
        if self.down:
            raise ArithmeticError("connection refused")


@pytest.fixture
def server(monkeypatch) -> Server:
    """A stand-in for the package and its server, so that this is tested where neither is."""
    server = Server()
    metric, param = namedtuple("Metric", "key value timestamp step"), namedtuple("Param", "key value")
    modules = {
        "mlflow": {"MlflowClient": server},
        "mlflow.entities": {"Metric": metric, "Param": param},
        "mlflow.exceptions": {"MlflowException": ArithmeticError},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return server


def test_mlflow_is_told_what_it_lacks_wherever_a_kill_fell(server, tmp_path):
    """Between a run's name and its options, between a step's figures and its look's, between two checkpoints."""
    events = [({"loss": 1.0 / step}, {"recall@1": step / 4}) for step in (1, 2, 3, 4)]
    log_batch, config = server.log_batch, {"lr": 0.1, "data": "digits"}
    for stopped in (0, 2, 5, 6, 99):
        calls = iter(range(stopped))

        def killed(run, calls=calls, **told):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            log_batch(run, **told)

        server.log_batch = killed
        with suppress(KeyboardInterrupt):
            logger = make_logger("mlflow", tmp_path, config, first=0)
            assert logger is not None
            assert logger.fresh  # all that was is told again
            for step, told in enumerate(events, 1):
                for figures in told:
                    logger.log_metrics(figures, step)
            logger.finalize("finished")
    assert (server.runs, server.status, server.params) == (1, "FINISHED", {"lr": "0.1", "data": "digits"})
    for name, values in (("loss", [1.0, 1 / 2, 1 / 3, 1 / 4]), ("recall_at_1", [1 / 4, 2 / 4, 3 / 4, 1.0])):
        told = server.get_metric_history("1", name)
        assert [(m.step, m.value) for m in told] == list(enumerate(values, 1))


def test_a_server_that_does_not_answer_is_told_in_words(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    logger = make_logger("mlflow", tmp_path, {})
    assert logger is not None
    server.down = True
    wanted = r"^MLflow at http://127.0.0.1:1 cannot be used \(connection refused\): resume the run when it can"
    with pytest.raises(OSError, match=wanted):
        logger.log_metrics({"loss": 1.0}, 1)
    with pytest.raises(OSError, match=wanted):
        make_logger("mlflow", tmp_path, {})


@pytest.mark.parametrize("logger", ["tensorboard", "wandb", "mlflow"])
def test_a_logger_that_is_not_installed(logger, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == logger else find(name, *rest))
    with pytest.raises(ImportError, match=f"logger '{logger}' needs {logger}: pip install {logger}"):
        nf.train(corpus=images(), out=str(tmp_path / "run"), logger=logger, **OPTIONS)
    assert not (tmp_path / "run").exists()
