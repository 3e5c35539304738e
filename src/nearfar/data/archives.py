"""Tar shards without the hidden files that are in them, such as those of ``.ipynb_checkpoints`` and ``__MACOSX``."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from nearfar.data.folders import is_hidden


def load_shards(datasets: Any, data_files: dict[str, list[str]], streaming: bool = False) -> Any:
    """What ``datasets.load_dataset("webdataset", …)`` gives, without hidden files.

    Args:
        datasets: The library.
        data_files: Paths of shards, by part.
        streaming: Read them in order, and keep nothing on disk.
    """
    # A name of its own, or what was kept on disk with hidden files would be read again.
    builder = datasets.load_dataset_builder("webdataset", "visible", data_files=data_files)
    rows = builder._get_pipeline_from_tar
    builder._get_pipeline_from_tar = lambda tar, files: rows(tar, (file for file in files if not hidden_file(file[0])))
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare()
    return builder.as_dataset()


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
