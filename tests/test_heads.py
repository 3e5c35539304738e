"""The cosine head with its normalisation, the projection, and class prototypes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nearfar.encoders.heads import CosineHead, FeatureNorm, ProjectionHead, cosine_logits
from nearfar.encoders.prototypes import Prototypes, class_sums, mixed_logits


def rows(n: int = 12, d: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3 + 2


@pytest.mark.parametrize("width", [5, None])
def test_feature_norm_gives_mean_zero_and_variance_one(width):
    z = FeatureNorm(width)(rows())
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(5), atol=1e-4, rtol=0)


def test_running_statistics_are_the_plain_average_of_the_first_ten_batches_then_move_by_a_tenth():
    norm, batches = FeatureNorm(5), [rows(seed=i) for i in range(12)]
    for batch in batches[:10]:
        norm(batch)
    average = torch.stack([batch.mean(0) for batch in batches[:10]]).mean(0)
    torch.testing.assert_close(norm.running_mean, average)
    torch.testing.assert_close(norm.running_var, torch.stack([batch.var(0) for batch in batches[:10]]).mean(0))
    norm(batches[10])
    torch.testing.assert_close(norm.running_mean, 0.9 * average + 0.1 * batches[10].mean(0))


def test_feature_norm_in_evaluation_and_for_one_row_uses_the_running_statistics():
    norm = FeatureNorm(5)
    norm(rows())
    expected = (rows(1, seed=3) - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
    torch.testing.assert_close(norm(rows(1, seed=3)), expected)
    torch.testing.assert_close(norm.eval()(rows(1, seed=3)), expected)
    assert norm.steps == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_feature_norm_takes_other_dtypes(dtype):
    norm = FeatureNorm(5)
    assert norm(rows().to(dtype)).dtype == dtype
    assert norm.running_mean.dtype == torch.float32
    assert norm.eval()(rows().to(dtype)).dtype == dtype


def test_a_state_dict_brings_sizes_that_were_not_known():
    norm, prototypes = FeatureNorm(None), Prototypes()
    norm(rows())
    prototypes.update(rows(), torch.arange(12) % 3, num_classes=3)
    for old, new in ((norm, FeatureNorm(None)), (prototypes, Prototypes())):
        new.load_state_dict(old.state_dict())
        for name, value in old.state_dict().items():
            torch.testing.assert_close(new.state_dict()[name], value)


def test_cosine_head_is_the_scaled_cosine_of_normalised_features():
    head = CosineHead(5, 3)
    z = F.batch_norm(rows(), None, None, training=True)
    expected = 10 * F.cosine_similarity(z[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(rows()), expected)
    torch.testing.assert_close(head.train()(rows()[:, :, None, None]), expected)
    plain = CosineHead(5, 3, scale=2.0, normalize=None)
    torch.testing.assert_close(plain(rows()), 2 * F.cosine_similarity(rows()[:, None], plain.weight[None], dim=2))


def test_cosine_head_is_drawn_from_its_generator():
    one, two = (CosineHead(5, 3, generator=torch.Generator().manual_seed(7)).weight for _ in range(2))
    torch.testing.assert_close(one, two)


@pytest.mark.usefixtures("unchecked")
def test_cosine_head_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="normalize='layernorm' is not known: pass 'batchnorm' or None"):
        CosineHead(5, 3, normalize="layernorm")
    with pytest.raises(ValueError, match="scale is 0"):
        CosineHead(5, 3, scale=0)


def test_a_zero_row_has_zero_logits_and_no_nan_gradient():
    z = torch.zeros(1, 4, requires_grad=True)
    logits = cosine_logits(z, torch.eye(4))
    logits.sum().backward()
    assert not logits.any()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("width", [5, None])
def test_a_projection_can_be_optimised_before_its_first_call(width):
    head = ProjectionHead(width, 4)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.1)
    head(rows()).sum().backward()
    before = head[0].weight.detach().clone()
    optimiser.step()
    assert not torch.equal(before, head[0].weight)
    assert isinstance(head[1], nn.ReLU)


def test_prototypes_are_decayed_sums_of_normalised_rows():
    prototypes, labels = Prototypes(3), torch.tensor([0, 1, 0, -1])
    one, two = rows(4), rows(4, seed=1)
    prototypes.update(one, labels)
    prototypes.update(two, labels)
    for label in range(3):
        parts = [F.normalize(batch[labels == label], dim=1).sum(0) for batch in (one, two)]
        torch.testing.assert_close(prototypes.sums[label], 0.9 * parts[0] + parts[1])


def test_soft_labels_share_a_row_among_classes():
    sums = class_sums(rows(2), torch.tensor([[0.3, 0.7], [1.0, 0.0]]), 2)
    z = F.normalize(rows(2), dim=1)
    torch.testing.assert_close(sums, torch.stack([0.3 * z[0] + z[1], 0.7 * z[0]]))


def test_sums_of_soft_labels_are_not_rounded_under_autocast():
    features, labels = rows(64), torch.full((64, 2), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        sums = class_sums(features, labels, 2)
    torch.testing.assert_close(sums[0], F.normalize(features, dim=1).sum(0) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_prototypes_say_what_is_missing():
    with pytest.raises(RuntimeError, match="there are no prototypes yet"):
        Prototypes(3)(rows())
    with pytest.raises(ValueError, match="pass num_classes="):
        Prototypes().update(rows(), torch.zeros(12, dtype=torch.int64))
    with pytest.raises(ValueError, match="there is a label 3 where there are 3 classes: pass num_classes=4"):
        Prototypes(3).update(rows(), torch.arange(12) % 4)
    with pytest.raises(ValueError, match="12 features but 3 labels"):
        class_sums(rows(), torch.zeros(3, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match="soft labels have 2 columns where there are 3 classes"):
        class_sums(rows(2), torch.ones(2, 2), 3)
    with pytest.raises(ValueError, match="decay is 1"):
        Prototypes(3, decay=1.0)


def test_the_mixed_read_out_multiplies_probabilities():
    one, two = rows(4, 3), rows(4, 3, seed=1)
    torch.testing.assert_close(mixed_logits(one, two).exp(), one.softmax(1) * two.softmax(1))
