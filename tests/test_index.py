"""Stores of vectors: one order in all of them, filters that are only values, nothing half done left behind."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs pyarrow")
pytest.importorskip("lancedb", reason="needs lancedb")
pytest.importorskip("qdrant_client", reason="needs qdrant-client")

import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.neighbors import NearestNeighbors

from nearfar.index.items import Meta, item_batch, item_schema, meta_of, read_filters, shown, vectors_of
from nearfar.index.lance import LanceStore
from nearfar.index.store import Approximate, Effort, open_store, recall, unit

STORES = ("parquet", "lance", "qdrant", "qdrant-memory")
NAMES = ["naïve café/猫.png", "x' OR '1'='1", 'a"; DROP TABLE items; --', "\x1b[2Jboo", "<script>alert(1)</script>"]


def meta(dim: int, **others) -> Meta:
    return Meta(
        **{"dim": dim, "model": "test", "run": "run", "weights": "w", "data": "made", "modalities": ("image",)} | others
    )


def rows(vectors: np.ndarray, labels=None, batch: int = 1000):
    schema = item_schema(meta(vectors.shape[1]))
    for first in range(0, len(vectors), batch):
        part = vectors[first : first + batch]
        at = range(first, first + len(part))
        facts = {
            "row": list(at), "name": [NAMES[i % len(NAMES)] for i in at], "column": ["image"] * len(part),
            "modality": ["image"] * len(part), "label": [labels[i] if labels else NAMES[i % len(NAMES)] for i in at],
            "split": ["test" if i % 2 else "train" for i in at],
        }  # fmt: skip
        yield item_batch(schema, facts, part)


def place(kind: str, folder: Path) -> str:
    return {
        "parquet": str(folder / "made.parquet"), "lance": str(folder / "index"), "qdrant": f"qdrant:{folder / 'points'}",
        "qdrant-memory": "qdrant::memory:",
    }[kind]  # fmt: skip


def made(kind: str, folder: Path, vectors: np.ndarray, labels=None, approximate=None):
    store = open_store(place(kind, folder))
    store.create(meta(vectors.shape[1]))
    store.add(rows(vectors, labels))
    store.finish(approximate)
    return store


def gaussian(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32))


@pytest.mark.parametrize("kind", STORES)
def test_an_exact_search_finds_what_scikit_learn_finds(kind, tmp_path):
    vectors, queries = gaussian(300, 24), gaussian(9, 24, seed=1)
    store = made(kind, tmp_path, vectors)
    found = store.search(queries, 12, effort=Effort(exact=True))
    distances, order = (
        NearestNeighbors(n_neighbors=12, algorithm="brute", metric="cosine").fit(vectors).kneighbors(queries)
    )
    assert [[hit.row for hit in hits] for hits in found] == order.tolist()
    np.testing.assert_allclose([[hit.score for hit in hits] for hits in found], 1 - distances, atol=1e-6)
    assert store.count() == store.describe()["rows"] == 300
    store.close()


@pytest.mark.parametrize("kind", STORES)
def test_copies_come_in_the_order_of_their_rows(kind, tmp_path):
    """A hundred copies, shuffled among others: far more than are fetched at first."""
    vectors = gaussian(250, 16)
    copies = np.random.default_rng(2).permutation(250)[:100]
    vectors[copies] = vectors[0]
    store = made(kind, tmp_path, vectors)
    [hits] = store.search(vectors[:1], 7)
    assert [hit.row for hit in hits] == sorted({0, *copies.tolist()})[:7]
    assert len({hit.score for hit in hits}) == 1
    [all_] = store.search(vectors[:1], 1000)
    assert len(all_) == 250
    assert [hit.row for hit in all_] == [h.row for h in sorted(all_, key=lambda hit: (-hit.score, hit.row))]
    store.close()


@pytest.mark.parametrize("seed", range(2))
def test_every_store_gives_the_same_answer_to_the_last_bit(seed, tmp_path):
    """Coarse vectors have many ties, and near ties that engines round either way."""
    drawn = np.random.default_rng(seed).integers(-1, 2, (200, 6)).astype(np.float32)
    vectors, queries = unit(drawn), unit(drawn[:20] + np.float32(0.5))
    answers = []
    for kind in STORES:
        store = made(kind, tmp_path, vectors)
        answers.append(store.search(queries, 25, {"split": "test"}))
        store.close()
    assert all(answer == answers[0] for answer in answers[1:])
    assert all(hit.split == "test" for hits in answers[0] for hit in hits)


@pytest.mark.parametrize("kind", STORES)
def test_a_filter_is_a_value_and_never_a_question(kind, tmp_path):
    vectors = gaussian(200, 8)
    store = made(kind, tmp_path, vectors)
    for name in NAMES:
        [hits] = store.search(vectors[:1], 200, {"label": name})
        assert {hit.name for hit in hits} == {name}
        assert len(hits) == 40
    for attack in ("x' OR 1=1 --", "%", "*", "'", "\\", "train' OR split='test", "", "\x00"):
        assert store.search(vectors[:1], 5, {"label": attack}) == [[]]
    [hits] = store.search(vectors[:1], 200, {"label": NAMES[0], "split": "test"})
    assert len(hits) == 20
    store.close()


def test_filters_name_a_column_there_is():
    assert read_filters(["label=a=b", "id="]) == {"label": "a=b", "id": ""}
    for wrong in ("label", "vector=1", "row=1 OR 1=1", "1=1; --=x", "=x", "\x1b[2J=1"):
        with pytest.raises(ValueError, match="wanted COLUMN=VALUE") as error:
            read_filters([wrong])
        assert "\x1b" not in str(error.value)
    with pytest.raises(ValueError, match="cannot be both 'a' and 'b'"):
        read_filters(["label=a", "label=b"])


def test_what_a_terminal_is_shown_only_prints():
    assert shown("\x1b]0;title\x07\x9b31m\r\n\u202e\u2028\udcff") == (
        "\\x1b]0;title\\x07\\x9b31m\\x0d\\x0a\\u202e\\u2028\\udcff"
    )
    assert shown("é 猫 👩\u200d💻 ❤\ufe0f") == "é 猫 👩\u200d💻 ❤\ufe0f"


@pytest.mark.parametrize("kind", ["hnsw", "ivf-pq"])
def test_an_approximate_index_is_used_and_its_recall_is_measured(kind, tmp_path):
    vectors, queries = gaussian(4000, 32), gaussian(25, 32, seed=1)
    store = made("lance", tmp_path, vectors, approximate=Approximate(kind))
    assert store.describe()["index"] == kind
    assert isinstance(store, LanceStore)
    [index] = store._items().list_indices()
    assert index.index_type.lower().replace("_", "") == {"hnsw": "ivfhnswsq", "ivf-pq": "ivfpq"}[kind]
    lazy, hard = recall(store, queries, 10, Effort(probes=1, refine=1)), recall(store, queries, 10, Effort(probes=63))
    assert hard >= 0.95
    if kind == "ivf-pq":
        assert lazy < 0.6  # one list of 63: so the index is what answers
    exact = made("parquet", tmp_path, vectors)
    assert store.search(queries, 10, effort=Effort(exact=True)) == exact.search(queries, 10)
    by_hand = [
        len({a.row for a in near} & {b.row for b in true})
        for near, true in zip(store.search(queries, 10), exact.search(queries, 10), strict=True)
    ]
    assert recall(store, queries) == sum(by_hand) / 250


def test_too_few_rows_make_no_index(tmp_path):
    store = made("lance", tmp_path, gaussian(300, 8), approximate=Approximate())
    assert store.describe()["index"] is None
    assert recall(store, gaussian(5, 8, 1)) == 1


def test_a_file_has_no_index(tmp_path):
    with pytest.raises(ValueError, match="searched exactly: pass a folder"):
        made("parquet", tmp_path, gaussian(30, 8), approximate=Approximate())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["parquet", "lance", "qdrant"])
def test_a_new_one_takes_the_old_ones_place_only_when_whole(kind, tmp_path):
    old, new = gaussian(50, 8), gaussian(60, 8, seed=3)
    made(kind, tmp_path, old).close()
    store = open_store(place(kind, tmp_path))
    store.create(meta(8))

    def breaks():
        yield from rows(new[:40])
        raise KeyError("the disk is on fire")

    with pytest.raises(KeyError, match="on fire"):
        store.add(breaks())
    assert store.count() == 50  # the old one answers meanwhile
    store.close()
    before = sorted(p.name for p in tmp_path.iterdir())
    store = open_store(place(kind, tmp_path))
    assert store.count() == 50
    [hits] = store.search(old[:1], 1)
    assert hits[0].row == 0
    assert hits[0].score == pytest.approx(1)
    store.close()
    made(kind, tmp_path, new).close()
    store = open_store(place(kind, tmp_path))
    assert store.count() == 60
    store.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert len(before) == 1
    if kind == "qdrant":
        assert len(open_store(place(kind, tmp_path)).client.get_collections().collections) == 1


@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_what_a_dead_writer_left_is_swept_away(kind, tmp_path):
    path = Path(place(kind, tmp_path))
    dead, alive, fresh = (path.with_name(f".{path.name}.{n}") for n in (2**22 + 1, os.getppid(), 2**22 + 2))
    for left in (dead, alive, fresh):
        left.write_bytes(b"half")
    for old in (dead, alive):
        os.utime(old, (1, 1))
    made(kind, tmp_path, gaussian(5, 4)).close()
    assert not dead.exists()
    assert alive.exists()
    assert fresh.exists()


def test_other_peoples_folders_and_collections_are_left_alone(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.png").write_bytes(b"not yours")
    with pytest.raises(ValueError, match="holds something else"):
        open_store(folder).create(meta(3))
    assert (folder / "cat.png").read_bytes() == b"not yours"
    with pytest.raises(ValueError, match="is a file"):
        open_store(folder / "cat.png").create(meta(3))
    store = open_store("qdrant::memory:")
    store.client.create_collection("nearfar", vectors_config=store.models.VectorParams(size=3, distance="Dot"))
    with pytest.raises(ValueError, match="that nearfar did not make"):
        store.create(meta(3))


@pytest.mark.parametrize("kind", STORES)
def test_what_is_not_there_is_said_so(kind, tmp_path):
    store = open_store(place(kind, tmp_path))
    with pytest.raises(FileNotFoundError, match=r"make it with nearfar (embed|index)"):
        store.search(gaussian(1, 3), 1)
    store.close()


def test_damage_is_said_so(tmp_path):
    store = made("parquet", tmp_path, gaussian(3000, 16))
    path = tmp_path / "made.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"made\.parquet is no Parquet file, or a part of one"):
        store.search(gaussian(1, 16), 1)
    pq.write_table(pa.table({"a": [1, 2]}), path)
    with pytest.raises(ValueError, match="holds no embeddings of nearfar"):
        store.count() and store.describe()
    made("lance", tmp_path, gaussian(30, 4)).close()
    note = tmp_path / "index/nearfar.json"
    told = json.loads(note.read_text())
    note.write_text(json.dumps(told | {"meta": {}}))
    with pytest.raises(ValueError, match="does not say which model"):
        open_store(tmp_path / "index").describe()
    note.write_text("{")
    with pytest.raises(ValueError, match=r"nearfar\.json:1 is not JSON"):
        open_store(tmp_path / "index").describe()
    note.write_text(json.dumps(told))
    for part in (tmp_path / "index/items.lance").rglob("*.manifest"):
        part.unlink()
    with pytest.raises(ValueError, match="is damaged"):
        open_store(tmp_path / "index").search(gaussian(1, 4), 1)


def test_queries_of_another_width_are_refused(tmp_path):
    store = made("lance", tmp_path, gaussian(30, 4))
    with pytest.raises(ValueError, match=r"queries are \(1, 3\): wanted \(n, 4\)"):
        store.search(gaussian(1, 3), 1)
    with pytest.raises(ValueError, match="k is 0"):
        store.search(gaussian(1, 4), 0)
    with pytest.raises(ValueError, match="not finite"):
        store.search(np.full((1, 4), np.nan, np.float32), 1)


def test_a_vector_that_is_not_finite_is_named():
    vectors = gaussian(3, 4)
    vectors[1, 2] = np.inf
    with pytest.raises(ValueError, match=r"embedding of b\.png is not finite \(1 of 3"):
        item_batch(item_schema(meta(4)), {"row": [0, 1, 2], "name": ["a.png", "b.png", "c.png"]}, vectors)


def test_a_file_says_where_its_vectors_come_from(tmp_path):
    vectors = gaussian(5, 4)
    made("parquet", tmp_path, vectors)
    table = pq.read_table(tmp_path / "made.parquet")
    assert meta_of(table.schema, "it") == meta(4)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 4)
    np.testing.assert_array_equal(vectors_of(table), vectors)
    assert table.column("name").to_pylist() == NAMES


def test_bytes_of_a_file_name_that_are_no_text_are_written_out():
    name = os.fsdecode(b"caf\xe9.png")
    batch = item_batch(item_schema(meta(2)), {"row": [0], "name": [name]}, gaussian(1, 2))
    assert batch.column("name").to_pylist() == ["caf\\udce9.png"]


def test_a_server_that_is_not_there_is_said_so():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = open_store(f"http://127.0.0.1:{port}")
    with pytest.raises(OSError, match="is a Qdrant server running there"):
        store.search(gaussian(1, 3), 1)


def test_a_server_that_wants_a_key_is_given_that_of_the_environment_or_says_so(monkeypatch):
    asked = []

    class Locked(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("api-key"))
            self.send_response(401)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Locked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for key in ("from the environment", None):
            monkeypatch.setenv("QDRANT_API_KEY", key) if key else monkeypatch.delenv("QDRANT_API_KEY")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a key without TLS: the client says so
                store = open_store(f"http://127.0.0.1:{server.server_port}")
            with pytest.raises(ValueError, match=r"answers 401 .*: set QDRANT_API_KEY") as error:
                store.describe()
            assert "from the environment" not in str(error.value)
        server.shutdown()
    assert asked == ["from the environment", None]


def test_places_are_read_by_their_form(tmp_path):
    with pytest.raises(ValueError, match="no Qdrant server: leave it out"):
        open_store(tmp_path / "x", collection="y")
    with pytest.raises(ValueError, match="wanted a folder"):
        open_store("ftp://host/index")
    with pytest.raises(ValueError, match="wanted qdrant:FOLDER"):
        open_store("qdrant:")
