"""Geometry: against the papers' code, and in tiles as at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nearfar as nf
from nearfar.diagnostics import geometry as g
from nearfar.diagnostics.collapse import collapse


def rows(n: int, d: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


class TestUniformity:
    def test_it_is_the_papers_code(self):
        """Wang & Isola's four lines."""
        x = torch.nn.functional.normalize(rows(300), dim=1)
        wanted = torch.pdist(x, p=2).pow(2).mul(-2).exp().mean().log()
        assert g.uniformity(x) == pytest.approx(float(wanted), abs=1e-6)
        assert g.uniformity(5 * x) == pytest.approx(float(wanted), abs=1e-6)
        assert g.uniformity(x, t=4.0) == pytest.approx(
            float(torch.pdist(x).pow(2).mul(-4).exp().mean().log()), abs=1e-6
        )

    def test_it_is_the_losses(self):
        z1, z2 = rows(50), rows(50, seed=1)
        whole = nf.AlignUniformLoss(normalize=True)(z1, z2)
        assert g.alignment(z1, z2) + (g.uniformity(z1) + g.uniformity(z2)) / 2 == pytest.approx(float(whole), abs=1e-5)

    @pytest.mark.parametrize("n", [2, 16, 17, 33])
    def test_tiles_change_nothing(self, monkeypatch, n):
        z = rows(n)
        whole = g.uniformity(z)
        monkeypatch.setattr(g, "_TILE", 16)
        assert g.uniformity(z) == pytest.approx(whole, abs=1e-6)

    def test_its_ends(self):
        assert g.uniformity(torch.ones(5, 3)) == 0.0
        assert g.uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8.0)

    def test_far_rows_do_not_vanish(self):
        """e^(−2·10⁶) is 0 in any float; its logarithm is not."""
        z = torch.tensor([[0.0], [1000.0], [3000.0]])
        assert g.uniformity(z, normalize=False) == pytest.approx(-2e6 - math.log(3), rel=1e-6)

    def test_float32_is_enough(self):
        z = rows(2000, 32)
        assert g.uniformity(z) == pytest.approx(g.uniformity(z.double()), abs=1e-6)


class TestAlignment:
    def test_it_is_the_papers_code(self):
        x, y = (torch.nn.functional.normalize(rows(100, seed=s), dim=1) for s in (0, 1))
        assert g.alignment(x, y) == pytest.approx(float((x - y).norm(dim=1).pow(2).mean()), abs=1e-6)
        assert g.alignment(x, y, alpha=1.0) == pytest.approx(float((x - y).norm(dim=1).mean()), abs=1e-6)
        assert g.alignment(x, 3 * x) == pytest.approx(0.0, abs=1e-12)

    def test_of_classes_is_the_mean_over_their_pairs(self):
        z, y = rows(60), torch.arange(60) % 7
        y[5] = -1
        unit = torch.nn.functional.normalize(z.double(), dim=1)
        i, j = torch.triu_indices(60, 60, 1)
        same = (y[i] == y[j]) & (y[i] >= 0)
        assert g.class_alignment(z, y) == pytest.approx(float((unit[i] - unit[j]).square().sum(1)[same].mean()))
        assert g.class_alignment(z, torch.arange(60)) is None


class TestSpectrum:
    @pytest.mark.parametrize(("n", "d"), [(50, 8), (8, 50), (20, 20)])
    def test_it_is_numpys(self, n, d):
        z = rows(n, d)
        unit = torch.nn.functional.normalize(z.double(), dim=1).numpy()
        wanted = np.sort(np.linalg.eigvalsh(np.cov(unit.T)))[::-1][: min(n, d)]
        np.testing.assert_allclose(g.spectrum(z), wanted, atol=1e-9)

    def test_effective_rank_by_singular_values(self):
        """Roy & Vetterli's definition, by NumPy."""
        z = rows(100, 12) * torch.linspace(0.1, 2, 12)
        centred = (z.double() - z.double().mean(0)).numpy()
        sigma = np.linalg.svd(centred, compute_uv=False)
        p = sigma / sigma.sum()
        assert g.effective_rank(z, normalize=False) == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-6)

    def test_its_ends(self):
        assert g.effective_rank(torch.ones(10, 4)) == 0.0
        line = torch.linspace(-1, 1, 20)[:, None] * torch.ones(1, 6)
        assert g.effective_rank(line, normalize=False) == pytest.approx(1.0)
        assert g.effective_rank(torch.eye(16)) == pytest.approx(15.0)
        cube = torch.tensor([[a, b, c] for a in (-1.0, 1.0) for b in (-1.0, 1.0) for c in (-1.0, 1.0)])
        assert g.effective_rank(cube) == pytest.approx(3.0)

    @given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
    def test_scale_and_rotation_change_nothing(self, seed, scale):
        z = rows(30, 5, seed)
        turn = torch.linalg.qr(rows(5, 5, seed + 1).double()).Q
        for name in ("effective_rank",):
            f = getattr(g, name)
            assert f(z.double() @ turn * scale, normalize=False) == pytest.approx(
                f(z.double(), normalize=False), rel=1e-6
            )


def test_spread_and_cosine_by_definition():
    z = rows(80)
    unit = torch.nn.functional.normalize(z.double(), dim=1)
    assert g.feature_std(z) == pytest.approx(float(unit.std(0, correction=0).mean()), rel=1e-6)
    cosines = unit @ unit.T
    assert g.mean_cosine(z) == pytest.approx(float((cosines.sum() - cosines.trace()) / (80 * 79)))
    assert g.feature_std(rows(4000, 64)) == pytest.approx(1 / 8, rel=0.02)


class TestHistogram:
    @pytest.mark.parametrize("tile", [16, 2048])
    def test_labels_by_numpy(self, monkeypatch, tile):
        monkeypatch.setattr(g, "_TILE", tile)
        z, y = rows(50), torch.arange(50) % 4
        y[7] = -1
        found = g.similarity_histogram(z, y, bins=20)
        unit = torch.nn.functional.normalize(z, dim=1)
        i, j = torch.triu_indices(50, 50, 1)
        seen = (y[i] >= 0) & (y[j] >= 0)
        cosines, same = (unit[i] * unit[j]).sum(1)[seen], (y[i] == y[j])[seen]
        for counts, values in ((found.positives, cosines[same]), (found.negatives, cosines[~same])):
            wanted = np.histogram(values.numpy(), bins=20, range=(-1, 1))[0]
            assert int(np.abs(counts.numpy() - wanted).sum()) <= 2  # on an edge, rounding decides
            assert int(counts.sum()) == len(values)

    def test_partners(self):
        z = rows(40)
        found = g.similarity_histogram(z, partners=z)
        assert int(found.positives.sum()) == 40
        assert int(found.positives[-1]) == 40
        assert int(found.negatives.sum()) == 40 * 39

    def test_overlap(self):
        z = rows(400)
        assert g.similarity_histogram(z, torch.arange(400) % 2, bins=20).overlap > 0.9
        assert g.similarity_histogram(torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2)).overlap == 0.0
        assert math.isnan(g.similarity_histogram(z, torch.arange(400)).overlap)


class TestCollapse:
    def test_nothing_is_wrong(self):
        assert collapse(rows(300, 64)) == ()
        assert collapse(rows(300, 64), loss=2.0, candidates=256) == ()

    @pytest.mark.parametrize("noise", [0.0, 1e-3])
    def test_complete(self, noise):
        found = collapse(torch.ones(200, 64) + noise * rows(200, 64))
        assert [finding.kind for finding in found] == ["complete"]
        assert "mean cosine is 1.000" in str(found[0])
        assert "batch normalisation" in found[0].remedy

    def test_dimensional(self):
        found = collapse(rows(300, 2) @ rows(2, 64, seed=1))
        assert [finding.kind for finding in found] == ["dimensional"]
        assert "of 64 dimensions" in found[0].message

    def test_as_many_dimensions_as_classes_is_no_collapse(self):
        """What cross-entropy and SupCon tend to."""
        y = torch.arange(300) % 5
        z = torch.eye(64)[y] + 0.01 * rows(300, 64)
        assert collapse(z, y) == ()
        assert [finding.kind for finding in collapse(rows(300, 1) @ rows(1, 64, seed=1), y)] == ["dimensional"]

    def test_dead_features(self):
        z = rows(300, 64)
        z[:, :10] = 0
        found = collapse(z)
        assert [finding.kind for finding in found] == ["dead features"]
        assert found[0].message.startswith("10 of 64")

    def test_a_loss_that_guesses(self):
        found = collapse(rows(300, 64), loss=math.log(511) + 0.01, candidates=511)
        assert [finding.kind for finding in found] == ["loss at chance"]
        assert "guessing among 511" in found[0].message

    def test_a_collapsed_batch_has_the_loss_of_chance(self):
        z = torch.ones(64, 16)
        loss = float(nf.NTXentLoss()(z, z))
        assert {f.kind for f in collapse(z, loss=loss, candidates=127)} == {"complete", "loss at chance"}

    def test_few_rows_are_not_judged_by_their_rank(self):
        assert collapse(rows(3, 64)) == ()


class TestWrongInput:
    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (lambda z: g.uniformity(z[:1]), "at least 2 rows"),
            (lambda z: g.uniformity(z / 0), "NaN or infinity"),
            (lambda z: g.uniformity(z, t=-1.0), "t is -1"),
            (lambda z: g.alignment(z, z[:2]), "row i belongs to row i"),
            (lambda z: g.effective_rank(z[0]), "floats"),
            (lambda z: g.spectrum(z[:1]), "at least 2 rows"),
            (lambda z: g.similarity_histogram(z), "pass labels, or partners"),
            (lambda z: g.similarity_histogram(z, torch.zeros(2).long()), "one for each row"),
            (lambda z: collapse(z, loss=1.0), "belong together"),
            (lambda z: collapse(z, loss=1.0, candidates=1), "among two at least"),
        ],
    )
    def test_says_what_is_wrong(self, call, says, unchecked):
        with pytest.raises(ValueError, match=says):
            call(torch.eye(4))
