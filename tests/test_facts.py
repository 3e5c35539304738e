"""Facts of a run for its page: against scikit-learn and by hand; whole pages; what is missing is said."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datasets", reason="needs datasets")
pytest.importorskip("plotly", reason="needs plotly")

import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import roc_curve

import browser
from little_runs import captioned_run, events, identity_run
from nearfar import cli
from nearfar.data.config import DataConfig
from nearfar.data.corpus import Column, Corpus, TensorPart
from nearfar.data.open import open_corpus
from nearfar.encoders.load import load
from nearfar.evaluation.evaluation import Evaluation, Measure
from nearfar.index.facts import run_facts
from nearfar.index.held_out import HeldOut
from nearfar.index.measured import confusion
from nearfar.index.thumbnails import make_item, thumbnail
from nearfar.report.run_check import check_runs
from nearfar.report.run_page import render_runs

STEP = {
    "event": "step",
    "step": 1,
    "seconds": 0.5,
    "rows": 8,
    "loss": 2.0,
    "terms": {"a": 2.0},
    "rate": 0.1,
    "temperature": 0.07,
}
LOOK = {
    "event": "look",
    "step": 1,
    "seconds": 0.5,
    "metrics": {"knn": 0.5},
    "geometry": {"alignment": 1.0, "uniformity": -1.0},
}


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return identity_run(tmp_path_factory.mktemp("identities"))


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    return captioned_run(tmp_path_factory.mktemp("captioned"))


@pytest.fixture(scope="module")
def embedded(people):
    """Held-out embeddings and identities, by the encoder's own reading of the files."""
    part = open_corpus(DataConfig(str(people.parent / "people"), id="label", test_fraction=0.5)).test
    rows = load(people).embed([Path(part.name(i)) for i in range(len(part))])
    return rows.double().numpy(), part.labels.numpy()


@pytest.fixture(scope="module")
def facts(people):
    return run_facts(people)


def test_they_are_json_and_what_a_page_takes(facts, captioned):
    for found in (facts, run_facts(captioned)):
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        check_runs([found])
        assert set(found) >= {"map", "gallery", "histogram", "spectrum", "data", "class_names", "evaluation"}


def test_the_map_is_scikit_learns(facts, embedded):
    z, _ = embedded
    pca = PCA(2).fit(z)
    flat, mine = pca.transform(z), np.array([facts["map"]["x"], facts["map"]["y"]]).T
    np.testing.assert_allclose(np.abs(mine), np.abs(flat), atol=2e-4)
    assert facts["map"]["kept"] == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-4)
    assert facts["map"]["total"] == len(mine) == 36


def test_the_spectrum_is_that_of_the_centred_rows(facts, embedded):
    values = np.linalg.svd(embedded[0] - embedded[0].mean(0), compute_uv=False)
    np.testing.assert_allclose(facts["spectrum"]["values"], values, atol=1e-4)
    share = values / values.sum()
    assert facts["spectrum"]["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)


def test_the_histogram_counts_every_pair_once(facts, embedded):
    z, ids = embedded
    i, j = np.triu_indices(len(z), 1)
    cosines, same = (z[i] * z[j]).sum(1), ids[i] == ids[j]
    edges = np.array(facts["histogram"]["edges"])
    for name, chosen in (("positives", same), ("negatives", ~same)):
        mine, counted = np.array(facts["histogram"][name]), np.histogram(cosines[chosen], edges)[0]
        assert mine.sum() == counted.sum() == chosen.sum()
        assert np.abs(np.cumsum(mine) - np.cumsum(counted)).max() <= 2  # rounding at an edge


def test_the_roc_is_scikit_learns(facts, embedded):
    z, ids = embedded
    i, j = np.triu_indices(len(z), 1)
    far, tar, _ = roc_curve(ids[i] == ids[j], (z[i] * z[j]).sum(1), drop_intermediate=False)
    mine = facts["roc"]
    assert mine["far"][0] == 0
    for f, t in zip(mine["far"], mine["tar"]):
        assert np.min(np.abs(far - f) + np.abs(tar - t)) < 2e-3
    gap = np.argmin(np.abs(far - (1 - tar)))
    assert mine["eer"] == pytest.approx((far[gap] + 1 - tar[gap]) / 2, abs=0.02)
    assert "Chosen for equal errors on 3 identities; its rates are those on 3 others." in mine["about"]


def test_the_confusion_holds_the_held_out_classes_alone(facts, embedded):
    names = facts["class_names"]
    present, counts = np.unique(embedded[1], return_counts=True)
    assert facts["confusion"]["classes"] == [names[i] for i in present]
    assert np.array(facts["confusion"]["matrix"]).sum(1).tolist() == counts.tolist()


def by_hand(z: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...]) -> HeldOut:
    rows = torch.arange(len(z))
    part = TensorPart({"vector": z}, labels)
    corpus = Corpus("made", (Column("vector", "vector"),), part, part, names)
    return HeldOut(corpus, part, True, rows, list(corpus.columns), [z], [z], labels, None)


def test_the_rows_of_a_confusion_are_what_is_true():
    """A row of class c that lies among those of class a; one of class b alone, and one of no class, are left out."""
    angles = torch.tensor([0.0, 0.01, 0.02, 0.03, 2.0, 2.01, 2.02, 0.015, 3.0, 0.0])
    labels = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2, 1, -1])
    z = torch.stack([angles.cos(), angles.sin()], 1)
    found = confusion(by_hand(z, labels, ("a", "b", "c")))
    assert found == {"matrix": [[4, 0], [1, 3]], "classes": ["a", "c"], "by": "3 nearest others"}
    assert confusion(by_hand(z[:3], torch.tensor([0, 1, 2]), ("a", "b", "c"))) is None


def test_the_gallery_shows_the_nearest_and_says_whether_they_belong(facts, embedded):
    z, ids = embedded
    cosines = z @ z.T
    np.fill_diagonal(cosines, -2)
    names = {query["item"]["name"] for query in facts["gallery"]}
    assert len(names) == len(facts["gallery"]) == 24
    order = {item["name"]: i for i, item in enumerate(facts["map"]["items"])}
    for query in facts["gallery"]:
        i = order[query["item"]["name"]]
        scores = [near["score"] for near in query["neighbours"]]
        np.testing.assert_allclose(scores, np.sort(cosines[i])[::-1][: len(scores)], atol=1e-5)
        for near in query["neighbours"]:
            assert near["right"] == (ids[order[near["item"]["name"]]] == ids[i])
    assert {query["item"]["label"] for query in facts["gallery"]} == set(ids.tolist())


def test_pairs_are_right_by_pair(captioned):
    found = run_facts(captioned)
    assert len(found["map"]["items"]) == 2 * found["data"]["rows"]["test"]
    assert "roc" not in found
    first = found["gallery"][0]
    assert "thumbnail" in first["item"]
    assert all("text" in near["item"] for near in first["neighbours"])
    for query in found["gallery"]:
        assert sum(near["right"] for near in query["neighbours"]) <= 1
        for near in query["neighbours"]:
            assert near["right"] == (near["item"]["name"] == query["item"]["name"])
    assert found["evaluation"]["metrics"][0]["name"] == "image → caption recall@1"
    assert "confusion" not in found  # one held-out row a class
    n = found["data"]["rows"]["test"]
    assert sum(found["histogram"]["positives"]) == n
    assert sum(found["histogram"]["negatives"]) == n * (n - 1)


def test_thumbnails_are_the_pictures(facts):
    item = next(query["item"] for query in facts["gallery"])
    encoded = item["thumbnail"].removeprefix("data:image/png;base64,")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    np.testing.assert_array_equal(shown, np.asarray(Image.open(item["name"])))
    wide = thumbnail(torch.rand(3, 20, 100), side=25)
    assert Image.open(io.BytesIO(base64.b64decode(wide.partition(",")[2]))).size == (25, 5)
    assert len(make_item("a", "long " * 500, None, "text")["text"]) == 240


def test_fewer_rows_and_umap(people, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes longer than twelve rows
    pytest.importorskip("umap", reason="needs umap-learn")
    found = run_facts(people, rows=12, map="umap")
    assert found["map"]["method"] == "umap"
    assert len(found["map"]["x"]) == 12
    assert np.isfinite(found["map"]["x"] + found["map"]["y"]).all()
    assert "map" not in run_facts(people, rows=0)
    with pytest.raises(ValueError, match="rows is -1"):
        run_facts(people, rows=-1)


class TestFiles:
    @pytest.fixture
    def run(self, people, tmp_path):
        return Path(shutil.copytree(people, tmp_path / "a <b>run</b>"))

    def test_what_happened_is_read_by_kind(self, run):
        events(
            run,
            STEP,
            LOOK,
            {"event": "warning", "step": 1, "message": "<i>oh</i>"},
            {"event": "end", "step": 1, "reason": "done <x>"},
        )
        (run / "environment.json").write_text(json.dumps({"torch": "2"}))
        found = run_facts(run)
        assert found["events"]["steps"] == [{k: v for k, v in STEP.items() if k != "event"}]
        assert found["events"]["looks"][0]["metrics"] == {"knn": 0.5}
        assert found["events"]["warnings"] == [{"step": 1, "message": "<i>oh</i>"}]
        assert found["events"]["end"] == "done <x>"
        assert found["environment"] == {"torch": "2"}
        assert found["histogram"]["temperature"] == 0.07
        html = render_runs([found])
        assert "<b>run</b>" not in html
        assert "<i>oh</i>" not in html

    def test_a_torn_last_line_is_left_out_and_a_broken_one_is_named(self, run):
        events(run, STEP, LOOK)
        with (run / "events.jsonl").open("a") as file:
            file.write('{"event": "st')
        assert len(run_facts(run, rows=0)["events"]["looks"]) == 1
        (run / "events.jsonl").write_text('{"event": "step"\n')
        with pytest.raises(ValueError, match=r"events\.jsonl:1 cannot be read"):
            run_facts(run, rows=0)

    def test_an_evaluation_that_is_there_is_shown(self, run):
        measured = Evaluation(
            (Measure("knn", "accuracy", 0.75, 0.1, 0.7, 0.8), Measure("verification", "eer", 0.1)), 50, 16, "cosine"
        )
        (run / "evaluation.json").write_text(json.dumps(measured.to_dict()))
        found = run_facts(run)["evaluation"]
        assert found["rows"] == 50
        assert found["metrics"][0] == {"name": "knn accuracy", "value": 0.75, "low": 0.7, "high": 0.8, "chance": 0.1}
        assert found["metrics"][1]["better"] == "lower"
        assert "trained on since" not in found["about"]
        assert cli.main(["evaluate", str(run)]) == 0
        found = run_facts(run)["evaluation"]
        assert found["rows"] == 36
        assert "trained on since" not in found["about"]
        told = json.loads((run / "evaluation.json").read_text())
        (run / "evaluation.json").write_text(json.dumps(told | {"weights": "others"}))
        assert "trained on since" in run_facts(run)["evaluation"]["about"]
        (run / "evaluation.json").write_text("{}")
        with pytest.raises(ValueError, match=r"evaluation\.json is damaged"):
            run_facts(run)

    def test_a_page_without_data_or_model_says_so(self, run):
        events(run, STEP)
        (run / "config.yaml").write_text("data: moved/away.csv\n")
        found = run_facts(run)
        assert "map" not in found
        assert "neither a data set nor a path" in found["events"]["warnings"][0]["message"]
        shutil.rmtree(run / "model")
        found = run_facts(run)
        assert "could not be embedded" in found["events"]["warnings"][0]["message"]
        assert "<html" in render_runs([found])

    def test_what_is_no_run_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="holds no training run"):
            run_facts(tmp_path)
        (tmp_path / "config.yaml").write_text("- a\n")
        with pytest.raises(ValueError, match="holds a list: wanted options"):
            run_facts(tmp_path)
        (tmp_path / "config.yaml").write_text("{a: ")
        with pytest.raises(ValueError, match=r"config\.yaml is not YAML"):
            run_facts(tmp_path)


class TestCommand:
    def told(self, capsys, *arguments) -> tuple[int, str, str]:
        code = cli.main(["report", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    def test_one_run_several_runs(self, people, captioned, tmp_path, capsys):
        code, out, _ = self.told(capsys, people)
        assert (code, out) == (0, f"{people / 'report.html'}\n")
        assert run_facts(people)["confusion"]["classes"][0] in (people / "report.html").read_text()
        (people / "report.html").unlink()
        page = tmp_path / "new/page.html"
        code, out, _ = self.told(capsys, people, captioned, "-o", page)
        assert (code, out) == (0, f"{page}\n")
        text = page.read_text()
        assert "2 training runs" in text
        assert "<script>alert(1)</script>" not in text  # a class
        assert str(people) in text  # both folders are called run

    @pytest.mark.skipif(browser.CHROMIUM is None, reason=browser.MISSING)
    def test_a_browser_shows_a_single_run(self, people, tmp_path, capsys):
        page = tmp_path / "page.html"
        assert self.told(capsys, people, "-o", page)[0] == 0
        with browser.Browser() as window:
            window.open(page)
            window.settle()
            for section in ("map", "gallery", "similarity", "confusion", "verification"):
                assert window.js(f"document.getElementById('{section}').offsetHeight") > 150, section
            window.js("document.querySelector('#gallery img').scrollIntoView()")
            window.until("document.querySelector('#gallery img').naturalWidth", 16)
            assert window.errors == []
            assert window.requests == []

    def test_mistakes(self, people, tmp_path, capsys):
        code, _, err = self.told(capsys, people, tmp_path)
        assert code == 2
        assert f"{tmp_path} holds no training run" in err
        code, _, err = self.told(capsys, people, "--picture", "p.svg")
        assert code == 2
        assert "only the curves of a comparison" in err
        code, _, err = self.told(capsys, tmp_path / "nowhere")
        assert code == 2
        assert "holds no comparison and no training run" in err
