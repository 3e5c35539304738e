"""``nearfar search``: what is nearest to a text or an image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from nearfar.data.classes import class_name
from nearfar.data.pixels import SUFFIXES
from nearfar.index.config import SearchConfig
from nearfar.index.items import FILTERS, Hit, Meta, read_filters, shown
from nearfar.index.run import Run, is_image, open_run
from nearfar.index.store import EFFORT, Effort, Store, open_store
from nearfar.names import given, refuse_unused

Query = Literal["text", "image"]


class Searcher:
    """A model and a store, held open for many queries.

    Args:
        run: A training run or model folder, or one that is open.
        store: Where the index is; by default the folder ``index`` in the run. See ``open_store``.
        collection: The name in a Qdrant server.
        device: Where to embed queries.
        allow_code: Whether an encoder that was given as ``module:factory`` may be imported and called.

    Raises:
        ValueError: If the index was made with other weights than the run has now: its vectors mean something else.
        FileNotFoundError: If there is no index.
    """

    def __init__(
        self,
        run: str | Path | Run,
        store: str | Path | Store | None = None,
        *,
        collection: str | None = None,
        device: str | None = None,
        allow_code: bool = False,
    ) -> None:
        self.run = run if isinstance(run, Run) else open_run(run, device, allow_code=allow_code)
        place = store or self.run.path / "index"
        self.store: Store = open_store(place, collection) if isinstance(place, str | Path) else place
        try:
            self.meta: Meta = self.store.describe()["meta"]
            if self.meta.weights != self.run.weights:
                raise ValueError(
                    f"{shown(str(place))} was made with other weights than {shown(str(self.run.path))} has now "
                    f"({self.meta.weights}, not {self.run.weights}): make it again with nearfar index"
                )
        except BaseException:
            self.store.close()
            raise

    def __enter__(self) -> Searcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.close()

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        kind: Query | None = None,
        where: Mapping[str, str] | None = None,
        effort: Effort = EFFORT,
    ) -> list[Hit]:
        """The ``k`` nearest items, nearest first.

        Args:
            query: A text, the path of an image, a Pillow image, or a tensor of one item ``(1, …)``.
            k: How many; fewer if there are fewer that meet the conditions.
            kind: What the query is; by default an image if it is a file that ends as images do, else a text.
            where: Conditions, column to value, all of which must hold. Where the index holds images beside other items and
                neither ``modality`` nor ``column`` is named, images are found.
            effort: How hard an approximate index tries.

        Raises:
            ValueError: If the model cannot read the query, or a condition names a column that there is not.
        """
        where = {name: class_name(value) if name == "label" else value for name, value in (where or {}).items()}
        for name in where:
            if name not in FILTERS:
                raise ValueError(f"there is no column {name!r} to filter by: wanted {', '.join(FILTERS)}")
        if (
            len(self.meta.modalities) > 1
            and "image" in self.meta.modalities
            and not {"modality", "column"} & where.keys()
        ):
            where["modality"] = "image"
        [hits] = self.store.search(self.embed(query, kind), k, where, effort)
        return hits

    def embed(self, query: Any, kind: Query | None = None) -> Float32[np.ndarray, "1 d"]:
        """The vector of a query."""
        if not isinstance(query, str | Path):
            return self.run.embedder.embed(query, kind=kind).numpy()
        kinds, text = self.run.embedder.kinds, str(query)
        if kind is None:
            if text.lower().endswith(SUFFIXES) and not is_image(text):
                raise ValueError(
                    f"there is no image {shown(text)}; if it is a text to search for, say --as text (kind=)"
                )
            kind = "image" if isinstance(query, Path) or is_image(text) else "text"
            if kind == "text" and kind not in kinds and "image" in kinds:
                raise ValueError(f"{shown(text)!r} is no image file, and the model of {self.run.path} reads no texts")
        if kind not in kinds:
            raise ValueError(
                f"the query is {'an image' if kind == 'image' else 'a text'}, and the model reads {', '.join(kinds)}"
            )
        if kind == "image":
            return self.run.embed_image(Path(text).expanduser()).numpy()
        if not text.strip():
            raise ValueError("the query is an empty text: say what to look for")
        return self.run.embed("text", [text]).numpy()


def search(
    run: str | Path | Run, query: Any, k: int = 10, *, store: str | Path | Store | None = None, **options: Any
) -> list[Hit]:
    """Finds what is nearest to one query; for many, keep a ``Searcher``.

    Args:
        run: A training run or model folder.
        query: See ``Searcher.search``.
        k: How many.
        store: Where the index is; by default the folder ``index`` in the run.
        options: ``kind``, ``where`` and ``effort`` of ``Searcher.search``.
    """
    with Searcher(run, store) as searcher:
        return searcher.search(query, k, **options)


def run(config: SearchConfig) -> int:
    """Searches, and prints what was found."""
    where, effort = read_filters(config.filter), Effort(config.exact, config.probes, config.refine)
    with Searcher(
        config.run, config.store, collection=config.collection, device=config.device, allow_code=config.allow_code
    ) as searcher:
        if searcher.store.describe()["index"] is None:
            refuse_unused(
                given(config, "probes", "refine"), "there is no approximate index, so that every search is exact"
            )
        hits = searcher.search(config.query, config.k, kind=config.kind, where=where, effort=effort)
        if config.json:
            print(json.dumps({"query": config.query, "hits": [hit.to_dict() for hit in hits]}))
        else:
            show(hits, several=len(searcher.meta.modalities) > 1)
    return 0


def show(hits: list[Hit], several: bool = False) -> None:
    """Prints hits as a table; what they hold is only printed, never obeyed by the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not hits:
        print("nothing found")
        return
    table = Table()
    table.add_column("score", justify="right")
    facts = [
        name for name in ("label", "text", "column", "name") if any(getattr(hit, name) is not None for hit in hits)
    ]
    facts = [name for name in facts if name != "column" or several or len({hit.column for hit in hits}) > 1]
    for name in facts:
        table.add_column(name, overflow="fold")
    for hit in hits:
        table.add_row(f"{hit.score:.3f}", *(Text(shown(getattr(hit, name) or "")) for name in facts))
    Console().print(table)
