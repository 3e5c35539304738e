"""``nearfar embed``: data through an encoder into a file, batch by batch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nearfar
from nearfar.data.bad import left_out
from nearfar.data.corpus import Column, Corpus, Part, RawBatch
from nearfar.data.parts import TablePart, image_source
from nearfar.index.config import EmbedConfig, IndexConfig
from nearfar.index.items import Meta, item_batch, item_schema, shown
from nearfar.index.run import Run, open_run

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".pq", ".npy", ".safetensors")


@dataclass
class Source:
    """Data that are to be embedded: the rows of a corpus, input by input.

    Attributes:
        parts: Name of the split and its rows.
        bad: What could not be read, as it is met.
    """

    run: Run
    corpus: Corpus
    columns: list[Column]
    parts: list[tuple[str, Part]]
    batch_size: int
    bad: list[str] = field(default_factory=list)

    @property
    def items(self) -> int:
        """How many items there are."""
        return sum(len(part) for _, part in self.parts)

    @property
    def meta(self) -> Meta:
        """Where the vectors come from."""
        return Meta(
            dim=self.run.embedder.dim,
            model=self.run.model,
            run=str(self.run.path),
            weights=self.run.weights,
            data=self.corpus.name,
            modalities=tuple(dict.fromkeys(column.kind for column in self.columns)),
            nearfar=nearfar.__version__,
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Embedded rows in order, a batch and an input at a time."""
        for _, batches in self.chunks():
            yield from batches

    def chunks(self, start: int = 0) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
        """The same by ``batch_size`` items, numbered, from one of them on. The next items are read while these are embedded.

        An item's number does not depend on the size of a batch.
        """
        schema, first, number = item_schema(self.meta), 0, 0
        for split, part in self.parts:
            chunks = [range(at, min(at + self.batch_size, len(part))) for at in range(0, len(part), self.batch_size)]
            left, number = chunks[max(start - number, 0) :], number + len(chunks)
            with ThreadPoolExecutor(1) as reader:
                for at, raw in enumerate(_ahead(reader, part, left), number - len(left)):
                    self.bad += raw.bad
                    inputs = enumerate(self.columns) if len(raw) else ()
                    yield at, [self._embedded(schema, split, part, raw, column, first, k) for k, column in inputs]
            first += len(part)

    def _embedded(
        self, schema: pa.Schema, split: str, part: Part, raw: RawBatch, column: Column, first: int, at: int
    ) -> pa.RecordBatch:
        held, rows = raw.columns[column.name], raw.rows.tolist()
        labels = [-1] * len(rows) if raw.labels is None else raw.labels.tolist()
        names = self.corpus.class_names
        facts: dict[str, Sequence[Any]] = {
            "row": [(first + row) * len(self.columns) + at for row in rows],
            "name": _names(part, column, rows),
            "column": [column.name] * len(rows),
            "modality": [column.kind] * len(rows),
            "label": [(names[label] if label < len(names) else str(label)) if label >= 0 else None for label in labels],
            "id": [None] * len(rows) if raw.groups is None else [str(group) for group in raw.groups.tolist()],
            "split": [split] * len(rows),
        }
        if column.kind == "text":
            facts["text"] = list(held)
        return item_batch(schema, facts, self.run.embed(column.kind, held).numpy())


def open_source(run: Run, config: EmbedConfig | IndexConfig) -> Source:
    """Opens the data that a command named, as the model reads them.

    Raises:
        ValueError: If the data hold nothing that the model reads, or are streamed and not counted.
    """
    corpus = run.open_data(
        config.data, root=config.root, image=config.image, text=config.text, positive=config.positive, label=config.label,
        id=config.id, similar=config.similar, scale=config.scale, skip_bad=config.skip_bad or None, streaming=False,
    )  # fmt: skip
    parts = []
    for name, part in (("train", corpus.train), ("test", corpus.test)):
        if part is None or config.split not in ("all", name):
            continue
        if not isinstance(part, Part):
            raise ValueError(
                f"the {name} rows of {corpus.name} are streamed, and nobody knows where they end: pass a file"
            )
        parts.append((name, part))
    if not parts:
        raise ValueError(f"{corpus.name} holds out no rows: pass --split all")
    return Source(run, corpus, run.columns(corpus, config.column), parts, config.batch_size)


def run(config: EmbedConfig) -> int:
    """Embeds data into a file, or the rest of it where an earlier call did not end."""
    from nearfar.index.files import open_file
    from nearfar.index.resumed import Parts, job_of

    out = Path(config.out).expanduser()
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"out is {str(out)!r}: wanted a file that ends in {', '.join(SUFFIXES)}")
    source = open_source(open_run(config.run, config.device, allow_code=config.allow_code), config)
    store, parts = open_file(out), Parts(out, job_of(source, config))
    if parts.rows:
        print(f"{parts.rows} rows are there already", file=sys.stderr)
    try:
        store.create(source.meta)
        store.add(progress(source, parts.through(source)))
        store.finish()
    finally:
        store.close()
    parts.remove()
    tell_bad(source)
    print(f"{store.count()} rows of {source.meta.dim} numbers: {out}")
    return 0


def progress(source: Source, batches: Iterable[pa.RecordBatch] | None = None) -> Iterator[pa.RecordBatch]:
    """The batches of a source, with a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("embedding", total=source.items * len(source.columns))
        for batch in source.batches() if batches is None else batches:
            yield batch
            bar.advance(task, len(batch))


def tell_bad(source: Source) -> None:
    """Says on stderr what was decided and what was left out."""
    for line in source.corpus.notes:
        print(f"note: {shown(line)}", file=sys.stderr)
    for line in left_out((*source.corpus.bad, *source.bad)):
        print(shown(line), file=sys.stderr)


def _names(part: Part, column: Column, rows: list[int]) -> list[str]:
    """What to call rows: an image by its own path where it has one, which says more than the line that names it."""
    if column.kind == "image" and isinstance(part, TablePart) and rows:
        read = next(field for field in part.fields if field.column.name == column.name)
        if isinstance(part.table[int(part.rows[rows[0]])][read.source], str):
            cells = part.table[part.rows[rows].tolist()][read.source]
            return [str(image_source(cell, read.base)) for cell in cells]
    return [part.name(row) for row in rows]


def _ahead(reader: ThreadPoolExecutor, part: Part, chunks: Iterable[range]) -> Iterator[RawBatch]:
    """Reads one chunk ahead."""
    waiting = None
    for chunk in chunks:
        coming = reader.submit(part.fetch, chunk)
        if waiting is not None:
            yield waiting.result()
        waiting = coming
    if waiting is not None:
        yield waiting.result()
