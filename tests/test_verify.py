"""Verification: scores, calibrated thresholds that others confirm, enrolled identities."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("datasets", reason="needs datasets")

import torch
from sklearn.metrics import roc_curve

from little_runs import identity_run
from nearfar import cli
from nearfar.encoders.load import load
from nearfar.evaluation.knn import nearest
from nearfar.evaluation.pair_scores import listed_scores
from nearfar.index.gallery import Gallery
from nearfar.index.run import open_run
from nearfar.index.verify import calibrated, held_out, verify


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return identity_run(tmp_path_factory.mktemp("identities"))


@pytest.fixture
def people(made):
    return made.parent / "people"


def told(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return code, out, err


class TestThreshold:
    def test_it_is_chosen_on_some_identities_and_judged_on_others(self, made):
        """The rates, counted anew; the threshold, by scikit-learn's curve of the identities that chose it."""
        run = open_run(made)
        found = calibrated(run)
        embeddings, ids, unseen = held_out(run)
        assert unseen
        assert found.unseen
        assert found.calibrated_on + found.tested_on == len(ids.unique()) == 6
        scores = embeddings.double() @ embeddings.double().T
        possible = []
        names = ids.unique()
        for chosen in torch.combinations(names, found.calibrated_on):
            rates = []
            for side in (torch.isin(ids, chosen), ~torch.isin(ids, chosen)):
                s, who = scores[side][:, side], ids[side]
                pairs = torch.triu(torch.ones_like(s), 1).bool()
                same = (who[:, None] == who)[pairs].numpy()
                rates.append((same, s[pairs].numpy()))
            far, tar, thresholds = roc_curve(*rates[0], drop_intermediate=False)
            best = thresholds[np.argmin(np.abs(far - (1 - tar)))]
            same, s = rates[1]
            possible.append((best, (s[~same] >= found.threshold).mean(), (s[same] < found.threshold).mean()))
        assert any(np.allclose((found.threshold, found.far, found.frr), each, atol=2e-4) for each in possible), (
            found,
            possible,
        )

    def test_it_is_kept_with_the_run_and_made_again_for_other_weights(self, made, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(made, run)
        (run / "verification.json").unlink(missing_ok=True)
        first = calibrated(open_run(run))
        file = run / "verification.json"
        kept = json.loads(file.read_text())
        file.write_text(json.dumps(kept | {"threshold": 0.123}))
        assert calibrated(open_run(run)).threshold == 0.123  # read, not made
        assert calibrated(open_run(run), far=0.2).wanted_far == 0.2
        file.write_text(json.dumps(kept | {"threshold": 0.123}))
        embedder = load(run)
        with torch.no_grad():
            next(embedder.parameters()).mul_(0.9)
        embedder.save(run / "model")
        assert calibrated(open_run(run)).threshold not in (0.123, first.threshold)
        weights = json.loads(file.read_text())["weights"]
        file.write_text(json.dumps({"weights": weights, "wanted_far": None}))
        with pytest.raises(ValueError, match=r"verification\.json is damaged"):
            calibrated(open_run(run))

    def test_where_there_is_nothing_to_choose_it_on(self, made, tmp_path, people, capsys):
        run = tmp_path / "run"
        shutil.copytree(made / "model", run / "model")
        pair = [people / "who 00/0.png", people / "who 00/1.png"]
        code, _, err = told(capsys, "verify", run, *pair)
        assert code == 2
        assert "name the data" in err
        code, out, _ = told(capsys, "verify", run, *pair, "--threshold", "-1")
        assert (code, out.split(":")[0]) == (0, "same")


class TestVerify:
    def test_two_images(self, made, people, capsys):
        code, out, _ = told(capsys, "verify", made, people / "who 03/0.png", people / "who 03/1.png")
        assert code == 0
        assert out.startswith("same: score ")
        assert "on 3 identities held out. On 3 others: " in out
        code, out, _ = told(capsys, "verify", made, people / "who 03/0.png", people / "who 04/1.png", "--json")
        found = json.loads(out)
        assert code == 1
        assert not found["same"]
        expected = load(made).embed([people / "who 03/0.png", people / "who 04/1.png"])
        assert found["score"] == pytest.approx(float(expected[0] @ expected[1]), abs=1e-5)

    def test_at_the_threshold_is_the_same(self, made, people):
        pair = people / "who 03/0.png", people / "who 04/1.png"
        score = verify(made, *pair, 0.5)[1]
        assert verify(made, *pair, score)[0]
        assert not verify(made, *pair, float(np.nextafter(score, 2)))[0]

    def test_an_image_is_itself(self, made, people, capsys):
        """The cosine is 1, no less and no more, whatever float32 makes of the length of a row."""
        run = open_run(made)
        for who in range(12):
            path = people / f"who {who:02}/0.png"
            assert verify(run, path, path, 1.0) == (True, 1.0)
        code, out, _ = told(capsys, "verify", made, path, path, "--threshold", "1")
        assert (code, out) == (0, "same: score 1.000, at least the threshold 1.000\n")

    def test_what_is_printed_says_which_is_larger(self, made, people, capsys):
        pair = people / "who 03/0.png", people / "who 03/1.png"
        score = verify(made, *pair, 0.5)[1]
        code, out, _ = told(capsys, "verify", made, *pair, "--threshold", repr(score + 1e-5))
        printed, limit = (float(word.rstrip(",")) for word in np.array(out.split())[[2, 6]])
        assert code == 1
        assert printed < limit
        assert (printed, limit) == (pytest.approx(score, abs=1e-5), pytest.approx(score + 1e-5, abs=1e-5))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["A", "nowhere.png"], "there is no image nowhere.png"),
            (["A", "TORN"], "cannot be read as an image"),
            (["A", "A", "A"], "3 images were given: wanted two, or one with a gallery"),
            (["A", "A", "--gallery", "g.parquet"], "two images and a gallery were given"),
            (["A"], "make it with nearfar enroll"),
            (["A", "A", "--threshold", "2"], "scores are cosines, between -1 and 1"),
            (["A", "A", "--far", "0"], "far is 0.0: wanted a rate"),
        ],
    )
    def test_mistakes(self, arguments, message, made, people, tmp_path, capsys):
        torn = tmp_path / "torn.png"
        torn.write_bytes((people / "who 00/0.png").read_bytes()[:60])
        names = {"A": str(people / "who 00/0.png"), "TORN": str(torn)}
        try:
            code, _, err = told(capsys, "verify", made, *(names.get(a, a) for a in arguments))
        except SystemExit as stop:
            code, err = stop.code, capsys.readouterr().err
        assert code == 2
        assert message in " ".join(err.replace("│", " ").split())

    def test_a_rate_that_no_threshold_keeps(self, made, tmp_path, monkeypatch):
        """Every identity's first row is the same as another's: no score is above an impostor's."""
        from nearfar.index import verify as module

        run = open_run(shutil.copytree(made, tmp_path / "run"))
        ids = torch.arange(8).repeat_interleave(2)
        rows = torch.eye(2)[torch.arange(16) % 2]
        monkeypatch.setattr(module, "held_out", lambda _: (rows, ids, True))
        with pytest.raises(ValueError, match=r"no threshold keeps false acceptances at 0\.001"):
            calibrated(run, far=0.001)


class TestGallery:
    def test_enrol_identify_and_verify(self, made, people, tmp_path, capsys):
        folder, gallery = tmp_path / "known", tmp_path / "known.parquet"
        for who in ("who 00", "who 01", "who 02"):
            shutil.copytree(people / who, folder / who)
            (folder / who / "0.png").unlink()
        code, out, _ = told(capsys, "enroll", made, folder, "-o", gallery)
        assert (code, out) == (0, f"3 identities, 15 images: {gallery}\n")
        options = ["--gallery", gallery, "--threshold", "0.8"]
        code, out, _ = told(capsys, "verify", made, people / "who 01/0.png", *options)
        assert code == 0
        assert out.startswith("who 01: score")
        code, out, _ = told(capsys, "verify", made, people / "who 09/0.png", *options)
        assert code == 1
        assert out.startswith("unknown (nearest: who 0")
        code, out, _ = told(capsys, "verify", made, people / "who 01/0.png", *options, "--identity", "who 02", "--json")
        found = json.loads(out)
        assert (code, found["same"], found["identity"]) == (1, False, "who 02")
        embedder = load(made)
        probe, enrolled = (
            embedder.embed(p) for p in ([people / "who 01/0.png"], sorted((folder / "who 02").iterdir()))
        )
        assert found["score"] == pytest.approx(float((enrolled @ probe[0]).mean()), abs=1e-5)
        code, _, err = told(capsys, "verify", made, people / "who 01/0.png", *options, "--identity", "who 2")
        assert code == 2
        assert "has no identity 'who 2' among its 3; did you mean 'who 02'?" in err

    def test_a_gallery_of_other_weights_is_refused(self, made, people, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(made, run)
        assert told(capsys, "enroll", run, people)[0] == 0
        embedder = load(run)
        with torch.no_grad():
            next(embedder.parameters()).mul_(0.9)
        embedder.save(run / "model")
        code, _, err = told(capsys, "verify", run, people / "who 01/0.png")
        assert code == 2
        assert "enrol again" in err

    def test_broken_images_are_named(self, made, people, tmp_path, capsys):
        folder = tmp_path / "known"
        shutil.copytree(people / "who 00", folder / "who 00")
        torn = folder / "who 00/0.png"
        torn.write_bytes(torn.read_bytes()[:60])
        out = tmp_path / "g.parquet"
        code, _, err = told(capsys, "enroll", made, folder, "-o", out)
        assert code == 2
        assert "0.png: cannot be read as an image" in err
        assert "--skip-bad" in err
        assert not out.exists()
        code, said, err = told(capsys, "enroll", made, folder, "-o", out, "--skip-bad")
        assert (code, said.split(":")[0]) == (0, "1 identities, 5 images")
        assert "left out: " in err
        (tmp_path / "empty").mkdir()
        code, _, err = told(capsys, "enroll", made, tmp_path / "empty")
        assert code == 2
        assert "has no sub-folders" in err

    def test_scores_are_means_over_an_identitys_images(self):
        gallery = Gallery(("a", "b"), np.array([0, 0, 1]), np.eye(3, dtype=np.float32))
        scores = gallery.scores(np.array([1.0, 0.0, 0.0], np.float32))
        assert scores == {"a": 0.5, "b": 0.0}

    def test_no_score_is_above_1(self):
        """Rows of length 1 in float32, whose products with themselves are 1 give or take an ulp."""
        rows = torch.nn.functional.normalize(torch.randn(200, 7, generator=torch.Generator().manual_seed(0)), dim=1)
        gallery = Gallery(tuple(map(str, range(200))), np.arange(200), rows.numpy())
        assert {gallery.scores(row)[str(i)] for i, row in enumerate(rows.numpy())} == {1.0}
        assert set(nearest(rows, rows, k=1).scores.flatten().tolist()) == {1.0}
        assert float(nearest(rows.double(), rows.double(), k=1).scores.max()) <= 1.0
        assert set(listed_scores(rows, rows, torch.arange(200) > 100).genuine.tolist()) == {1.0}
