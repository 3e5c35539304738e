"""Qdrant: a server by URL for those who outgrow one machine, or its local mode in a folder or in memory."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from nearfar.data.labelled import require
from nearfar.index.items import FACTS, Hit, Meta, item_batch, item_schema, vectors_of
from nearfar.index.store import EFFORT, Approximate, Effort, check_queries, ranked

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 512
"""Points sent at a time: about 2 MB of 384 numbers each as text."""
KEY_VARIABLE = "QDRANT_API_KEY"
"""The environment variable that holds the key of a server; never a command's argument, which others could read."""


class QdrantStore:
    """Rows as points of a collection, the facts as their payload.

    The name is an alias. A new collection is filled under a name of its own; then the alias moves to it in one step,
    and the old collection goes.

    Args:
        where: ``http(s)://…``, ``qdrant:FOLDER`` or ``qdrant::memory:``.
        collection: The alias.
    """

    def __init__(self, where: str, collection: str = "nearfar") -> None:
        module = require("qdrant_client", "a Qdrant server", "search")
        self.models = require("qdrant_client.models", "a Qdrant server", "search")
        self.where, self.collection = where, collection
        self._building: tuple[str, Meta] | None = None
        self._local = where.startswith("qdrant:")
        place = where.removeprefix("qdrant:")
        if self._local and not place:
            raise ValueError("the store is 'qdrant:': wanted qdrant:FOLDER, qdrant::memory: or the URL of a server")
        try:
            if not self._local:
                self.client = module.QdrantClient(
                    url=where, api_key=os.environ.get(KEY_VARIABLE), timeout=60, check_compatibility=False
                )
            else:
                self.client = module.QdrantClient(**{"location": place} if place == ":memory:" else {"path": place})
        except RuntimeError as error:  # a folder that another process has open
            raise ValueError(f"{where} cannot be opened ({error})") from error

    def create(self, meta: Meta) -> None:
        """Begins a new collection beside the old."""
        self._discard()
        if self.collection in {found.name for found in self._call(self.client.get_collections).collections}:
            raise ValueError(
                f"{self.where} has a collection {self.collection!r} that nearfar did not make: pass another --collection"
            )
        name = f"{self.collection}-{time.time_ns():x}"
        self._call(
            self.client.create_collection,
            name,
            vectors_config=self.models.VectorParams(size=meta.dim, distance=self.models.Distance.DOT),
            metadata={"nearfar": meta.to_dict()},
        )
        self._building = name, meta

    def add(self, rows: Iterable[pa.RecordBatch]) -> None:
        """Sends rows, some hundred at a time."""
        assert self._building is not None, "create comes first"
        name, _ = self._building
        for batch in rows:
            for first in range(0, len(batch), BATCH):
                part = batch.slice(first, BATCH)
                facts = part.select(list(FACTS)).to_pylist()
                points = self.models.Batch(
                    ids=part.column("row").to_pylist(), vectors=vectors_of(part).tolist(), payloads=facts
                )
                self._call(self.client.upsert, name, points, wait=True)

    def finish(self, approximate: Approximate | None = None) -> None:
        """Moves the alias to the new collection. The server makes its graph by itself as rows grow."""
        assert self._building is not None, "create comes first"
        models, (name, _) = self.models, self._building
        if not self._local:
            for column in FACTS:
                if column not in ("row", "text"):
                    self._call(self.client.create_payload_index, name, column, models.PayloadSchemaType.KEYWORD)
        old = self._behind()
        moves: list[Any] = []
        if old is not None:
            moves.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=self.collection)))
        moves.append(
            models.CreateAliasOperation(
                create_alias=models.CreateAlias(collection_name=name, alias_name=self.collection)
            )
        )
        self._call(self.client.update_collection_aliases, moves)
        self._building = None
        if old is not None:
            self._call(self.client.delete_collection, old)

    def search(
        self,
        queries: Float32[np.ndarray, "q d"],
        k: int,
        where: Mapping[str, str] | None = None,
        effort: Effort = EFFORT,
    ) -> list[list[Hit]]:
        """See ``Store.search``."""
        models, meta = self.models, self._meta()
        queries = check_queries(queries, k, meta)
        schema = item_schema(meta)
        conditions: list[Any] = [
            models.FieldCondition(key=name, match=models.MatchValue(value=value))
            for name, value in (where or {}).items()
        ]
        options: dict[str, Any] = {"query_filter": models.Filter(must=conditions) if conditions else None}
        if not self._local:
            wide = max(k * effort.refine, 64)
            options["search_params"] = models.SearchParams(exact=effort.exact, hnsw_ef=None if effort.exact else wide)

        def one(query: Float32[np.ndarray, "d"], limit: int) -> pa.Table:
            answer = self._call(
                self.client.query_points, self.collection, query=query.tolist(), limit=limit, with_payload=True,
                with_vectors=True, **options,
            )  # fmt: skip
            return self._table(schema, answer.points)

        exact = effort.exact or self._local
        return ranked(queries, k, lambda some, limit: [one(query, limit) for query in some], exact=exact)

    def count(self) -> int:
        """How many rows there are."""
        self._meta()
        return self._call(self.client.count, self.collection, exact=True).count

    def describe(self) -> dict[str, Any]:
        """See ``Store.describe``."""
        index = None if self._local else "hnsw"
        return {"meta": self._meta(), "rows": self.count(), "engine": "Qdrant", "index": index}

    def close(self) -> None:
        """Discards what was begun and not finished, and disconnects."""
        self._discard()
        self.client.close()

    def _discard(self) -> None:
        if self._building is not None:
            name, self._building = self._building[0], None
            self._call(self.client.delete_collection, name)

    def _behind(self) -> str | None:
        """The collection that the alias stands for."""
        aliases = self._call(self.client.get_aliases).aliases
        return next((found.collection_name for found in aliases if found.alias_name == self.collection), None)

    def _meta(self) -> Meta:
        name = self._behind()
        if name is None:
            raise FileNotFoundError(f"{self.where} has no index {self.collection!r}: make it with nearfar index")
        noted = self._call(self.client.get_collection, name).config.metadata or {}
        return Meta.of(noted.get("nearfar", {}), f"the collection {self.collection!r} of {self.where}")

    def _table(self, schema: pa.Schema, points: list[Any]) -> pa.Table:
        pa = require("pyarrow", "an index", "search")
        width = schema.field("vector").type.list_size
        vectors = np.array([point.vector for point in points], dtype=np.float32).reshape(len(points), width)
        facts = {name: [point.payload.get(name) for point in points] for name in FACTS}
        return pa.Table.from_batches([item_batch(schema, facts, vectors)])

    def _call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """A request, its failure in words."""
        errors = require("qdrant_client.http.exceptions", "a Qdrant server", "search")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # what local mode does not speed up
                return function(*arguments, **options)
        except errors.UnexpectedResponse as error:
            hint = f": set {KEY_VARIABLE}" if error.status_code in (401, 403) else ""
            raise ValueError(f"{self.where} answers {error.status_code} {error.reason_phrase}{hint}") from error
        except errors.ResponseHandlingException as error:
            raise OSError(f"{self.where} cannot be reached ({error}): is a Qdrant server running there?") from error
