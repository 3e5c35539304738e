"""Little tables and folders for tests of what is read."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from nearfar.data.corpus import Corpus, Part


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> str:
    """A file, as it is: no end of line is translated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
    return str(path)


def table(path: Path, header: str, *rows: str) -> str:
    """A CSV file."""
    return write(path, "\n".join((header, *rows)) + "\n")


def json_lines(path: Path, rows: Iterable[Any]) -> str:
    """A file of JSON lines."""
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def picture(path: Path | str, value: int = 0) -> None:
    """An image of one colour; bytes of a name that are no UTF-8 will do."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(png(value))


def png(value: int) -> bytes:
    """The bytes of an image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 10, 20)).save(file, "PNG")
    return file.getvalue()


def beside(folder: Path, name: bytes) -> str:
    """The path of a file whose name is bytes."""
    return os.fsdecode(os.fsencode(folder) + b"/" + name)


def shards(folder: Path, count: int = 3, rows: int = 4) -> list[Path]:
    """Tar shards, each with images and captions, numbered through."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(count):
        paths.append(folder / f"s-{shard}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for number in range(shard * rows, (shard + 1) * rows):
                for ending, data in {"png": png(number), "txt": f"caption {number}".encode()}.items():
                    info = tarfile.TarInfo(f"{number:03d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return paths


def rows_of(corpus: Corpus) -> list[tuple[Any, ...]]:
    """The texts of all rows, sorted."""
    found: list[tuple[Any, ...]] = []
    for part in (corpus.train, corpus.test):
        assert isinstance(part, Part)
        columns: Mapping[str, Any] = part.fetch(range(len(part))).columns
        found += zip(*(columns[column.name] for column in corpus.columns if column.kind == "text"))
    return sorted(found)


def classes_of(corpus: Corpus) -> dict[str, str]:
    """The name of the class of each row, by the first input; empty: unknown."""
    found = {}
    for part in (corpus.train, corpus.test):
        assert isinstance(part, Part)
        batch = part.fetch(range(len(part)))
        assert batch.labels is not None
        for text, label in zip(batch.columns[corpus.columns[0].name], batch.labels.tolist()):
            found[text] = corpus.class_names[label] if label >= 0 else ""
    return found
