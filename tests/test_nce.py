"""Noise-contrastive estimation: the loop, the sampler, and the softmax that it tends to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import nearfar as nf
from oracles import ORACLES
from problems import draw

N, D, V, K = 6, 3, 7, 4
COUNTS = torch.tensor([9.0, 1.0, 4.0, 0.5, 2.0, 6.0, 3.0], dtype=torch.float64)
TARGETS = torch.tensor([0, 3, 6, 6, 2, 1])


def drawn(n: int = N) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, table, biases and noise samples."""
    samples = torch.randint(V, (n, K), generator=torch.Generator().manual_seed(4))
    return draw(n, D, seed=0), draw(V, D, seed=1), draw(V, seed=2), samples


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("log_z", [0.0, 1.5])
@pytest.mark.parametrize("n", [1, 2, N])
def test_value_and_gradient_are_the_loops(n, log_z, shared):
    queries, table, bias, samples = drawn(n)
    samples = samples[0] if shared else samples
    leaves = [leaf(queries), leaf(table), leaf(bias), leaf(torch.tensor(log_z, dtype=torch.float64))]
    own = [leaf(x) for x in leaves]
    wanted = ORACLES["NCELoss"](leaves[0], TARGETS[:n], leaves[1], samples, COUNTS, bias=leaves[2], log_z=leaves[3])
    value = nf.functional.nce_loss(
        own[0], TARGETS[:n], own[1], noise=nf.Noise(COUNTS), k=K, bias=own[2], log_z=own[3], samples=samples
    )
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    for a, b in zip(torch.autograd.grad(value, own), torch.autograd.grad(wanted, leaves)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_without_bias_and_with_weights():
    queries, table, _, samples = drawn()
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0, 1.0], dtype=torch.float64)
    wanted = ORACLES["NCELoss"](queries, TARGETS, table, samples, COUNTS, weights=weights)
    value = nf.functional.nce_loss(
        queries, TARGETS, table, noise=nf.Noise(COUNTS), k=K, samples=samples, weights=weights
    )
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_keeps_float32_statistics(dtype):
    queries, table, bias, samples = (x.to(dtype) if x.is_floating_point() else x for x in drawn())
    queries, table = leaf(queries), leaf(table)
    value = nf.functional.nce_loss(
        queries, TARGETS, table, noise=nf.Noise(COUNTS.float()), k=K, bias=bias, samples=samples
    )
    assert value.dtype is torch.float32
    exact = leaf(queries.double()), leaf(table.double())
    wanted = ORACLES["NCELoss"](exact[0], TARGETS, exact[1], samples, COUNTS, bias=bias.double())
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(value, (queries, table)), torch.autograd.grad(wanted, exact)):
        unit = torch.finfo(dtype).eps * b.abs().max().item()
        assert (a.double() - b).abs().max().item() <= max(2 * unit, 1e-5)


def test_gradient_is_the_finite_difference():
    queries, table, bias, samples = drawn()
    leaves = leaf(queries), leaf(table), leaf(bias)

    def value(q: Tensor, t: Tensor, b: Tensor) -> Tensor:
        return nf.functional.nce_loss(q, TARGETS, t, noise=nf.Noise(COUNTS), k=K, bias=b, samples=samples)

    assert gradcheck(value, leaves)


def expected_gradient(k: int) -> tuple[Tensor, Tensor]:
    """Of one query, for the table: NCE's over all draws of noise, exactly; and the softmax's.

    The noise terms are k independent ones, so that the expectation is `Σ_w noise_w` times the gradient with k copies of w.
    """
    query, table, target = draw(1, D, seed=0), leaf(draw(V, D, seed=1)), torch.tensor([2])
    log_z = (query @ table.detach().T).logsumexp(1).squeeze()  # the scores are normalised log-probabilities
    noise = nf.Noise(COUNTS)
    expectation = torch.zeros(V, D, dtype=torch.float64)
    for word, q in enumerate((COUNTS / COUNTS.sum()).tolist()):
        samples = torch.full((k,), word)
        value = nf.functional.nce_loss(query, target, table, noise=noise, k=k, log_z=log_z, samples=samples)
        expectation += q * torch.autograd.grad(value, table)[0]
    softmax = torch.nn.functional.cross_entropy(query @ table.T, target)
    return expectation, torch.autograd.grad(softmax, table)[0]


@pytest.mark.parametrize("k", [1, 4, 64])
def test_expected_gradient_is_the_softmaxs_with_each_words_term_shrunk(k):
    """`Σ_w f_w·(p_w − [w = target])·q` with `f_w = k·noise_w / (p_w + k·noise_w)`; the softmax's has f = 1."""
    query, table = draw(1, D, seed=0), draw(V, D, seed=1)
    p = (query @ table.T).softmax(1).squeeze()
    shrunk = k * COUNTS / COUNTS.sum()
    shrunk = shrunk / (p + shrunk)
    residual = p - torch.nn.functional.one_hot(torch.tensor(2), V)
    nce, softmax = expected_gradient(k)
    torch.testing.assert_close(nce, (shrunk * residual)[:, None] * query, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(softmax, residual[:, None] * query, rtol=1e-9, atol=1e-12)


def test_expected_gradient_tends_to_the_softmaxs_at_one_over_k():
    """In the end four times the samples leave a quarter of the error."""
    errors = {}
    for k in (4, 16, 64, 256, 1024, 4096):
        nce, softmax = expected_gradient(k)
        errors[k] = (nce - softmax).norm().item() / softmax.norm().item()
    assert errors[4] > errors[16] > errors[64]
    assert errors[1024] / errors[4096] == pytest.approx(4.0, rel=0.05)
    assert errors[4096] < 0.01


def test_drawn_noise_averages_to_the_expectation():
    """The module's own draws: many copies of one query, the mean gradient within five standard errors."""
    copies, k = 4000, 4
    wanted, _ = expected_gradient(k)
    query, table, target = draw(1, D, seed=0), leaf(draw(V, D, seed=1)), torch.tensor([2])
    log_z = (query @ table.detach().T).logsumexp(1).item()
    loss = nf.NCELoss(COUNTS, k=k, normalizer=log_z)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(20):
        value = loss(query.expand(copies, D), target.expand(copies), table, generator=generator)
        batches.append(torch.autograd.grad(value, table)[0])
    means = torch.stack(batches)
    deviation = (means.mean(0) - wanted).abs() / (means.std(0) / math.sqrt(len(means)) + 1e-12)
    assert deviation.max() < 5


class TestNormalizer:
    def test_a_number_is_fixed(self):
        queries, table, bias, samples = drawn()
        wanted = ORACLES["NCELoss"](queries, TARGETS, table, samples, COUNTS, bias=bias, log_z=1.5)
        loss = nf.NCELoss(COUNTS, k=K, normalizer=1.5)
        assert not list(loss.parameters())
        torch.testing.assert_close(loss(queries, TARGETS, table, bias, samples=samples), wanted, rtol=1e-9, atol=0)

    def test_learned_is_one_parameter_with_its_gradient(self):
        queries, table, _, samples = drawn()
        loss = nf.NCELoss(COUNTS, k=K, normalizer="learned").double()
        (log_z,) = loss.parameters()
        assert log_z.item() == 0.0
        value = loss(queries, TARGETS, table, samples=samples)
        own = leaf(log_z)
        wanted = ORACLES["NCELoss"](queries, TARGETS, table, samples, COUNTS, log_z=own)
        torch.testing.assert_close(
            torch.autograd.grad(value, log_z)[0], torch.autograd.grad(wanted, own)[0], rtol=1e-8, atol=0
        )

    def test_learning_it_finds_the_normaliser(self):
        """With scores off by a constant c, log Z goes to c: the model's total mass."""
        table = torch.log(COUNTS / COUNTS.sum())[:, None] + 2.0  # one feature: scores log p + 2
        loss = nf.NCELoss(torch.ones(V), k=16, normalizer="learned").double()
        optimiser = torch.optim.Adam(loss.parameters(), lr=0.05)
        generator = torch.Generator().manual_seed(0)
        for _ in range(200):
            targets = torch.multinomial(COUNTS, 512, replacement=True, generator=generator)
            optimiser.zero_grad()
            loss(torch.ones(512, 1, dtype=torch.float64), targets, table, generator=generator).backward()
            optimiser.step()
        assert next(loss.parameters()).item() == pytest.approx(2.0, abs=0.1)


class TestNoise:
    def test_frequencies_are_the_probabilities(self):
        """Pearson's χ² over words of very different frequency, none drawn of weight 0."""
        weights = torch.tensor([1000.0, 1.0, 0.0, 250.0, 40.0, 9.0, 700.0])
        draws = nf.Noise(weights).sample((400_000,), torch.Generator().manual_seed(0))
        seen = torch.bincount(draws, minlength=7).double()
        wanted = (weights / weights.sum()).double() * len(draws)
        assert seen[2] == 0
        chi = ((seen - wanted).square() / wanted)[weights > 0].sum().item()
        assert chi < 20.5  # the 99.9% point of χ² with 5 degrees of freedom

    def test_draws_are_independent_of_their_neighbours(self):
        draws = nf.Noise(COUNTS).sample((200_000, 2), torch.Generator().manual_seed(1))
        p = COUNTS / COUNTS.sum()
        joint = torch.bincount(draws[:, 0] * V + draws[:, 1], minlength=V * V).double() / len(draws)
        assert (joint - (p[:, None] * p).flatten()).abs().max() < 0.004

    def test_a_generator_makes_them_reproducible_and_leaves_the_global_one_alone(self):
        noise, state = nf.Noise(COUNTS), torch.random.get_rng_state()
        first, again = (noise.sample((50, 2), torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.equal(first, noise.sample((50, 2), torch.Generator().manual_seed(4)))
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_the_loss_is_reproducible_by_its_generator(self):
        queries, table, bias, _ = drawn()
        loss = nf.NCELoss(COUNTS, k=K)
        first, again, other = (
            loss(queries, TARGETS, table, bias, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
        )
        assert first == again != other

    @pytest.mark.parametrize(("power", "wanted"), [(1.0, [1, 16, 81]), (0.75, [1, 8, 27]), (0.0, [1, 1, 1])])
    def test_unigram_noise_is_a_power_of_the_counts(self, power, wanted):
        noise = nf.unigram_noise(torch.tensor([1, 16, 81]), power=power)
        total = sum(wanted)
        assert noise.log_probability.exp().tolist() == pytest.approx([w / total for w in wanted], rel=1e-6)

    def test_one_word_is_always_drawn(self):
        assert (nf.Noise(torch.tensor([5.0])).sample((10,)) == 0).all()


def test_targets_that_the_noise_never_draws():
    """`log 0` on the target's side: certain data, no cost and no gradient, never NaN."""
    queries, table, _, _ = drawn()
    queries = leaf(queries)
    noise = nf.Noise(torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]))
    value = nf.functional.nce_loss(
        queries, torch.zeros(N, dtype=torch.long), table, noise=noise, k=2, samples=torch.ones(N, 2, dtype=torch.long)
    )
    assert torch.isfinite(value)
    assert torch.isfinite(torch.autograd.grad(value, queries)[0]).all()
