"""The command line: ``nearfar compare``, ``nearfar report``, ``nearfar list``.

Options come from dataclasses, by tyro. Nothing heavy is loaded before a command has been read, so that ``--help``
answers at once. Mistakes of the user's end in one line on stderr and exit code 2; the full traceback is there with
``NEARFAR_DEBUG=1``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from nearfar import __version__
from nearfar.compare.arms import ARMS
from nearfar.compare.config import CompareConfig
from nearfar.data.command import ViewsConfig
from nearfar.encoders.config import ExportConfig
from nearfar.evaluation.config import EvaluateConfig
from nearfar.index.config import (
    EmbedConfig,
    EnrollConfig,
    IndexConfig,
    ReportConfig,
    SearchConfig,
    VerifyConfig,
)
from nearfar.marks import Positional
from nearfar.names import given, refuse_unused, unknown
from nearfar.terminal import steady
from nearfar.training.config import TrainConfig

Listed = Literal["all", "arms", "data", "losses", "methods", "networks", "views"]


@dataclass(frozen=True)
class ListConfig:
    """Shows what there is: arms of a comparison, data sets, losses, methods, networks, views."""

    table: Positional[Listed] = "all"
    """Which of them."""
    what: Listed = "all"
    """The same, as an option."""

    def __post_init__(self) -> None:
        if self.table != "all" and self.what not in ("all", self.table):
            raise ValueError(f"{self.table} and --what {self.what} were both given: pass one of them")


@dataclass(frozen=True)
class Command:
    """A command: a row of ``COMMANDS``."""

    config: type
    """A frozen dataclass: its docstring and the strings under its fields are the command's help. Loads no torch."""
    run: str
    """``module:function``, called with the configuration; returns the exit code. Loaded when the command is given."""


COMMANDS = {
    "train": Command(TrainConfig, "nearfar.training.command:run"),
    "compare": Command(CompareConfig, "nearfar.compare.command:run"),
    "evaluate": Command(EvaluateConfig, "nearfar.index.evaluate:run"),
    "embed": Command(EmbedConfig, "nearfar.index.embed:run"),
    "index": Command(IndexConfig, "nearfar.index.build:run"),
    "search": Command(SearchConfig, "nearfar.index.search:run"),
    "enroll": Command(EnrollConfig, "nearfar.index.gallery:run"),
    "verify": Command(VerifyConfig, "nearfar.index.verify:run"),
    "report": Command(ReportConfig, "nearfar.cli:report"),
    "views": Command(ViewsConfig, "nearfar.data.command:run"),
    "export": Command(ExportConfig, "nearfar.encoders.export:run"),
    "list": Command(ListConfig, "nearfar.cli:list_tables"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Whatever the terminal can show, and whether or not somebody reads to the end, it is carried out.

    Args:
        arguments: As on the command line, without the program's name; by default those of the process.

    Returns:
        The exit code: 0; 2 after a mistake in what was asked, or where not all could be printed; 130 after Ctrl-C.
    """
    with steady() as streams:
        code = _main(list(sys.argv[1:] if arguments is None else arguments))
    lost = next((stream.failed for stream in streams if stream.failed is not None), None)
    if lost is None:
        return code
    with contextlib.suppress(OSError):
        print(
            f"nearfar: not all could be printed ({lost.strerror or lost}); what is written to files is whole",
            file=sys.stderr,
        )
    return code or 2


def _main(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        print(f"nearfar {__version__}")
        return 0
    if arguments == ["help"]:
        arguments = ["--help"]
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            raise ValueError(unknown("command", arguments[0], COMMANDS))
        config, command = _read(arguments)
        module, _, function = command.run.partition(":")
        return getattr(importlib.import_module(module), function)(config)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("NEARFAR_DEBUG"):
            raise
        print(f"nearfar: {_words(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nearfar: interrupted", file=sys.stderr)
        return 130


def _words(error: Exception) -> str:
    """What the system refused, with the file first; else the error's own words."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _read(arguments: list[str]) -> tuple[Any, Command]:
    try:
        import tyro
    except ImportError as error:
        raise ImportError('the command line needs tyro: pip install "nearfar[cli]"') from error
    from tyro.conf import OmitArgPrefixes, PositionalRequiredArgs, subcommand

    def read(name: str, row: Command) -> Any:
        """A command's options, which a file that it names may have begun."""
        preset = getattr(row.config, "preset", None)
        default = preset(arguments[1:]) if preset is not None and arguments[:1] == [name] else None
        return Annotated[row.config, subcommand(name) if default is None else subcommand(name, default=default)]

    commands: Any = Union[tuple(read(name, row) for name, row in COMMANDS.items())]  # noqa: UP007
    config = tyro.cli(
        commands,
        prog="nearfar",
        description="Contrastive learning: inside the loss of an ordinary supervised model, and what it is worth there.",
        args=arguments,
        config=(OmitArgPrefixes, PositionalRequiredArgs),
    )
    return config, next(row for row in COMMANDS.values() if row.config is type(config))


def report(config: ReportConfig) -> int:
    """Writes the page of a comparison, or of training runs."""
    run, *others = config.runs
    trained = [(Path(one) / "config.yaml").is_file() for one in config.runs]
    if any(trained) or others:
        from nearfar.index.report import report as report_runs

        return report_runs(config)
    if not any((Path(run) / name).is_file() for name in ("result.json", "config.json")):
        raise ValueError(f"{run} holds no comparison and no training run: pass the folder that nearfar made for one")
    refuse_unused(given(config, "rows", "umap", "device", "allow_code"), f"{run} is a comparison, without embeddings")
    from nearfar.compare.result import Comparison
    from nearfar.report.files import write_text
    from nearfar.report.page import render_page
    from nearfar.report.picture import render_picture

    result = Comparison.load(run)
    written = [(Path(config.out or Path(run) / "report.html"), render_page(result.to_dict()))]
    if config.picture is not None:
        written.append((Path(config.picture), render_picture(result.to_dict())))
    for path, text in written:
        write_text(path, text)
    print(*(path for path, _ in written), sep="\n")
    return 0


def list_tables(config: ListConfig) -> int:
    """Prints the tables that were asked for."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    wanted = config.what if config.table == "all" else config.table
    for what, rows in LISTS.items():
        if wanted not in ("all", what):
            continue
        table = Table(title=what, title_justify="left")
        head, *body = rows()
        for name in head:
            table.add_column(name, overflow="fold", no_wrap=name == "name")
        for row in body:
            table.add_row(*map(Text, row))
        Console().print(table)
    return 0


def _arms() -> Iterator[tuple[str, ...]]:
    yield "name", "what it is", "role", "head", "read-out"
    for name, arm in ARMS.items():
        yield name, arm.title, arm.kind, arm.head, arm.readout


def _sources() -> Iterator[tuple[str, ...]]:
    from nearfar.data.sources import SOURCES

    yield "name", "what it is", "licence", "how to get it"
    for name, source in SOURCES.items():
        yield name, source.title, source.licence, source.get


def _losses() -> Iterator[tuple[str, ...]]:
    from nearfar.losses.table import LOSSES

    yield "name", "kind", "similarity", "the mean runs over", "paper"
    for name, row in LOSSES.items():
        yield name, row.kind, row.similarity, row.mean, row.paper


def _methods() -> Iterator[tuple[str, ...]]:
    from nearfar.methods.table import METHODS

    yield "name", "what belongs together", "needs", "paper"
    for name, row in METHODS.items():
        yield name, row.title, row.needs, row.paper


def _networks() -> Iterator[tuple[str, ...]]:
    from nearfar.encoders.backbones import ENCODERS

    yield "name", "reads", "what it is"
    for name, row in ENCODERS.items():
        yield name, ", ".join(row.kinds), row.title


def _views() -> Iterator[tuple[str, ...]]:
    from nearfar.data.views import VIEWS

    yield "name", "of", "what it does"
    for name, row in VIEWS.items():
        yield name, ", ".join(row.kinds), row.title


LISTS = {
    "arms": _arms, "data": _sources, "losses": _losses, "methods": _methods, "networks": _networks, "views": _views,
}  # fmt: skip
