"""The command line: ``nearfar compare``, ``nearfar report``, ``nearfar list``.

Options come from dataclasses, by tyro. Nothing heavy is loaded before a command has been read, so that ``--help``
answers at once. Mistakes of the user's end in one line on stderr and exit code 2; the full traceback is there with
``NEARFAR_DEBUG=1``.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from nearfar.compare.arms import ARMS
from nearfar.compare.config import CompareConfig
from nearfar.compare.names import unknown

if TYPE_CHECKING:
    from nearfar.compare.record import RunFolder
    from nearfar.compare.study import Study


@dataclass(frozen=True)
class ReportConfig:
    """Writes the HTML page of a comparison, finished or not, from its run folder."""

    run: str
    """The run folder."""
    out: str | None = None
    """Where to write the page; by default report.html in the run folder."""
    picture: str | None = None
    """Also draw the learning curves as an SVG picture, to this file."""


@dataclass(frozen=True)
class ListConfig:
    """Shows what there is: arms of a comparison, data sets, losses, networks."""

    what: Literal["all", "arms", "data", "losses", "networks"] = "all"
    """Which of them."""


COMMANDS = {"compare": CompareConfig, "report": ReportConfig, "list": ListConfig}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: As on the command line, without the program's name; by default those of the process.

    Returns:
        The exit code: 0; 2 after a mistake in what was asked; 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            raise ValueError(unknown("command", arguments[0], COMMANDS))
        config = _read(arguments)
        if isinstance(config, ListConfig):
            return _list(config)
        if isinstance(config, ReportConfig):
            return _report(config)
        from nearfar.compare.convergence import prepare
        from nearfar.compare.environment import usable_cores

        study, folder = prepare(config, cores=usable_cores())
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("NEARFAR_DEBUG"):
            raise
        print(f"nearfar: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nearfar: interrupted before anything was trained", file=sys.stderr)
        return 130
    return _compare(study, folder)


def _read(arguments: list[str]) -> CompareConfig | ReportConfig | ListConfig:
    try:
        import tyro
    except ImportError as error:
        raise ImportError('the command line needs tyro: pip install "nearfar[cli]"') from error
    from tyro.conf import OmitArgPrefixes, PositionalRequiredArgs, subcommand

    commands: Any = Union[tuple(Annotated[config, subcommand(name)] for name, config in COMMANDS.items())]  # noqa: UP007
    return tyro.cli(
        commands,
        prog="nearfar",
        description="Contrastive learning: inside the loss of an ordinary supervised model, and what it is worth there.",
        args=arguments,
        config=(OmitArgPrefixes, PositionalRequiredArgs),
    )


def _compare(study: Study, folder: RunFolder) -> int:
    from rich.console import Console

    from nearfar.compare.study import Interrupted

    console = Console()
    for line in study.trainer.task.bad:
        print(f"left out: {line}", file=sys.stderr)
    console.print(study.outline(), highlight=False)
    try:
        result = study.run(folder)
    except Interrupted as stopped:
        console.print(stopped.comparison)
        print(f"Interrupted. Go on with: nearfar compare --resume {shlex.quote(str(folder.path))}", file=sys.stderr)
        return 130
    console.print(result)
    console.print(f"Page with curves: {folder.path / 'report.html'}", highlight=False, soft_wrap=True)
    return 0


def _report(config: ReportConfig) -> int:
    from nearfar.compare.result import Comparison
    from nearfar.report.files import write_text
    from nearfar.report.page import render_page
    from nearfar.report.picture import render_picture

    result = Comparison.load(config.run)
    written = [(Path(config.out or Path(config.run) / "report.html"), render_page(result.to_dict()))]
    if config.picture is not None:
        written.append((Path(config.picture), render_picture(result.to_dict())))
    for path, text in written:
        write_text(path, text)
        print(path)
    return 0


def _list(config: ListConfig) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for what, rows in LISTS.items():
        if config.what not in ("all", what):
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


def _networks() -> Iterator[tuple[str, ...]]:
    from nearfar.encoders.backbones import ENCODERS

    yield "name", "what it is"
    for name, factory in ENCODERS.items():
        yield name, (factory.__doc__ or "").partition("\n")[0]


LISTS = {"arms": _arms, "data": _sources, "losses": _losses, "networks": _networks}

if __name__ == "__main__":
    sys.exit(main())
