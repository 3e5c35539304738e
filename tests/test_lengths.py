"""Rows of any scale: what depends on directions alone is the same for rows times 10²⁰ and times 10⁻³⁰."""

from __future__ import annotations

import pytest
import torch

import nearfar as nf
from nearfar.diagnostics.collapse import collapse
from nearfar.diagnostics.geometry import geometry, similarity_histogram, spectrum, uniformity
from nearfar.encoders.embedder import Embedder
from nearfar.encoders.heads import cosine_logits
from nearfar.encoders.prototypes import class_sums
from nearfar.encoders.towers import build_tower
from nearfar.evaluation.clustering import kmeans
from nearfar.evaluation.knn import nearest
from nearfar.evaluation.pair_scores import listed_scores, pair_scores
from nearfar.evaluation.similarity import sts
from nearfar.evaluation.verification import calibrate, roc
from nearfar.evaluation.zeroshot import prompt_prototypes
from nearfar.lengths import unit_rows

SCALES = (1e20, 1e37, 1e-20, 1e-30, 1e-37)
Y = torch.arange(60) % 4
Z = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))[Y] + 0.5 * torch.randn(
    60, 8, generator=torch.Generator().manual_seed(1)
)
W = Z + 0.3 * torch.randn(60, 8, generator=torch.Generator().manual_seed(2))
EACH = 10.0 ** torch.linspace(-37, 37, 60)[:, None]
"""A scale for each row."""


def drawn(z, metric):
    scores = pair_scores(z, Y, metric=metric, limit=300)
    return roc(scores.genuine, scores.impostor).auc


MEASURES = {
    "unit rows": lambda z, w: unit_rows(z),
    "nearest": lambda z, w: torch.cat([nearest(z, w, k=4).scores, nearest(z, w, k=4).indices]),
    "pairs of labels": lambda z, w: pair_scores(z, Y).genuine,
    "pairs that are drawn": lambda z, w: drawn(z, "cosine"),
    "pairs of a list": lambda z, w: listed_scores(z, w, Y < 4).genuine,
    "threshold": lambda z, w: calibrate(z, Y).threshold,
    "sts": lambda z, w: sts(z, w, torch.arange(60.0))["spearman"],
    "prompts": lambda z, w: prompt_prototypes([z[c == Y] for c in range(4)]),
    "clusters": lambda z, w: kmeans(z, 4),
    "geometry": lambda z, w: torch.tensor(list(geometry(z, partners=w).values())),
    "classes": lambda z, w: geometry(z, Y)["alignment"],
    "spectrum": lambda z, w: spectrum(z),
    "histogram": lambda z, w: similarity_histogram(z, Y).positives,
    "logits": lambda z, w: cosine_logits(z, w),
    "prototypes": lambda z, w: class_sums(z, Y, 4),
    "evaluate": lambda z, w: torch.tensor([m.value for m in nf.evaluate(z, Y, pairs=w).measures]),
}


@pytest.mark.parametrize("name", MEASURES)
def test_directions_do_not_change_with_the_scale(name):
    measure = MEASURES[name]
    wanted = torch.as_tensor(measure(Z, W)).double()
    for scale in SCALES:
        found = torch.as_tensor(measure(Z * scale, W * scale)).double()
        torch.testing.assert_close(
            found, wanted, atol=2e-5, rtol=1e-4, msg=lambda text, s=scale: f"times {s:g}: {text}"
        )
    if name != "prompts" and name != "clusters":
        found = torch.as_tensor(measure(Z * EACH, W * EACH.flip(0))).double()
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4, msg=lambda text: f"each row its own: {text}")


@pytest.mark.parametrize("metric", ["euclidean", "dot"])
@pytest.mark.parametrize("scale", SCALES)
def test_distances_and_products_keep_their_order(metric, scale):
    assert torch.equal(nearest(Z * scale, k=4, metric=metric).indices, nearest(Z, k=4, metric=metric).indices)
    assert drawn(Z * scale, metric) == pytest.approx(drawn(Z, metric), abs=1e-4)
    if metric == "euclidean":
        torch.testing.assert_close(
            nearest(Z * scale, k=4, metric=metric).scores.double() / scale,
            nearest(Z, k=4, metric=metric).scores.double(),
            rtol=1e-5,
            atol=0,
        )


def test_float64_beyond_the_range_of_float32():
    for scale in (1e150, 1e300, 1e-300):
        z = Z.double() * scale
        assert torch.equal(nearest(z, k=4).indices, nearest(Z.double(), k=4).indices)
        torch.testing.assert_close(pair_scores(z, Y).genuine, pair_scores(Z.double(), Y).genuine, atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match="products are infinite in float64"):
        nearest(Z.double() * 1e300, k=4, metric="dot")


def test_zero_rows_stay_and_have_no_gradient():
    z = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3e30, 4e30], [3e-40, 4e-40]], requires_grad=True)
    found = unit_rows(z)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8]]), atol=1e-4, rtol=0)
    found[:, 0].sum().backward()
    assert z.grad is not None
    assert z.grad[0].tolist() == [0.0, 0.0]
    torch.testing.assert_close(z.grad[1], torch.tensor([0.64, -0.48]) / 5)
    torch.testing.assert_close(z.grad[2] * 1e30, torch.tensor([0.64, -0.48]) / 5)


def test_ordinary_rows_are_divided_by_their_norm_and_no_bit_is_other():
    assert torch.equal(unit_rows(Z), torch.nn.functional.normalize(Z, dim=1))


class Loud(torch.nn.Module):
    """A network whose features are too large for their squares."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


@pytest.mark.parametrize("scale", [1e20, 1e-30])
def test_an_embedder_gives_rows_of_length_one(scale, monkeypatch):
    tower = build_tower("vector", {"name": "mlp", "shape": [8], "outputs": 8})
    tower.network = Loud(scale)
    embedder = Embedder([tower])
    torch.testing.assert_close(embedder.embed(Z), torch.nn.functional.normalize(Z, dim=1), atol=1e-6, rtol=0)


def test_distances_that_are_no_directions():
    """exp(−2·4·10⁴⁰), of which only the logarithm can be told."""
    assert uniformity(torch.tensor([[1e20, 0.0], [-1e20, 0.0]]), normalize=False) == pytest.approx(-8e40)


def test_features_that_never_vary_are_told_from_small_ones():
    z = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    small, still = z * torch.tensor([1.0, 1.0, 1.0, 1e-30]), z.clone()
    still[:, 3] = 0.1
    assert collapse(small) == ()
    assert [finding.kind for finding in collapse(still)] == ["dead features"]
