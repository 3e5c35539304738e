"""Tar shards without the hidden files that are in them, such as those of ``__MACOSX``, and with a word for what is broken."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from nearfar.data.folders import is_hidden

BAD = "__bad__"
"""The cell that says what is wrong with a row; empty: nothing."""


def load_shards(datasets: Any, data_files: dict[str, list[str]], streaming: bool = False) -> Any:
    """What ``datasets.load_dataset("webdataset", …)`` gives, without hidden files, and with what is wrong with a row in ``BAD``.

    Args:
        datasets: The library.
        data_files: Paths of shards, by part.
        streaming: Read them in order, and keep nothing on disk.
    """
    # A name of its own, or what was kept on disk with hidden files would be read again.
    builder = datasets.load_dataset_builder("webdataset", "visible-marked", data_files=data_files)
    decoders = {ending: _forgiving(decode) for ending, decode in builder.DECODERS.items()}
    reader = type("Forgiving", (type(builder),), {"DECODERS": decoders})

    def rows(tar: str, files: Any) -> Iterator[dict[str, Any]]:
        for row in reader._get_pipeline_from_tar(tar, (file for file in files if not hidden_file(file[0]))):
            broken = {name: cell for name, cell in row.items() if isinstance(cell, _Broken)}
            wrong = [f"column {name!r} cannot be read ({cell.why})" for name, cell in broken.items()]
            told = f"{tar}: {row['__key__']}: {', '.join(wrong)}" if wrong else ""
            yield {**row, **dict.fromkeys(broken), BAD: told}

    builder._get_pipeline_from_tar = rows
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare()
    return builder.as_dataset()


class _Broken:
    """A file of a row that could not be decoded."""

    def __init__(self, error: Exception) -> None:
        self.why = f"{type(error).__name__}: {error}"


def _forgiving(decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decoder that gives what is wrong in place of raising it."""

    def decoded(content: Any) -> Any:
        try:
            return decode(content)
        except Exception as error:  # of many kinds: numbers, texts, JSON, pickles
            return _Broken(error)

    return decoded


def hidden_file(name: str) -> bool:
    """Whether a file of an archive, or a folder that it is in, is hidden.

    Example:
        >>> [hidden_file(name) for name in ("./0.png", ".ipynb_checkpoints/0.png", "a/Thumbs.db")]
        [False, True, True]
    """
    return any(is_hidden(part) for part in PurePosixPath(name).parts if part != "..")


def hidden_notes(paths: Sequence[Path]) -> tuple[str, ...]:
    """How many hidden files are passed over in shards, in words; the headers alone are read."""
    count = 0
    for path in paths:
        try:
            with tarfile.open(path) as tar:
                count += sum(file.isfile() and hidden_file(file.name) for file in tar)
        except (tarfile.TarError, OSError, EOFError):  # named when it is read
            continue
    return (f"passed over {count:,} hidden {'files' if count > 1 else 'file'} in the shards",) if count else ()
