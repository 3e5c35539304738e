"""`nf.evaluate`, and the measures that are not rankings: probe, clusters, correlations, zero-shot, intervals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import nearfar as nf
from nearfar.evaluation.clustering import cluster_agreement, clustering, kmeans
from nearfar.evaluation.evaluate import TASKS
from nearfar.evaluation.evaluation import Evaluation
from nearfar.evaluation.intervals import bootstrap_interval, share_interval
from nearfar.evaluation.knn import knn_accuracy
from nearfar.evaluation.probe import linear_probe, logistic_regression
from nearfar.evaluation.similarity import average_ranks, correlation_interval, pearson, spearman, sts
from nearfar.evaluation.verification import pair_scores, roc
from nearfar.evaluation.zeroshot import prompt_prototypes, zero_shot


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x[:600]).float(), torch.from_numpy(y[:600])


def labelled(n: int = 60, classes: int = 4, d: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    return centres[y] + torch.randn(n, d, generator=generator), y


class TestEvaluate:
    def test_real_digits(self, digits):
        z, y = digits
        found = nf.evaluate(z, y)
        assert found["knn/accuracy"] == pytest.approx(knn_accuracy(z, y))
        assert found["knn/accuracy"] > 0.93
        assert found["recall@1"] > 0.95
        pairs = pair_scores(z, y)
        assert found["auc"] == pytest.approx(roc(pairs.genuine, pairs.impostor).auc)
        assert {m.task for m in found.measures} == {"knn", "retrieval", "verification", "clustering"}
        for m in found.measures:
            assert m.low is None or m.low <= m.value <= m.high, m
            assert m.chance is None or m.name == "eer" or m.value > m.chance, m

    def test_training_rows_teach_the_classifiers(self, digits):
        z, y = digits
        found = nf.evaluate(z[400:], y[400:], train=(z[:400], y[:400]), tasks=("knn", "probe"))
        assert found["knn/accuracy"] == pytest.approx(knn_accuracy(z[400:], y[400:], train=(z[:400], y[:400])))
        assert found["probe/accuracy"] > 0.8
        assert {m.task for m in found.measures} == {"knn", "probe"}

    def test_pairs(self):
        a = torch.eye(6)
        found = nf.evaluate(a, pairs=a.roll(1, 0) + 0.5 * a, ks=(1, 2))
        assert found["first→second/recall@1"] == 0.0
        assert found["first→second/recall@2"] == 1.0
        assert found["second→first/mrr"] == 0.5

    def test_scores_and_pairs_are_a_similarity_task(self):
        a, b = labelled(40)[0], labelled(40, seed=1)[0]
        s = torch.nn.functional.cosine_similarity(a, b) + 0.1
        found = nf.evaluate(a, pairs=b, scores=s)
        assert found["spearman"] == pytest.approx(1.0)
        assert "mrr" not in found

    def test_gallery_prototypes_lists(self):
        z, y = labelled()
        g, w = labelled(seed=1)
        found = nf.evaluate(
            z, y, gallery=(g, w), prototypes=torch.stack([g[w == c].mean(0) for c in range(4)]), ks=(1,)
        )
        assert found["zero-shot/top-1"] > 0.5
        lists = [(w == c).nonzero()[:, 0].tolist() for c in y]
        by_lists = nf.evaluate(z, gallery=g, relevant=lists, ks=(1,))
        assert by_lists["recall@1"] == found["retrieval/recall@1"]
        assert "found@1" in by_lists

    def test_queries_are_drawn_above_a_limit(self):
        z, y = labelled(400)
        some, every = (
            nf.evaluate(z, y, queries=100, tasks=("knn", "retrieval")),
            nf.evaluate(z, y, tasks=("knn", "retrieval")),
        )
        assert sum("100 of 400 rows" in note for note in some.notes) == 2
        assert not every.notes
        assert some["knn/accuracy"] == pytest.approx(every["knn/accuracy"], abs=0.15)
        assert some["map@r"] == pytest.approx(every["map@r"], abs=0.1)
        assert nf.evaluate(z, y, queries=100).to_dict() == nf.evaluate(z, y, queries=100).to_dict()

    def test_unknown_labels_are_left_out_and_told(self):
        z, y = labelled()
        hidden = torch.cat([y, torch.full((5,), -1)])
        found = nf.evaluate(torch.cat([z, torch.randn(5, 6)]), hidden)
        assert found["knn/accuracy"] == nf.evaluate(z, y)["knn/accuracy"]
        assert "5 rows without a label were left out" in found.notes

    def test_one_class(self):
        """Whatever is found is right: that is worth nothing, and is no figure."""
        z, one = torch.randn(10, 3), torch.zeros(10).long()
        with pytest.raises(ValueError, match=r"knn: all rows are of one class.*retrieval: all rows are of one class"):
            nf.evaluate(z, one)
        found = nf.evaluate(z, one, pairs=z)
        assert {measure.task for measure in found.measures} == {"first→second", "second→first"}
        assert any("one class" in note for note in found.notes)

    def test_one_class_among_several_that_were_learned(self):
        z, learned = torch.randn(10, 3), (torch.randn(20, 3), torch.arange(20) % 2)
        found = nf.evaluate(z, torch.zeros(10).long(), train=learned, gallery=learned, tasks=("knn", "retrieval"))
        assert 0.0 < found["knn/accuracy"] < 1.0
        assert found["precision@r"] < 1.0

    def test_classes_by_name(self):
        """Sorted names are the ids, over all that is given; a missing one is unknown."""
        pandas = pytest.importorskip("pandas")
        z, ids = torch.randn(12, 3), torch.arange(12) % 3
        names = [("ant", "bee", "cat")[i] for i in ids.tolist()]
        keys = torch.randn(6, 3), ["cat", "bee", "dog", "cat", "bee", "dog"]
        wanted = nf.evaluate(z, ids, gallery=(keys[0], torch.tensor([2, 1, 3, 2, 1, 3]))).to_dict()
        for said in (names, tuple(names), np.array(names), pandas.Series(names, dtype="category")):
            assert nf.evaluate(z, said, gallery=keys).to_dict() == wanted
        assert nf.evaluate(z, pandas.Series(ids.numpy())).to_dict() == nf.evaluate(z, ids).to_dict()
        some = torch.where(torch.arange(12) == 4, -1, ids)
        partly = pandas.Series(names).where(pandas.Series(range(12)) != 4)
        assert nf.evaluate(z, partly).to_dict() == nf.evaluate(z, some).to_dict()
        with pytest.raises(ValueError, match="some labels are names and some are numbers"):
            nf.evaluate(z, names, train=(z, ids))

    def test_judged_pairs(self):
        z = torch.eye(4)
        found = nf.evaluate(z, pairs=z[[0, 1, 3, 2]], scores=torch.tensor([1.0, 1.0, 0.0, 0.0]))
        assert (found["average precision"], found["auc"], found["eer"], found["spearman"]) == (1.0, 1.0, 0.0, 1.0)
        graded = nf.evaluate(z, pairs=z[[0, 1, 3, 2]], scores=torch.tensor([1.0, 0.9, 0.2, 0.0]))
        assert {measure.task for measure in graded.measures} == {"similarity"}

    def test_one_row_a_class(self):
        found = nf.evaluate(torch.eye(5), torch.arange(5))
        assert found["knn/accuracy"] == 0.0
        assert any("no two rows share a class" in note for note in found.notes)

    def test_duplicates_and_a_constant(self):
        found = nf.evaluate(torch.ones(30, 4), torch.arange(30) % 3)
        assert found["auc"] == 0.5
        assert found["eer"] == 0.5
        assert found["knn/accuracy"] <= 0.4

    def test_it_prints_and_travels_as_json(self):
        z, y = labelled()
        found = nf.evaluate(z, y)
        text = str(found)
        assert "recall@1" in text
        assert "95% interval" in text
        assert len({line.index("0.") for line in text.splitlines() if "recall@" in line}) == 1  # aligned
        assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found

    def test_an_unknown_measure(self):
        with pytest.raises(KeyError, match="'recall@7' was not measured; there are knn/accuracy"):
            nf.evaluate(*labelled())["recall@7"]

    def test_half_precision(self):
        z, y = labelled()
        assert nf.evaluate(z.half(), y)["recall@1"] == pytest.approx(nf.evaluate(z, y)["recall@1"], abs=0.05)

    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (lambda z: nf.evaluate(z), "nothing is known of the rows"),
            (lambda z: nf.evaluate(z, torch.full((4,), -1)), "none of 4 rows has a label"),
            (lambda z: nf.evaluate(z, torch.zeros(4)), "integer class ids"),
            (lambda z: nf.evaluate(z[:1], torch.zeros(1).long()), "nothing could be measured"),
            (lambda z: nf.evaluate(z * torch.inf, torch.zeros(4).long()), "NaN or infinity"),
            (lambda z: nf.evaluate(z, torch.zeros(4).long(), scores=torch.ones(4)), "scores= was given without pairs"),
            (lambda z: nf.evaluate(z, pairs=z, train=(z, torch.zeros(4).long())), "train= was given without labels"),
            (lambda z: nf.evaluate(z, torch.zeros(4).long(), gallery=z), "gallery= has no classes"),
            (lambda z: nf.evaluate(z, torch.zeros(4).long(), tasks=("knnn",)), f"did you mean '{TASKS[0]}'"),
        ],
    )
    def test_wrong_input(self, call, says, unchecked):
        with pytest.raises(ValueError, match=says):
            call(torch.eye(4))


class TestProbe:
    def test_weights_are_scikit_learns(self):
        z, y = labelled(200)
        strength = 0.01
        ours = logistic_regression(z.double(), y, 4, strength)
        theirs = LogisticRegression(C=1 / (strength * len(z)), tol=1e-10, max_iter=5000).fit(z.double(), y)
        weight, bias = ours[:, :-1] - ours[:, :-1].mean(0), ours[:, -1] - ours[:, -1].mean()
        torch.testing.assert_close(weight, torch.from_numpy(theirs.coef_), atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(
            bias, torch.from_numpy(theirs.intercept_ - theirs.intercept_.mean()), atol=2e-4, rtol=1e-3
        )

    def test_real_digits_beside_scikit_learn(self, digits):
        z, y = digits
        ours = linear_probe(z[:400], y[:400], z[400:], y[400:])
        spread = z[:400].std(0).clamp_min(1e-6)
        theirs = LogisticRegression(max_iter=2000).fit(z[:400] / spread, y[:400]).score(z[400:] / spread, y[400:])
        assert ours.accuracy == pytest.approx(theirs, abs=0.03)
        assert set(ours.per_class) == set(range(10))

    def test_scale_and_shift_of_features_change_nothing(self):
        z, y = labelled(200)
        t, w = labelled(200, seed=1)
        scale = torch.tensor([1e-3, 1.0, 1e3, 1.0, 10.0, 1.0])
        assert torch.equal(
            linear_probe(z, y, t, w).predicted, linear_probe(z * scale + 5, y, t * scale + 5, w).predicted
        )

    def test_classes_of_any_number_and_classes_never_seen(self):
        z, y = labelled(40, 2)
        found = linear_probe(z, y * 2**40, z, torch.where(y == 1, 7, y))
        assert found.per_class[7] == 0.0
        assert set(found.predicted.tolist()) <= {0, 2**40}

    def test_noise_wants_a_strong_regularisation(self):
        generator = torch.Generator().manual_seed(0)
        z, y = torch.randn(60, 200, generator=generator), torch.arange(60) % 2
        assert linear_probe(z, y, z, y).strength >= 1e-2

    def test_the_same_twice(self):
        z, y = labelled(80)
        assert linear_probe(z, y, z, y).strength == linear_probe(z, y, z, y).strength

    def test_wrong_input(self, unchecked):
        z, y = labelled(8)
        with pytest.raises(ValueError, match="two classes and a test row"):
            linear_probe(z, torch.zeros(8).long(), z, y)
        with pytest.raises(ValueError, match="the same encoder"):
            linear_probe(z, y, z[:, :2], y)


class TestClusters:
    @given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5))
    def test_agreement_is_scikit_learns(self, seed, classes, groups):
        generator = torch.Generator().manual_seed(seed)
        y, c = (torch.randint(0, k, (30,), generator=generator) for k in (classes, groups))
        found = cluster_agreement(y, c)
        table = sklearn.metrics.cluster.contingency_matrix(y, c)
        assert found["nmi"] == pytest.approx(sklearn.metrics.normalized_mutual_info_score(y, c))
        assert found["ari"] == pytest.approx(sklearn.metrics.adjusted_rand_score(y, c))
        assert found["purity"] == pytest.approx(table.max(0).sum() / 30)
        rows, columns = scipy.optimize.linear_sum_assignment(table, maximize=True)
        assert found["accuracy"] == pytest.approx(table[rows, columns].sum() / 30)

    def test_by_hand(self):
        found = cluster_agreement(torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([5, 5, 9, 9, 9, 9]))
        assert found["purity"] == pytest.approx((2 + 2) / 6)
        assert found["accuracy"] == pytest.approx(4 / 6)

    def test_far_clusters_are_found(self):
        y = torch.arange(60) % 3
        z = 10 * torch.eye(3)[y] + 0.01 * torch.randn(60, 3)
        assert clustering(z, y) == dict.fromkeys(("nmi", "ari", "purity", "accuracy"), (1.0, 0.0))
        assert torch.equal(kmeans(z, 3, seed=1), kmeans(z, 3, seed=1))

    def test_wrong_input(self, unchecked):
        with pytest.raises(ValueError, match="5 clusters of 3 rows"):
            kmeans(torch.eye(3), 5)
        with pytest.raises(ValueError, match="no row has a label"):
            cluster_agreement(torch.tensor([-1]), torch.tensor([0]))


class TestSimilarity:
    @given(st.integers(0, 10_000), st.integers(3, 40))
    def test_correlations_are_scipys(self, seed, n):
        generator = torch.Generator().manual_seed(seed)
        a = torch.randint(0, 5, (n,), generator=generator).double()  # many ties
        b = torch.randn(n, generator=generator).double()
        if len(a.unique()) < 2:
            return
        assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-9)
        assert pearson(a, b) == pytest.approx(scipy.stats.pearsonr(a, b).statistic, abs=1e-9)
        assert average_ranks(a).tolist() == scipy.stats.rankdata(a).tolist()

    def test_sts_is_of_cosines(self):
        a, b = labelled(50)[0], labelled(50, seed=1)[0]
        s = torch.rand(50, generator=torch.Generator().manual_seed(0))
        cosines = torch.nn.functional.cosine_similarity(a.double(), b.double())
        assert sts(a, b, s)["spearman"] == pytest.approx(scipy.stats.spearmanr(cosines, s).statistic)

    def test_the_interval_is_scipys(self):
        a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
        theirs = scipy.stats.pearsonr(a.double(), b.double())
        interval = theirs.confidence_interval(0.95)
        assert correlation_interval(float(theirs.statistic), 50) == pytest.approx((interval.low, interval.high))

    def test_wrong_input(self, unchecked):
        with pytest.raises(ValueError, match="a correlation is not defined"):
            spearman(torch.ones(4), torch.arange(4.0))
        with pytest.raises(ValueError, match="NaN or infinite"):
            spearman(torch.tensor([1.0, torch.nan]), torch.arange(2.0))
        with pytest.raises(ValueError, match="two values or more"):
            pearson(torch.ones(1), torch.ones(1))
        with pytest.raises(ValueError, match="one score a row"):
            sts(torch.eye(3), torch.eye(3), torch.ones(2))


class TestZeroShot:
    def test_top_k_is_scikit_learns(self):
        z, y = labelled(80, 6)
        prompts = torch.randn(6, 3, 6, generator=torch.Generator().manual_seed(1))
        prototypes = prompt_prototypes(prompts)
        unit = torch.nn.functional.normalize(prompts, dim=2).mean(1)
        scores = torch.nn.functional.cosine_similarity(z[:, None], unit[None], dim=2)
        found = zero_shot(z, y, prototypes, ks=(1, 5))
        for k in (1, 5):
            assert found[k] == pytest.approx(sklearn.metrics.top_k_accuracy_score(y, scores, k=k))
        recall = sklearn.metrics.recall_score(y, scores.argmax(1), average=None)
        assert found.per_class.tolist() == pytest.approx(recall.tolist())

    def test_classes_may_have_prompts_of_different_number(self):
        assert prompt_prototypes([torch.eye(3)[:1], torch.eye(3)[1:]]).shape == (2, 3)

    def test_ties_count_by_halves_and_empty_classes_have_no_accuracy(self):
        found = zero_shot(torch.ones(1, 2), torch.tensor([0]), torch.eye(2))
        assert found[1] == 0.5
        assert found.predicted.tolist() == [0]
        assert 5 not in found.accuracy
        assert math.isnan(float(found.per_class[1]))

    def test_wrong_input(self, unchecked):
        with pytest.raises(ValueError, match="a label is 2, but there are 2 prototypes"):
            zero_shot(torch.eye(2), torch.tensor([0, 2]), torch.eye(2))


class TestIntervals:
    @pytest.mark.parametrize(("hits", "of"), [(0, 10), (10, 10), (3, 7), (700, 1000)])
    def test_wilson_is_scipys(self, hits, of):
        theirs = scipy.stats.binomtest(hits, of).proportion_ci(method="wilson")
        assert share_interval(hits, of) == pytest.approx((theirs.low, theirs.high), abs=1e-9)

    def test_the_bootstrap_is_about_normal(self):
        values = torch.rand(400, generator=torch.Generator().manual_seed(0))
        low, high = bootstrap_interval(values)
        half = 1.96 * float(values.std()) / 20
        assert low == pytest.approx(float(values.mean()) - half, abs=0.006)
        assert high == pytest.approx(float(values.mean()) + half, abs=0.006)
        assert bootstrap_interval(values) == (low, high)
        assert bootstrap_interval(values.repeat(100))[0] > low
