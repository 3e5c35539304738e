"""Tables of pairs: a value that comes twice is no negative of itself, and rows that are judged dissimilar no positives."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.metrics import average_precision_score

import nearfar as nf
from nearfar.data.config import DataConfig
from nearfar.data.corpus import Column
from nearfar.data.loading import Loader
from nearfar.data.open import open_corpus
from nearfar.evaluation.retrieval import pair_retrieval
from nearfar.evaluation.verification import roc
from nearfar.methods.base import Batch, Setting
from nearfar.methods.config import MethodConfig
from nearfar.methods.labels import Siamese
from nearfar.methods.pairs import CLIP, PairsMethod
from nearfar.training.assemble import settle_method, used_columns
from nearfar.training.trainer import Prepare
from test_train_methods import XY, XYN, Line
from train_cases import ENVIRONMENT

datasets = pytest.importorskip("datasets")
W = "red green blue dark light warm cold small large round flat soft hard near far old new fast slow".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def table(path: Path, header: str, *rows: str) -> str:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def read(path: str, **options):
    """All rows of a table as one batch."""
    corpus = open_corpus(DataConfig(path, **options))
    parts = [part.fetch(range(len(part))) for part in (corpus.train, corpus.test)]
    return corpus, parts


# ---- values that come more than once -------------------------------------------------------------------------------


def test_rows_with_the_same_text_are_told_by_number(tmp_path):
    rows = [f"q{i},{answer}" for i, answer in enumerate(("Yes", "no", " yes ", "Both  ways", "both ways", "other"))]
    corpus, parts = read(table(tmp_path / "a.csv", "question,answer", *rows))
    assert all(set(part.same) == {"answer"} for part in parts)  # no question comes twice
    ids: dict[int, set[str]] = {}
    for part in parts:
        for text, number in zip(part.columns["answer"], part.same["answer"].tolist()):
            ids.setdefault(number, set()).add(" ".join(text.lower().split()))
    assert sorted(map(sorted, ids.values())) == [["both ways"], ["no"], ["other"], ["yes"]]
    assert corpus.train.groups is None  # what is held out is not drawn by them
    _, parts = read(table(tmp_path / "b.csv", "question,answer", "a,b", "c,d", "e,f"))
    assert all(part.same == {} for part in parts)


def test_lists_paths_and_streams(tmp_path):
    lines = [{"query": f"q{i}", "positive": f"p{i}", "negatives": [f"n{i}", f"p{i - 1}"]} for i in range(6)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    _, parts = read(str(path))
    assert set(parts[0].same) == {"positive", "negatives 2"}  # another row's positive
    path = table(tmp_path / "s.csv", "question,answer", *(f"q{i},a{i % 3}" for i in range(40)))
    stream = open_corpus(DataConfig(path, streaming=True))
    batch = next(Loader(stream.train, 12, seed=0).batches())
    assert set(batch.same) == {"answer"}
    texts, numbers = batch.columns["answer"], batch.same["answer"].tolist()
    for (one, a), (other, b) in itertools.combinations(zip(texts, numbers), 2):
        assert (one == other) == (a == b)


def test_a_text_alone_that_comes_twice_is_not_its_own_negative(tmp_path):
    corpus, (part, _) = read(table(tmp_path / "a.csv", "text", *(f"t{i % 5} word" for i in range(12))))

    class Plain:
        @staticmethod
        def prepare(kind, raw):
            return raw

    ids = Prepare(Plain(), corpus.columns)(part).ids
    assert ids is not None
    texts = part.columns["text"]
    assert ((ids[:, None] == ids) == torch.tensor([[a == b for b in texts] for a in texts])).all()


ANCHOR = [0, 1, 0, 2, 3, 4]
POSITIVE = [10, 11, 12, 10, 0, 14]
NEGATIVE = [20, 10, 21, 12, 22, 23]
SIMILAR = [1.0, 0.9, 1.0, 1.0, 1.0, 0.2]


def by_hand(i: int, value: int, row: int | None, judged: bool) -> str:
    """What the key of a row (none: a hard negative) is to an anchor."""
    alike = [grade >= 0.5 or not judged for grade in SIMILAR]
    if row == i and alike[i]:
        return "+"
    known = row is not None and alike[row] and ANCHOR[row] == ANCHOR[i]
    return "." if known or value == ANCHOR[i] or (alike[i] and value == POSITIVE[i]) else "-"


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("columns", [XY, XYN], ids=["two columns", "hard negatives"])
def test_who_belongs_with_whom_by_hand(columns, judged):
    same = {"x": torch.tensor(ANCHOR), "y": torch.tensor(POSITIVE), "n": torch.tensor(NEGATIVE)}
    given = Batch(torch.arange(6) + 50, {}, similar=torch.tensor(SIMILAR) if judged else None, same=same)
    pairs = PairsMethod(Line(), 4, Setting("pairs", columns, MethodConfig(projection=0))).belonging(given)
    assert pairs is not None
    keys = [(value, row) for row, value in enumerate(POSITIVE)]
    keys += [(value, None) for value in NEGATIVE] if len(columns) == 3 else []
    wanted = "\n".join(" ".join(by_hand(i, value, row, judged) for value, row in keys) for i in range(6))
    assert pairs.table() == wanted


def test_the_loss_of_an_answer_to_two_questions():
    """Of four rows two have one answer: for neither is the other's a negative."""
    x, y = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    y[2] = y[0]
    given = Batch(torch.arange(4), {"x": x, "y": y}, same={"y": torch.tensor([5, 6, 5, 7])})
    for kind, loss in ((PairsMethod, nf.InfoNCELoss), (CLIP, nf.CLIPLoss)):
        name = "pairs" if kind is PairsMethod else "clip"
        method = kind(Line(), 4, Setting(name, XY, MethodConfig(projection=0, temperature=0.5)))
        q, k = method.embedder.line(x), method.embedder.line(y)
        relation = torch.eye(4)
        relation[0, 2] = relation[2, 0] = math.nan
        (term,) = method(given).values()
        torch.testing.assert_close(term, loss(0.5)(q, k, pairs=nf.Pairs.from_matrix(relation)))
        assert float(term.detach()) != pytest.approx(float(loss(0.5)(q, k).detach()))


def test_any_of_equal_partners_is_found():
    """Retrieval counts the other copy of an answer, which no embedding tells from the first."""
    z = torch.eye(4)
    second = z[[0, 0, 2, 3]]
    first = torch.nn.functional.normalize(z + 0.1, dim=1)
    first[1] = first[0]
    same = torch.tensor([[0, 5], [1, 5], [2, 6], [3, -1]])
    there, back = pair_retrieval(first, second, same, ks=(1,))
    assert (there["recall@1"], back["recall@1"]) == (1.0, 1.0)
    assert pair_retrieval(first, second, ks=(1,))[0]["recall@1"] == 0.75
    one = pair_retrieval(first, second, torch.tensor([5, 5, 6, 7]), ks=(1, 2))
    for some, others in zip(pair_retrieval(first, second, same, ks=(1, 2)), one):
        assert some.scores == others.scores
        assert some.chance == others.chance


# ---- judged pairs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "cells", "wanted"),
    [
        ("question1,question2,is_duplicate", ["0", "1", "0", "1", "1", "0"], [0, 1, 0, 1, 1, 0]),
        ("sentence1,sentence2,label", ["0", "1", "0", "1", "1", "0"], [0, 1, 0, 1, 1, 0]),
        ("sentence1,sentence2,label", ["-1", "1", "1", "1", "1", "-1"], [0, 1, 1, 1, 1, 0]),
        ("premise,hypothesis,label", ["neutral", "entailment", "contradiction"] * 2, [0, 1, 0, 0, 1, 0]),
        ("sentence1,sentence2,score", ["0", "2.5", "5", "4", "1", "3"], [0, 0.5, 1, 0.8, 0.2, 0.6]),
        ("sentence1,sentence2,label", ["0.1", "0.5", "1", "0", "0.2", "0.7"], [0.1, 0.5, 1, 0, 0.2, 0.7]),
        ("sentence1,sentence2,label", ["1", "1", "1", "1", "1", "1"], None),  # all belong together
        ("sentence1,sentence2,label", ["sport", "art", "sport", "art", "sport", "art"], None),
        ("sentence1,sentence2,score", ["12", "0", "340", "1", "7", "3"], None),  # votes
        ("text,caption,label", ["0", "1", "0", "1", "1", "0"], None),  # a class of a text, and not a pair
    ],
)
def test_columns_of_judgements(header, cells, wanted, tmp_path):
    corpus, parts = read(table(tmp_path / "t.csv", header, *(f"a{i},b{i},{cell}" for i, cell in enumerate(cells))))
    if wanted is None:
        assert corpus.similar is None
        assert parts[0].similar is None
        return
    assert corpus.similar == header.split(",")[2]
    assert corpus.class_names == ()
    first = corpus.columns[0].name
    found = {text: grade for part in parts for text, grade in zip(part.columns[first], part.similar.tolist())}
    assert found == pytest.approx({f"a{i}": grade for i, grade in enumerate(wanted)})


@pytest.mark.parametrize(
    ("header", "cells", "options", "message"),
    [
        ("question1,question2,is_duplicate", "0000", {}, "no row's sides are similar"),
        ("question1,question2,is_duplicate", "0x10", {}, r"t\.csv:3: column 'is_duplicate' does not say how alike"),
        ("premise,hypothesis,label", "0121", {}, "nothing says which is entailment"),
        ("question,answer,votes", "0129", {"similar": "votes"}, "column 'votes' holds '0', wanted how alike"),
        ("text,votes,other", "0101", {"similar": "votes"}, "name the other with positive="),
        ("question,answer,votes", "0101", {"similar": "vote"}, "did you mean 'votes'"),
    ],
)
def test_what_a_judgement_cannot_be(header, cells, options, message, tmp_path):
    path = table(tmp_path / "t.csv", header, *(f"a{i},b{i},{cell}" for i, cell in enumerate(cells)))
    if header.startswith("text"):
        path = table(tmp_path / "t.csv", header, *(f"a{i},{cell},3" for i, cell in enumerate(cells)))
    with pytest.raises(ValueError, match=message):
        open_corpus(DataConfig(path, **options))


def test_a_label_that_is_named_is_a_class(tmp_path):
    path = table(tmp_path / "t.csv", "sentence1,sentence2,label", *(f"a{i},b{i},{i % 2}" for i in range(8)))
    corpus, parts = read(path, label="label")
    assert corpus.similar is None
    assert corpus.class_names == ("0", "1")
    corpus, parts = read(path, similar="label", skip_bad=True)
    assert corpus.similar == "label"
    assert parts[0].labels is None


def test_judgements_in_a_stream(tmp_path):
    rows = [f"a{i},b{i},{'' if i == 7 else i % 2}" for i in range(60)]
    path = table(tmp_path / "t.csv", "question1,question2,is_duplicate", *rows)
    corpus = open_corpus(DataConfig(path, streaming=True, skip_bad=True))
    bad: list[str] = []
    for batch in Loader(corpus.train, 16, seed=0).batches(stop=4):
        bad += batch.bad
        assert [int(text[1:]) % 2 for text in batch.columns["question1"]] == batch.similar.tolist()
    assert bad
    assert all("t.csv:9: column 'is_duplicate' does not say" in line for line in bad)
    with pytest.raises(ValueError, match="does not say how alike"):
        list(Loader(open_corpus(DataConfig(path, streaming=True)).train, 16, seed=0).batches(stop=4))


def test_siamese_by_hand():
    """A grade weighs the pull and the push of a pair: 1 is Hadsell's similar, 0 its dissimilar."""
    x, y = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    grades = torch.tensor([1.0, 0.0, 0.25, 0.5, 1.0])
    method = Siamese(Line(), 4, Setting("siamese", XY, MethodConfig(projection=0, margin=0.9)))
    a, b = (torch.nn.functional.normalize(method.embedder.line(side), dim=1) for side in (x, y))
    distance = (a - b).norm(dim=1)
    wanted = grades * distance**2 + (1 - grades) * (0.9 - distance).clamp(min=0) ** 2
    (term,) = method(Batch(torch.arange(5), {"x": x, "y": y}, similar=grades)).values()
    torch.testing.assert_close(term, wanted.mean())


def test_average_precision_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(300, generator=generator) < 0.3
    scores = (truth + 1.5 * torch.randn(300, generator=generator)).mul(4).round()  # with ties
    found = roc(scores[truth], scores[~truth]).average_precision
    assert math.isclose(found, average_precision_score(truth.numpy(), scores.numpy()), rel_tol=1e-12)


def judged_table(path: Path, rows: int = 240) -> str:
    """A pair is similar if its second text has the words of the first; else it has none of them."""
    generator = torch.Generator().manual_seed(1)
    lines = []
    for i in range(rows):
        order = torch.randperm(len(W), generator=generator).tolist()
        second = order[3:0:-1] if i % 2 else order[6:9]
        lines.append(f"{' '.join(W[k] for k in order[1:4])},{' '.join(W[k] for k in second)},{i % 2}")
    return table(path, "question1,question2,is_duplicate", *lines)


def test_trained_and_evaluated_by_judgements(tmp_path):
    """As a user meets it: what was understood, in one line each though the terminal is narrow; AP, then EER and AUC."""
    path = judged_table(tmp_path / "dup.csv")
    program = [sys.executable, "-m", "nearfar"]
    options = ["--steps", "30", "--batch-size", "32", "--eval-every", "15", "--threads", "1", "--out", "run"]
    common = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([*program, "train", "--data", path, *options], env=ENVIRONMENT | {"COLUMNS": "80"}, **common)
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert (
        "dup: 161 rows to train on, 79 held out · question1 (text), question2 (text) · by is_duplicate 81 similar"
        in told
    )
    assert any(line.startswith("method siamese · encoder text-small") for line in told)
    looks = [line for line in told if line.startswith("step ")]
    assert len(looks) == 3  # before training, and every 15 steps
    assert all("average_precision" in line and "feature_std" in line for line in looks)  # a look is one line
    run = nf.Run(tmp_path / "run")
    assert run.metrics["average_precision"] > 0.9  # half of the pairs are similar
    done = subprocess.run([*program, "evaluate", "run"], env=ENVIRONMENT, **common)
    assert done.returncode == 0, done.stderr
    measures = {(m["task"], m["name"]) for m in json.loads((run.path / "evaluation.json").read_text())["measures"]}
    assert {("verification", "eer"), ("verification", "auc"), ("verification", "average precision")} <= measures
    assert not any("→" in task for task, _ in measures)  # a dissimilar partner is not to be found


@pytest.mark.parametrize(("grades", "metric"), [([0.0, 1.0], "average_precision"), ([0.0, 0.3, 1.0], "spearman")])
def test_what_a_look_measures(grades, metric, tmp_path):
    rows = [f"{W[i % 19]} a,{W[i % 17]} b,{grades[i % len(grades)]}" for i in range(60)]
    path = table(tmp_path / "t.csv", "sentence1,sentence2,similarity", *rows)
    for method in ("siamese", "pairs"):
        run = nf.train(
            data=path, method=method, steps=2, batch_size=16, out=str(tmp_path / method), show=False, threads=1
        )
        assert list(run.metrics) == [metric]


# ---- labels that say nothing ---------------------------------------------------------------------------------------


def test_a_label_that_no_two_rows_share_is_refused(tmp_path):
    path = table(tmp_path / "t.csv", "text,name", *(f"{W[i % 19]} {i},n{i}" for i in range(30)))
    with pytest.raises(ValueError, match=r"column 'name' each of the 30 classes has one row of 30 to train on"):
        nf.train(data=path, label="name", steps=1, show=False, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    corpus = open_corpus(DataConfig(path, label="name"))
    assert settle_method(nf.TrainConfig(method="simcse"), corpus) == "simcse"


def test_held_out_rows_of_one_class_are_no_proof(tmp_path, capsys):
    for part, names in (("train", ("a", "b")), ("test", ("a",))):
        rows = [f"{W[i % 19]} {W[i % 7]} {name},{name}" for name in names for i in range(16)]
        (tmp_path / "data").mkdir(exist_ok=True)
        table(tmp_path / "data" / f"{part}.csv", "text,label", *rows)
    options = {"data": str(tmp_path / "data"), "method": "supcon", "steps": 2, "batch_size": 16, "threads": 1}
    run = nf.train(**options, out=str(tmp_path / "run"))
    assert run.metrics == {}
    assert [e["message"] for e in run.events("warning") if "of one class" in e["message"]]
    assert "warning: all rows that are looked at are of one class" in capsys.readouterr().err
    with pytest.raises(ValueError, match="metric is 'knn', and looks at these data give none"):
        nf.train(**options, metric="knn", out=str(tmp_path / "other"), show=False)


def test_columns_that_siamese_reads():
    texts = [Column("a", "text"), Column("b", "text", "positive")]
    from nearfar.data.corpus import Corpus, TensorPart

    part = TensorPart({"a": ["x"], "b": ["y"]}, similar=torch.ones(1))
    assert used_columns("siamese", Corpus("c", tuple(texts), part, None, similar="s")) == tuple(texts)
    assert used_columns("siamese", Corpus("c", tuple(texts), part, None, ("k",))) == tuple(texts[:1])
