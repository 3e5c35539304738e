"""Embedding, indexing and searching on real files, from the command line and from Python."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lancedb", reason="needs lancedb")
pytest.importorskip("datasets", reason="needs datasets")

import pyarrow.parquet as pq
import torch
from safetensors import safe_open

from little_runs import COLOURS, captioned_run, picture
from nearfar import cli
from nearfar.encoders.items import fit_images
from nearfar.encoders.load import load
from nearfar.index.items import meta_of, vectors_of
from nearfar.index.run import open_run
from nearfar.index.search import Searcher, search

SOURCE = str(Path(__file__).parent.parent / "src")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The run, and its data beside it."""
    folder = tmp_path_factory.mktemp("captioned")
    run = captioned_run(folder)
    assert cli.main(["index", str(run)]) == 0
    return run


def told(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


class TestEmbed:
    def test_a_row_an_item_and_column_with_its_facts(self, made, tmp_path, capsys):
        out = tmp_path / "out.parquet"
        code, said, _ = told(capsys, "embed", str(made), str(made.parent / "data/captions.csv"), "-o", str(out))
        assert code == 0
        assert said == f"72 rows of 16 numbers: {out}\n"
        table = pq.read_table(out)
        meta = meta_of(table.schema, str(out))
        assert (meta.dim, meta.modalities, meta.data, meta.run) == (16, ("image", "text"), "captions", str(made))
        assert meta.model == "image: small-cnn, text: text-small"
        rows = table.to_pylist()
        assert [row["row"] for row in rows if row["modality"] == "image"][:3] == [0, 2, 4]
        assert sorted(row["row"] for row in rows) == list(range(72))
        assert {row["split"] for row in rows} == {"train", "test"}
        assert {row["label"] for row in rows} >= {"<script>alert(1)</script>", "a'b\"c", "red"}
        image = next(row for row in rows if row["modality"] == "image" and row["label"] == "green")
        assert Path(image["name"]).name.startswith("green ñ猫 [")
        assert Path(image["name"]).is_file()
        text = next(row for row in rows if row["row"] == image["row"] + 1)
        assert "captions.csv:" in text["name"]
        assert "green" in text["text"]
        # the encoder's own reading of the same file and text
        embedder = load(made)
        for row, item in ((image, Path(image["name"])), (text, text["text"])):
            np.testing.assert_allclose(row["vector"], embedder.embed([item], kind=row["modality"])[0], atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(vectors_of(table), axis=1), 1, atol=1e-6)

    def test_the_size_of_a_batch_changes_nothing(self, made, tmp_path, capsys):
        tables = []
        for size in ("5", "64"):
            out = tmp_path / f"{size}.parquet"
            assert (
                told(
                    capsys,
                    "embed",
                    str(made),
                    str(made.parent / "data/captions.csv"),
                    "-o",
                    str(out),
                    "--batch-size",
                    size,
                )[0]
                == 0
            )
            tables.append(pq.read_table(out).sort_by("row"))
        assert tables[0].drop_columns(["vector"]) == tables[1].drop_columns(["vector"])
        np.testing.assert_allclose(vectors_of(tables[0]), vectors_of(tables[1]), atol=1e-5)

    @pytest.mark.parametrize("suffix", ["npy", "safetensors"])
    def test_bare_numbers_by_suffix(self, suffix, made, tmp_path, capsys):
        data, options = str(made.parent / "data/captions.csv"), ["--column", "image", "--split", "test"]
        whole, bare = tmp_path / "whole.parquet", tmp_path / f"bare.{suffix}"
        for out in (whole, bare):
            assert told(capsys, "embed", str(made), data, "-o", str(out), *options)[0] == 0
        table = pq.read_table(whole)
        assert {row["split"] for row in table.to_pylist()} == {"test"}
        if suffix == "npy":
            np.testing.assert_array_equal(np.load(bare, allow_pickle=False), vectors_of(table))
        else:
            with safe_open(bare, "pt") as file:
                assert torch.equal(file.get_tensor("vectors"), torch.tensor(vectors_of(table)))
                classes = json.loads(file.metadata()["classes"])
                named = [classes[i] for i in file.get_tensor("labels").tolist()]
            assert named == table.column("label").to_pylist()
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([whole.name, bare.name])

    def test_other_forms_of_data(self, made, tmp_path, capsys):
        """A flat folder with other sizes and in grey, JSONL of texts, a tar shard, a named set in grey."""
        flat = tmp_path / "flat"
        flat.mkdir()
        for i, colour in enumerate(COLOURS.values()):
            image = picture(colour, i, size=20 + 4 * i)
            (image.convert("L") if i == 0 else image).save(flat / f"ü {i}.png")
        (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"{name} paint"}) + "\n" for name in COLOURS))
        with tarfile.open(tmp_path / "shard.tar", "w") as tar:
            for i in range(4):
                tar.add(flat / f"ü {i}.png", arcname=f"{i:03d}.png")
        for data, rows in (("flat", 6), ("texts.jsonl", 6), ("shard.tar", 4), ("digits", 1797)):
            place = data if data == "digits" else str(tmp_path / data)
            out = tmp_path / "out.parquet"
            code, said, err = told(capsys, "embed", str(made), place, "-o", str(out))
            assert code == 0, err
            assert said.startswith(f"{rows} rows"), data

    def test_a_broken_image_stops_it_and_no_file_appears_or_is_left_out_by_name(self, made, tmp_path, capsys):
        data = tmp_path / "data"
        shutil.copytree(made.parent / "data", data)
        victim = sorted((data / "bilder").iterdir())[7]
        victim.write_bytes(victim.read_bytes()[:300])
        out = tmp_path / "out.parquet"
        code, _, err = told(capsys, "embed", str(made), str(data / "captions.csv"), "-o", str(out), "--batch-size", "8")
        assert code == 2
        assert "cannot be read as an image" in err
        assert not [path for path in tmp_path.iterdir() if path != data]
        code, said, err = told(capsys, "embed", str(made), str(data / "captions.csv"), "-o", str(out), "--skip-bad")
        assert code == 0
        assert said.startswith("70 rows")
        assert "left out: " in err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["RUN", "DATA", "-o", "x.csv"], "wanted a file that ends in .parquet"),
            (["nowhere", "DATA"], "there is no folder nowhere"),
            (["RUN", "nowhere.csv"], "neither a data set nor a path"),
            (["RUN", "DATA", "--column", "captoin"], "has no input 'captoin': its inputs are image, caption"),
            (["RUN", "DATA", "--device", "cuda:77"], "device 'cuda:77' cannot be used here"),
            (["RUN", "DATA", "--batch-size", "0"], "batch_size is 0"),
        ],
    )
    def test_mistakes(self, arguments, message, made, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        names = {"RUN": str(made), "DATA": str(made.parent / "data/captions.csv")}
        try:
            code = cli.main(["embed", *(names.get(a, a) for a in arguments)])
        except SystemExit as stop:
            code = stop.code
        assert code == 2
        assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert not list(tmp_path.iterdir())


class TestSearch:
    def test_a_text_finds_images_of_what_it_says(self, made):
        with Searcher(made) as searcher:
            for name in ("red", "green", "blue", "yellow"):
                hits = searcher.search(f"{name} paint", 5)
                assert [hit.label for hit in hits] == [name] * 5
                assert {hit.modality for hit in hits} == {"image"}
                assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)

    def test_an_image_finds_itself_and_texts_when_asked(self, made):
        path = next((made.parent / "data/bilder").glob("blue*"))
        hits = search(made, path, 3)
        assert hits[0].name == str(path)
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert all("blue" in (hit.text or "") for hit in search(made, str(path), 3, where={"modality": "text"}))

    def test_the_command_prints_a_table_or_json(self, made, capsys):
        code, out, _ = told(capsys, "search", str(made), "a green square", "-k", "2")
        assert code == 0
        assert "green" in out
        assert "score" in out
        code, out, _ = told(
            capsys, "search", str(made), "a green square", "-k", "2", "--json", "--filter", "split=test"
        )
        found = json.loads(out)
        assert code == 0
        assert found["query"] == "a green square"
        assert {hit["split"] for hit in found["hits"]} == {"test"}

    def test_the_query_is_what_it_is_said_to_be(self, made, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        picture(COLOURS["red"], 1).save(tmp_path / "green paint.png")
        for extra, label in (([], "red"), (["--as", "text"], "green")):
            code, out, _ = told(capsys, "search", str(made), "green paint.png", "-k", "1", "--json", *extra)
            assert code == 0
            assert json.loads(out)["hits"][0]["label"] == label
        code, _, err = told(capsys, "search", str(made), "blue.png", "--as", "image")
        assert (code, err) == (2, "nearfar: there is no image blue.png\n")
        (tmp_path / "torn.png").write_bytes((tmp_path / "green paint.png").read_bytes()[:100])
        code, _, err = told(capsys, "search", str(made), "torn.png")
        assert code == 2
        assert "torn.png: cannot be read as an image" in err
        assert told(capsys, "search", str(made), "  ")[0] == 2

    def test_filters_hold_and_are_no_questions(self, made, capsys):
        code, out, _ = told(
            capsys, "search", str(made), "paint", "--filter", "label=<script>alert(1)</script>", "--json"
        )
        assert {hit["label"] for hit in json.loads(out)["hits"]} == {"<script>alert(1)</script>"}
        code, out, _ = told(capsys, "search", str(made), "paint", "--filter", "label=x' OR '1'='1")
        assert (code, out) == (0, "nothing found\n")
        code, _, err = told(capsys, "search", str(made), "paint", "--filter", "1=1) --=")
        assert code == 2
        assert "wanted COLUMN=VALUE" in err
        with pytest.raises(ValueError, match="no column 'vector'"):
            search(made, "paint", where={"vector": "1"})

    @pytest.mark.parametrize("store", ["points.parquet", "qdrant:points", "folder"])
    def test_every_store_finds_the_same(self, store, made, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert told(capsys, "index", str(made), "--store", store)[0] == 0
        answers = [
            json.loads(told(capsys, "search", str(made), "something white", "-k", "8", "--json", *extra)[1])
            for extra in ([], ["--store", store])
        ]
        assert answers[0] == answers[1]

    def test_a_file_of_embeddings_is_indexed(self, made, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert told(capsys, "embed", str(made), str(made.parent / "data/captions.csv"))[0] == 0
        code, out, _ = told(capsys, "index", "embeddings.parquet")
        assert code == 0
        assert "embeddings.index (LanceDB, every search exact)" in out
        found = told(capsys, "search", str(made), "something white", "--json", "--store", "embeddings.index")[1]
        assert found == told(capsys, "search", str(made), "something white", "--json")[1]
        assert (
            found == told(capsys, "search", str(made), "something white", "--json", "--store", "embeddings.parquet")[1]
        )

    def test_what_an_approximate_index_misses_is_printed(self, made, tmp_path, capsys):
        few = told(capsys, "index", str(made), "--approximate", "--store", str(tmp_path / "few"))
        assert "72 rows need no approximate index" in few[1]
        data = tmp_path / "many.jsonl"
        words = ["paint", "square", "picture", "something", *COLOURS]
        lines = ({"text": f"{words[i % 10]} {words[i // 10 % 10]} {words[i // 100 % 10]} {i}"} for i in range(2500))
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        code, out, err = told(
            capsys,
            "index",
            str(made),
            str(data),
            "--approximate",
            "--method",
            "ivf-pq",
            "--store",
            str(tmp_path / "many"),
        )
        assert code == 0, err
        assert "LanceDB, ivf-pq" in out
        assert 0.3 < float(out.split("approximate search: ")[1].split()[0]) <= 1
        assert "over 100 of the rows" in out

    def test_an_index_of_other_weights_is_refused(self, made, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(made, run)
        embedder = load(run)
        with torch.no_grad():
            next(embedder.parameters()).add_(0.1)
        embedder.save(run / "model")
        code, _, err = told(capsys, "search", str(run), "green paint")
        assert code == 2
        assert "made with other weights" in err
        assert "nearfar index" in err
        assert told(capsys, "index", str(run))[0] == 0
        assert told(capsys, "search", str(run), "green paint")[0] == 0

    def test_without_an_index_it_says_how_to_make_one(self, made, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(made / "model", run / "model")
        code, _, err = told(capsys, "search", str(run), "green")
        assert code == 2
        assert "make it with nearfar index" in err
        code, _, err = told(capsys, "index", str(run))
        assert code == 2
        assert "does not say which data it was trained on: name the data" in err

    def test_a_terminal_is_not_obeyed(self, made, tmp_path, capsys):
        data = tmp_path / "evil.jsonl"
        data.write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in ("\x1b[2J[red]boo\u202e", "plain", "more"))
        )
        store = str(tmp_path / "evil")
        assert told(capsys, "index", str(made), str(data), "--store", store)[0] == 0
        code, out, _ = told(capsys, "search", str(made), "\x1b[2J[red]boo\u202e", "-k", "1", "--store", store)
        assert code == 0
        assert "\\x1b[2J[red]boo\\u202e" in out
        assert "\x1b" not in out


def test_images_of_other_data_are_made_to_fit():
    grey = torch.full((2, 1, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(fit_images(grey, (3, 16, 16)), torch.full((2, 3, 16, 16), 77, dtype=torch.uint8))
    colour = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    colour[:, 0] = 255
    assert torch.equal(fit_images(colour, (1, 8, 8)), torch.full((1, 1, 8, 8), 76, dtype=torch.uint8))  # Pillow's luma


def test_the_same_weights_have_the_same_fingerprint(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "copy")
    assert open_run(tmp_path / "copy").weights == open_run(made).weights
