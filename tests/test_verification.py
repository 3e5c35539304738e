"""Verification: curves against scikit-learn, the crossing by its usual recipe, thresholds on disjoint identities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve

from nearfar.evaluation.verification import calibrate, error_rates, listed_scores, pair_scores, roc


def identities(people: int, each: int, noise: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(people).repeat_interleave(each)
    z = torch.randn(people, 8, generator=generator)[y] + noise * torch.randn(people * each, 8, generator=generator)
    return z, y


def scores(n: int = 500, m: int = 3000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator) + 1.5, torch.randn(m, generator=generator)


def test_a_case_by_hand():
    """By falling threshold: genuine 9, impostor 8, genuine 7, impostor 6, genuine 5, impostor 4."""
    curve = roc(torch.tensor([9.0, 7.0, 5.0]), torch.tensor([8.0, 6.0, 4.0]))
    assert curve.far.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])
    assert curve.tar.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert curve.auc == pytest.approx(6 / 9)  # pairs in the right order, of nine
    assert curve.eer == pytest.approx(1 / 3)
    assert curve.tar_at(0.0) == pytest.approx(1 / 3)
    assert curve.tar_at(0.34) == pytest.approx(2 / 3)
    assert curve.threshold_at(0.34) == 7.0


def test_the_curve_is_scikit_learns():
    genuine, impostor = scores()
    genuine, impostor = (genuine * 10).round(), (impostor * 10).round()  # ties
    curve = roc(genuine, impostor)
    truth = torch.cat([torch.ones(len(genuine)), torch.zeros(len(impostor))])
    every = torch.cat([genuine, impostor])
    far, tar, thresholds = roc_curve(truth, every, drop_intermediate=False)
    assert curve.far.tolist() == pytest.approx(far.tolist())
    assert curve.tar.tolist() == pytest.approx(tar.tolist())
    assert curve.thresholds[1:].tolist() == thresholds[1:].tolist()
    assert curve.auc == pytest.approx(roc_auc_score(truth, every))
    assert curve.eer == pytest.approx(brentq(lambda x: 1 - x - interp1d(far, tar)(x), 0, 1), abs=1e-9)


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 30))
def test_any_scores(seed, n, m):
    generator = torch.Generator().manual_seed(seed)
    genuine = torch.randint(0, 6, (n,), generator=generator).float()
    impostor = torch.randint(0, 6, (m,), generator=generator).float()
    curve = roc(genuine, impostor)
    both = torch.cat([genuine, impostor])
    assert curve.auc == pytest.approx(roc_auc_score([1] * n + [0] * m, both))
    assert 0 <= curve.eer <= 1
    far, tar, _ = roc_curve([1] * n + [0] * m, both, drop_intermediate=False)
    gap = interp1d(far, tar)  # where the curve is vertical, interp1d takes an end: compare through the gap instead
    assert float(gap(min(1.0, curve.eer + 1e-6))) + curve.eer >= 1 - 2e-3 - 1e-6 or curve.eer == 1
    for rate in (0.0, 0.1, 0.5, 1.0):
        threshold = curve.threshold_at(rate)
        assert (impostor >= threshold).double().mean() <= rate
        assert curve.tar_at(rate) == pytest.approx(float((genuine >= threshold).double().mean()))
        lower = both[both < threshold]
        assert not len(lower) or (impostor >= lower.max()).double().mean() > rate  # it is the lowest such threshold


def test_perfect_and_hopeless():
    high, low = torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.2])
    assert (roc(high, low).eer, roc(high, low).auc) == (0.0, 1.0)
    assert (roc(low, high).eer, roc(low, high).auc) == (1.0, 0.0)
    same = roc(torch.ones(3), torch.ones(5))
    assert (same.eer, same.auc, same.tar_at(0.5)) == (0.5, 0.5, 0.0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_pairs_are_all_pairs(metric):
    z, y = identities(12, 4)
    y[-1] = -1
    found = pair_scores(z, y, metric=metric)
    z, y = z[y >= 0].double(), y[y >= 0]
    i, j = torch.triu_indices(len(z), len(z), 1)
    if metric == "cosine":
        z = torch.nn.functional.normalize(z, dim=1)
    every = -(z[i] - z[j]).norm(dim=1) if metric == "euclidean" else (z[i] * z[j]).sum(1)
    same = y[i] == y[j]
    torch.testing.assert_close(found.genuine.sort().values.double(), every[same].sort().values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.impostor.sort().values.double(), every[~same].sort().values, rtol=1e-5, atol=1e-5)
    assert not found.drawn


def test_more_pairs_than_the_limit_are_drawn():
    z, y = identities(40, 10)
    y[:30] = 0  # a class with far more pairs
    every = pair_scores(z, y)
    found = pair_scores(z, y, limit=5000)
    assert found.drawn
    assert (found.genuine_pairs, found.impostor_pairs) == (len(every.genuine), len(every.impostor))
    assert len(found.genuine) == len(every.genuine)  # few enough
    torch.testing.assert_close(found.genuine.sort().values, every.genuine.sort().values, rtol=1e-5, atol=1e-6)
    assert len(found.impostor) == 5000
    few = pair_scores(z, y, limit=1500)
    assert (len(few.genuine), len(few.impostor)) == (1500, 1500)
    for drawn, whole in ((few.genuine, every.genuine), (found.impostor, every.impostor)):
        assert abs(float(drawn.mean() - whole.mean())) < 4 * float(whole.std()) / len(drawn) ** 0.5
        assert bool(torch.isin((drawn * 1e4).round(), torch.cat([(whole * 1e4).round() + d for d in (-1, 0, 1)])).all())
    assert torch.equal(pair_scores(z, y, limit=5000).impostor, found.impostor)
    assert not torch.equal(pair_scores(z, y, limit=5000, seed=1).impostor, found.impostor)


def test_tiles_change_nothing(monkeypatch):
    z, y = identities(30, 5)
    whole = pair_scores(z, y)
    monkeypatch.setattr("nearfar.evaluation.pair_scores._TILE", 17)
    tiled = pair_scores(z, y)
    torch.testing.assert_close(tiled.genuine.sort().values, whole.genuine.sort().values)
    torch.testing.assert_close(tiled.impostor.sort().values, whole.impostor.sort().values)


def test_a_protocols_pairs():
    found = listed_scores(torch.eye(3), torch.eye(3).roll(1, 0), torch.tensor([True, False, False]), metric="euclidean")
    assert found.genuine.tolist() == pytest.approx([-(2**0.5)])
    assert len(found.impostor) == 2


class TestCalibration:
    def test_the_threshold_comes_from_other_identities(self):
        z, y = identities(60, 4)
        found = calibrate(z, y, far=0.05, seed=3)
        assert found.calibrated_on + found.tested_on == 60
        assert found.far == pytest.approx(0.05, abs=0.03)
        # what is judged must not matter to the threshold: shuffle the identities of the half that is judged
        changed = False
        for label in range(60):
            other = z.clone()
            other[y == label] = 0.01
            again = calibrate(other, y, far=0.05, seed=3)
            changed |= again.threshold != found.threshold
            if again.threshold == found.threshold:
                assert (again.far, again.frr) != (found.far, found.frr)  # then it was one of those judged
        assert changed

    def test_equal_errors(self):
        z, y = identities(100, 4)
        found = calibrate(z, y)
        assert found.far == pytest.approx(found.frr, abs=0.08)
        assert found.wanted_far is None

    def test_identities_with_one_row_are_impostors_only(self):
        z, y = identities(8, 2)
        z, y = torch.cat([z, torch.randn(5, 8)]), torch.cat([y, torch.arange(50, 55)])
        found = calibrate(z, y)
        assert found.calibrated_on + found.tested_on == 13

    def test_rates_by_hand(self):
        z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        assert error_rates(pair_scores(z, torch.tensor([0, 0, 1])), 0.5) == (0.0, 0.0)
        assert error_rates(pair_scores(z, torch.tensor([0, 1, 0])), 0.5) == (0.5, 1.0)


def test_points_for_a_picture():
    curve = roc(*scores())
    points = curve.points(50)
    assert len(points["far"]) == len(points["frr"]) == len(points["threshold"]) <= 53
    assert points["far"] == sorted(points["far"])
    assert points["far"][-1] == 1.0
    assert all(torch.isfinite(torch.tensor(points["threshold"])))


class TestWrongInput:
    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (lambda z: pair_scores(z, torch.arange(4)), "0 genuine and 6 impostor pairs"),
            (lambda z: pair_scores(z, torch.zeros(4).long()), "6 genuine and 0 impostor pairs"),
            (lambda z: pair_scores(z / 0, torch.zeros(4).long()), "NaN or infinity"),
            (lambda z: pair_scores(z[:1], torch.zeros(1).long()), "0 genuine and 0 impostor"),
            (lambda z: calibrate(z, torch.tensor([0, 0, 1, 1])), "2 identities have two rows or more"),
            (lambda z: listed_scores(z, z, torch.ones(4)), "one truth value a row"),
            (lambda z: roc(torch.tensor([]), torch.ones(2)), "one finite score at least"),
            (lambda z: roc(torch.tensor([torch.nan]), torch.ones(2)), "genuine scores"),
            (lambda z: roc(torch.ones(2), torch.ones(2)).tar_at(2.0), "a rate between 0 and 1"),
        ],
    )
    def test_says_what_is_wrong(self, call, says, unchecked):
        with pytest.raises(ValueError, match=says):
            call(torch.eye(4))
