"""Figures of a run: a file a data set, each under its name on the page; ranked where they are of the same rows and protocol."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("datasets", reason="needs datasets")
pytest.importorskip("plotly", reason="needs plotly")

import yaml

from little_runs import identities, identity_run
from nearfar.cli import main
from nearfar.index.evaluated import file_of
from nearfar.index.facts import run_facts
from nearfar.report.run_check import check_runs
from nearfar.report.run_page import render_runs
from nearfar.report.sections.findings import sentences
from nearfar.report.sections.shown import shown
from pages import Page


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    identities(folder / "faces", people=8, each=4)
    identities(folder / "deep/faces", people=4, each=4)
    return identity_run(folder)


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def evaluated(run: Path, *options: str) -> None:
    assert main(["evaluate", str(run), "--tasks", "knn", *options]) == 0


def files(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("evaluation*"))


def split_otherwise(run: Path, seed: int) -> Path:
    """The same model, as if it had held out other rows."""
    other = Path(shutil.copytree(run, run.with_name(f"run{seed}")))
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"split_seed": seed}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    return other


class TestFiles:
    def test_other_data_leave_the_runs_own_figures_as_they_are(self, run, made, capsys):
        evaluated(run)
        own = (run / "evaluation.json").read_bytes()
        for data in ("faces", "deep/faces", "faces"):
            evaluated(run, "--data", str(made.parent / data))
        names = [name for name in files(run) if name != "evaluation.json"]
        assert (run / "evaluation.json").read_bytes() == own
        assert len(names) == 2
        assert "evaluation-faces.json" in names
        told = {name: json.loads((run / name).read_text()) for name in names}
        assert {one["source"]: one["rows"] for one in told.values()} == {
            str(made.parent / "faces"): 8, str(made.parent / "deep/faces"): 4,
        }  # fmt: skip
        assert str(run / "evaluation-faces.json") in capsys.readouterr().out

    def test_its_own_data_by_path_are_its_own(self, run, made):
        evaluated(run, "--data", str(made.parent / "people"))
        assert files(run) == ["evaluation.json"]
        assert json.loads((run / "evaluation.json").read_text())["source"] is None

    def test_a_file_of_the_users_own(self, run, made, tmp_path):
        evaluated(run, "--data", str(made.parent / "faces"), "--out", str(tmp_path / "f.json"))
        assert (files(run), (tmp_path / "f.json").is_file()) == ([], True)

    def test_names_that_are_no_file_names(self, tmp_path):
        assert file_of(tmp_path, "a/b: c?", "x").name == "evaluation-a-b-c.json"
        assert file_of(tmp_path, "../..", "x").name == "evaluation-data.json"
        assert file_of(tmp_path, "数据", "x").name == "evaluation-数据.json"

    def test_a_damaged_one_is_named(self, run):
        (run / "evaluation-x.json").write_text("[]")
        with pytest.raises(ValueError, match=r"evaluation-x\.json is damaged"):
            run_facts(run, rows=0)


class TestPage:
    def test_each_is_shown_under_its_name(self, run, made):
        evaluated(run)
        for data in ("faces", "deep/faces"):
            evaluated(run, "--data", str(made.parent / data))
        facts = run_facts(run)
        check_runs([facts])
        assert (facts["evaluation"]["rows"], {one["rows"] for one in facts["others"]}) == (36, {8, 4})
        text = Page(render_runs([facts])).text
        for path in (made.parent / "faces", made.parent / "deep/faces"):
            assert f"On faces ({path})" in text
        assert "on 36 held-out rows" in text
        assert f"on 8 rows of faces ({made.parent / 'faces'})" in text

    def test_a_name_that_one_data_set_has_stands_alone(self, run, made):
        evaluated(run, "--data", str(made.parent / "faces"))
        facts = run_facts(run)
        assert "Measured for this page on 36 held-out rows" in facts["evaluation"]["about"]
        html = render_runs([facts])
        assert "<h3>On faces</h3>" in html
        assert html.index("Figures on held-out rows") < html.index("<h3>On faces</h3>")

    def test_files_of_an_earlier_version(self, run, made):
        """They do not say where their data were: the run's own by name, or others."""
        evaluated(run, "--data", str(made.parent / "faces"))
        old = json.loads((run / "evaluation-faces.json").read_text())
        (run / "evaluation-faces.json").unlink()
        for name in ("source", "protocol"):
            del old[name]
        (run / "evaluation.json").write_text(json.dumps(old))
        found = run_facts(run, rows=0)
        assert "evaluation" not in found
        assert [one["data"] for one in found["others"]] == ["faces"]
        (run / "evaluation.json").write_text(json.dumps(old | {"data": "people"}))
        found = run_facts(run, rows=0)
        assert found["evaluation"]["rows"] == 8
        assert "others" not in found

    def test_others_of_other_weights_say_so(self, run, made):
        evaluated(run, "--data", str(made.parent / "faces"))
        file = run / "evaluation-faces.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": "others"}))
        assert "trained on since" in run_facts(run)["others"][0]["about"]

    def test_figures_without_a_name_are_refused(self):
        with pytest.raises(ValueError, match="figures without the name of their data"):
            render_runs([{"name": "a", "config": {}, "others": [{"metrics": []}]}])


class TestRanks:
    """Several runs: only like figures have a best."""

    def test_the_same_rows_and_the_same_protocol(self, run):
        again = Path(shutil.copytree(run, run.with_name("again")))
        evaluated(run)
        evaluated(again)
        facts = [run_facts(one, rows=0) for one in (run, again)]
        assert facts[0]["evaluation"]["protocol"] == facts[1]["evaluation"]["protocol"]
        html = render_runs(facts)
        assert "★ 100.0%" in html
        assert "not ranked" not in html

    @pytest.mark.parametrize(("options", "why"), [
        ((), "rows measured"), (("--k", "3"), "number of neighbours"), (("--metric", "dot"), "metric"),
        (("--rows", "20"), "rows measured"),
    ])  # fmt: skip
    def test_other_splits_and_settings(self, run, options, why):
        other = split_otherwise(run, 5) if not options else Path(shutil.copytree(run, run.with_name("other")))
        evaluated(run)
        evaluated(other, *options)
        facts = [run_facts(one, rows=0) for one in (run, other)]
        text = Page(render_runs(facts)).text
        assert "★ 1" not in text
        assert why in sentences(shown(facts))[0]
        assert "are not ranked: they differ in" in sentences(shown(facts))[0]
        assert "No ★: not ranked, since the runs differ in" in text

    def test_two_that_are_alike_and_one_that_is_not(self, run):
        def told(name: str, value: float, rows: str, chance: float = 0.1) -> dict:
            metric = {"name": "knn", "value": value, "low": value - 0.01, "high": value + 0.01, "chance": chance}
            return {
                "name": name,
                "config": {},
                "evaluation": {"metrics": [metric], "protocol": {"rows measured": rows}},
            }

        three = [told("a", 0.8, "x"), told("b", 0.99, "y"), told("c", 0.7, "x")]
        assert sentences(shown(three))[0] == (
            "By knn, a is the best of 2 runs: 80.0% against 70.0% of c; their 95% intervals do not overlap. "
            "Not ranked with them: b, which differs in rows measured."
        )
        two = [told("a", 0.8, "x"), told("b", 0.9, "x", chance=0.5)]
        assert sentences(shown(two))[0] == "By knn, the 2 runs are not ranked: they differ in chance."
        html = render_runs(two)
        assert "; chance 50.0%" in html
        assert "; chance 10.0%" in html
        assert "★ 9" not in html
