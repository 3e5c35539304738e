"""A cached step is one big batch: value, gradients, random numbers and buffers, whatever the chunk.

The reference encodes the same chunks with their whole graph, joins them and calls the loss once; where nothing is random, it
encodes all rows at once.
"""

from __future__ import annotations

import re
import warnings
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nearfar as nf
from large_batches import by_chunks, encoder, gradients
from memory_probe import allocations

N = 10
LABELS = torch.tensor([0, 1, 0, 1, 4, 2, 0, 2, 1, 0])
CHUNKS = [1, 3, 7, N, 25]


def assert_same(found: list[Tensor], wanted: list[Tensor], bound: float = 1e-12) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=bound * max(1.0, float(b.abs().max())))


def rows(sides: int = 1, width: int = 6, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return list(torch.randn(sides, N, width, generator=torch.Generator().manual_seed(3), dtype=dtype))


def dropping(seed: int = 0) -> nn.Sequential:
    """An encoder with dropout."""
    first, act, last = encoder(seed)
    return nn.Sequential(first, act, nn.Dropout(0.4), last)


CRITERIA: dict[str, tuple[Any, int, dict[str, Any]]] = {
    # the loss, sides, and what else it is told
    "ntxent": (lambda: nf.NTXentLoss(learnable=True), 2, {}),
    "supcon": (nf.SupConLoss, 1, {"labels": LABELS}),
    "clip": (lambda: nf.CLIPLoss(learnable=True), 2, {}),
    "siglip": (lambda: nf.SigLIPLoss(learnable=True), 2, {}),
    "triplets": (lambda: nf.TripletLoss(margin=1.0), 1, {"labels": LABELS}),
    "proxies": (lambda: nf.ProxyAnchorLoss(num_classes=5, dim=4), 1, {"labels": LABELS}),
    "vicreg": (nf.VICRegLoss, 2, {}),
}


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", CRITERIA)
def test_equals_one_batch(name, chunk):
    """With dropout: gradients of the encoder and of all that the loss learns."""
    build, count, keywords = CRITERIA[name]
    torch.manual_seed(0)
    loss, model, sides = build().double(), dropping(), rows(count)
    torch.manual_seed(1)
    value = nf.cached_step(loss, model, sides[0] if count == 1 else tuple(sides), chunk=chunk, **keywords)
    found, drawn = [value, *gradients(model, loss)], torch.rand(3)
    assert not value.requires_grad
    torch.manual_seed(1)
    wanted = loss(*(by_chunks(model, side, chunk) for side in sides), **keywords)
    wanted.backward()
    assert float(model[0].weight.grad.abs().max()) > 1e-4
    assert_same(found, [wanted.detach(), *gradients(model, loss)])
    torch.testing.assert_close(drawn, torch.rand(3), rtol=0, atol=0)  # as many random numbers were used


@pytest.mark.parametrize("chunk", CHUNKS)
def test_two_encoders_of_unequal_sides(chunk):
    """One side twice as long, and a loss that draws random numbers of its own."""
    first, second, loss = dropping(0), dropping(1), nf.InfoNCELoss(learnable=True).double()
    one, two = rows(2)
    two, pairs = torch.cat([two, two.flip(0)]), nf.Pairs.by_label(LABELS, LABELS.repeat(2))

    def noisy(x: Tensor, y: Tensor, **keywords: Any) -> Tensor:
        return loss(x + 0.01 * torch.randn_like(x), y, **keywords)

    torch.manual_seed(1)
    value = nf.cached_step(noisy, (first, second), (one, two), chunk=chunk, pairs=pairs)
    found = [value, *gradients(first, second, loss)]
    torch.manual_seed(1)
    wanted = noisy(by_chunks(first, one, chunk), by_chunks(second, two, chunk), pairs=pairs)
    wanted.backward()
    assert_same(found, [wanted.detach(), *gradients(first, second, loss)])


class Text(nn.Module):
    """Takes what a tokeniser gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.words = nn.Embedding(20, 4).double()
        self.logit_scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, power: float = 1.0) -> Tensor:
        z = self.words(input_ids) * attention_mask[..., None]
        return z.sum(1).pow(power) / attention_mask.sum(1, keepdim=True)


def tokens(seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(20, (N, 5), generator=random),
        "attention_mask": (torch.arange(5) <= torch.randint(5, (N, 1), generator=random)).long(),
    }


@pytest.mark.parametrize("chunk", [3, 4, 25])
def test_dicts_are_keywords_and_tuples_are_arguments(chunk):
    model, loss = Text(), nf.CLIPLoss()
    first, second = tokens(0), tokens(1)
    wanted = loss(model(**first), model(*second.values(), 2.0))
    wanted.backward()
    wanted = [wanted.detach(), *gradients(model)]
    value = nf.cached_step(loss, model, (first, (*second.values(), 2.0)), chunk=chunk)
    assert_same([value, *gradients(model)], wanted)
    single = nf.cached_step(nf.SupConLoss(), model, first, labels=LABELS, chunk=chunk)
    assert_same([single], [nf.SupConLoss()(model(**first), labels=LABELS).detach()])


Encoded = namedtuple("Encoded", "image text logit_scale nothing")


@pytest.mark.parametrize("shape", [tuple, dict, Encoded])
@pytest.mark.parametrize("chunk", [3, 25])
def test_a_model_may_return_several_tensors_and_a_number(shape, chunk):
    """As open_clip's does: both towers in one model, with their scale."""

    class Both(Text):
        def forward(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> Any:
            found = super().forward(**left), super().forward(**right), self.logit_scale.exp(), None
            return dict(zip(Encoded._fields, found)) if shape is dict else found if shape is tuple else Encoded(*found)

    def loss(seen: Any) -> Tensor:
        assert type(seen) is shape
        x, y, scale, nothing = seen.values() if shape is dict else seen
        assert nothing is None
        return nf.functional.clip_loss(x, y, logit_scale=scale)

    model = Both()
    wanted = loss(model(tokens(0), tokens(1)))
    wanted.backward()
    assert model.logit_scale.grad != 0
    wanted = [wanted.detach(), *gradients(model)]
    value = nf.cached_step(loss, model, ((tokens(0), tokens(1)),), chunk=chunk)
    assert_same([value, *gradients(model)], wanted)


def test_encode_says_how_to_run_the_model():
    """A dict as one argument, one of several outputs: sentence-transformers' way."""

    class Sentences(Text):
        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            return {**features, "sentence_embedding": super().forward(**features)}

    model, loss = Sentences(), nf.SupConLoss()
    wanted = loss(model(tokens(0))["sentence_embedding"], labels=LABELS)
    wanted.backward()
    wanted = [wanted.detach(), *gradients(model)]
    value = nf.cached_step(
        loss, model, tokens(0), chunk=4, labels=LABELS, encode=lambda model, rows: model(rows)["sentence_embedding"]
    )
    assert_same([value, *gradients(model)], wanted)


def test_gradients_add_up_over_calls_and_reach_inputs():
    model, loss = dropping().eval(), nf.SupConLoss()
    x = rows()[0].requires_grad_()
    for k in range(2):
        nf.cached_step(lambda z, k=k: loss(z, labels=LABELS.roll(k)) / 2, model, x, chunk=4)
    found = [*gradients(model), x.grad.clone()]
    x.grad = None
    for k in range(2):
        (loss(model(x), labels=LABELS.roll(k)) / 2).backward()
    assert_same(found, [*gradients(model), x.grad])


def test_frozen_parts_and_unused_sides():
    """Whatever has no gradient gets none, not zeros: an optimiser leaves it alone."""
    frozen, learned, unused = encoder(0).requires_grad_(False), encoder(1), encoder(2)
    x, y = rows(2)
    value = nf.cached_step(lambda a, b, c: nf.CLIPLoss()(a, b), (frozen, learned, unused), (x, y, x), chunk=3)
    found = [value, *gradients(learned)]
    assert all(p.grad is None for p in [*frozen.parameters(), *unused.parameters()])
    wanted = nf.CLIPLoss()(frozen(x), learned(y))
    wanted.backward()
    assert_same(found, [wanted.detach(), *gradients(learned)])


# ---- precision ------------------------------------------------------------------------------------------------------


def test_scaled_for_half_precision():
    """`scaler=` scales the gradients, not the value; the caller's `step` takes them back."""
    model, loss = encoder(), nf.SupConLoss(learnable=True).double()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    value = nf.cached_step(loss, model, rows()[0], labels=LABELS, chunk=3, scaler=scaler)
    found = [value, *gradients(model, loss)]
    wanted = loss(model(rows()[0]), labels=LABELS)
    wanted.backward()
    assert_same(found, [wanted.detach(), *(64 * g for g in gradients(model, loss))])


@pytest.mark.parametrize("chunk", [3, 25])
@pytest.mark.parametrize("backend", [None, "dense"])
def test_under_autocast(chunk, backend):
    """The encoder in bfloat16: the very rows of the reference, whose backward passes run outside, as they should."""
    model, loss, x = dropping().float(), nf.SupConLoss(backend=backend), rows(dtype=torch.float32)[0]
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        value = nf.cached_step(loss, model, x, labels=LABELS, chunk=chunk)
    found = [value, *gradients(model)]
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # every chunk's weights are cast anew
        z = by_chunks(model, x, chunk)
        assert z.dtype == torch.bfloat16
        wanted = loss(z, labels=LABELS)
    wanted.backward()
    assert_same(found, [wanted.detach(), *gradients(model)], 1e-6)


# ---- what the model keeps -------------------------------------------------------------------------------------------


def stateful(kind: str) -> nn.Sequential:
    first, act, last = encoder()
    if kind == "batch norm":
        return nn.Sequential(first, nn.BatchNorm1d(8).double(), act, last)
    if kind == "feature norm":
        from nearfar.encoders.heads import FeatureNorm

        return nn.Sequential(first, FeatureNorm(None), act, last).double()
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(first), act, last)


@pytest.mark.parametrize("kind", ["batch norm", "feature norm", "spectral norm"])
def test_buffers_move_once_a_chunk(kind):
    """As if every chunk had been encoded once; with them the outputs of both passes are one."""
    model, twin, loss, x = stateful(kind), stateful(kind), nf.SupConLoss(), rows()[0]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            value = nf.cached_step(loss, model, x, labels=LABELS, chunk=4)
            found = [value, *gradients(model)]
            wanted = loss(by_chunks(twin, x, 4), labels=LABELS)
            wanted.backward()
            assert_same(found, [wanted.detach(), *gradients(twin)])
    assert_same(list(model.buffers()), list(twin.buffers()))
    assert len(list(model.buffers())) >= 1
    words = [str(w.message) for w in said]
    assert len(words) == (kind != "spectral norm")  # once a model
    assert all("GroupNorm" in w and "SyncBatchNorm" in w and "chunk of 4 rows" in w for w in words)


def test_batch_norm_in_eval_mode_or_in_one_chunk_is_one_batch():
    loss, x = nf.SupConLoss(), rows()[0]
    for evaluating, chunk in ((True, 4), (False, N)):
        model, twin = stateful("batch norm").train(not evaluating), stateful("batch norm").train(not evaluating)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value = nf.cached_step(loss, model, x, labels=LABELS, chunk=chunk)
        wanted = loss(twin(x), labels=LABELS)
        wanted.backward()
        assert_same([value, *gradients(model)], [wanted.detach(), *gradients(twin)])
        assert_same(list(model.buffers()), list(twin.buffers()))


class Private(nn.Module):
    """Draws from a generator that nobody else knows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.random = encoder(), torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + torch.randn(x.shape, generator=self.random, dtype=x.dtype))


def test_a_model_that_is_not_the_same_twice_is_refused():
    model = Private()
    with pytest.raises(RuntimeError, match="not the same twice under one random state"):
        nf.cached_step(nf.SupConLoss(), model, rows()[0], labels=LABELS, chunk=4)
    assert all(p.grad is None for p in model.parameters())
    nf.cached_step(nf.SupConLoss(), model, rows()[0], labels=LABELS, chunk=4, check=False)


@pytest.mark.usefixtures("unchecked")  # the checks draw from Python's generator themselves
def test_random_numbers_of_python_and_numpy_are_restored_too():
    import random

    import numpy as np

    class Elsewhere(Private):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x * random.random() + np.random.rand())  # noqa: NPY002

    nf.cached_step(nf.SupConLoss(), Elsewhere(), rows()[0], labels=LABELS, chunk=4)


# ---- joint ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [3, 25])
@pytest.mark.parametrize(
    "options", [{}, {"normalize": "batchnorm", "readout": "prototypes", "head": 3}], ids=["", "all"]
)
def test_joint_reads_its_layer_chunk_by_chunk(chunk, options):
    """Features and outputs are one batch: normalisation, prototypes and the step counter see it once."""

    def build() -> tuple[nn.Sequential, nf.Joint]:
        torch.manual_seed(0)
        model = nn.Sequential(dropping(), nn.Linear(4, 5).double())
        return model, nf.Joint(nn.CrossEntropyLoss(), nf.SupConLoss(), features=model[0], **options).double()

    (model, criterion), (twin, other) = build(), build()
    for joint, network in ((criterion, model), (other, twin)):  # a head's width is found at the first call
        network.eval(), joint.eval()
        torch.manual_seed(2)
        joint(network(rows()[0]), LABELS)
        network.train(), joint.train()
    torch.manual_seed(1)
    value = nf.cached_step(criterion, model, rows()[0], targets=LABELS, chunk=chunk)
    found = [value, *gradients(model, criterion)]
    torch.manual_seed(1)
    features = by_chunks(twin[0], rows()[0], chunk)
    wanted = other(twin[1](features), LABELS, features=features)
    wanted.backward()
    assert_same(found, [wanted.detach(), *gradients(twin, other)])
    assert_same(list(criterion.buffers()), list(other.buffers()))
    assert int(criterion.step) == 1


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_activations_are_those_of_a_chunk():
    """Thirty-two chunks of 16 rows and 16 wide layers: what is kept of them is large, the embeddings next to nothing."""
    torch.manual_seed(0)
    wide = [layer for _ in range(8) for layer in (nn.Linear(8, 1024), nn.ReLU(), nn.Linear(1024, 8), nn.Tanh())]
    model = nn.Sequential(*wide)
    x, labels, loss = torch.randn(512, 8), torch.arange(512) % 8, nf.SupConLoss(backend="tiled")

    def held(size: int, chunk: int | None) -> float:
        def step() -> None:
            model.zero_grad(set_to_none=False)
            if chunk is None:
                loss(model(x[:size]), labels=labels[:size]).backward()
            else:
                nf.cached_step(loss, model, x[:size], labels=labels[:size], chunk=chunk)

        step()
        return allocations(step, 0)["tensors_mb"]

    chunk, cached, whole = held(16, None), held(512, 16), held(512, None)
    assert whole > 6 * chunk
    assert cached < chunk + 1


# ---- refusals -------------------------------------------------------------------------------------------------------


def refused(
    kind: type[Exception], words: str, criterion: Any, model: Any, inputs: Any, chunk: int = 4, **keywords: Any
):
    with pytest.raises(kind, match=re.escape(words) if "(" in words else words):
        nf.cached_step(criterion, model, inputs, chunk=chunk, **keywords)


@pytest.mark.usefixtures("unchecked")
def test_says_what_is_wrong():
    model, loss, (x, y) = encoder(), nf.SupConLoss(), rows(2)
    refused(ValueError, "chunk is 0: wanted", loss, model, x, 0, labels=LABELS)
    refused(ValueError, "the batch is empty", loss, model, x[:0], labels=LABELS[:0])
    refused(ValueError, "3 models for 2 sides", loss, (model,) * 3, (x, y))
    refused(ValueError, "0 models for 0 sides", loss, model, ())
    refused(ValueError, r"side 2 of the inputs has tensors of .*10, 6.*9, 6.* each needs one row a sample", loss, model, (x, {"a": x, "b": y[:9]}))  # fmt: skip  # noqa: E501
    refused(TypeError, "side 1 of the inputs is a str without a tensor that has rows", loss, model, "text")
    refused(ValueError, "side 1 of the inputs hangs on a graph.*detach it", loss, model, model(x))
    refused(ValueError, r"for 4 rows the model returned a tensor .1, 6.*encode=", loss, lambda x: x[:1], x)
    refused(TypeError, "the model returned a NoneType without tensors", loss, lambda x: None, x)
    refused(TypeError, "the criterion returned a tensor (10,); one number was wanted", loss.per_query, model, x, labels=LABELS)  # fmt: skip  # noqa: E501
    refused(TypeError, "the criterion returned a NoneType", lambda z: None, model, x)
    refused(
        ValueError, "buffer 'running_mean' of a LazyBatchNorm1d has no shape yet", loss, nn.LazyBatchNorm1d().eval(), x
    )
    with torch.no_grad():
        refused(RuntimeError, "cached_step trains, but gradients are off", loss, model, x, labels=LABELS)
    two = nn.Sequential(model, nn.Linear(4, 5).double())
    joint = nf.Joint(nn.CrossEntropyLoss(), loss, features=model, balance="gradient")
    refused(ValueError, "balance=", joint, two, x, targets=LABELS)
    joint = nf.Joint(nn.CrossEntropyLoss(), loss, features=model)
    refused(ValueError, "nf.Joint takes one side and 2 were given: concatenate", joint, two, (x, y), targets=LABELS)


def test_random_state_is_back_in_place_after_an_error():
    """An error in the second pass leaves the generators where a finished step would."""
    model = nn.Sequential(nn.Dropout(), Private())
    torch.manual_seed(1)
    with pytest.raises(RuntimeError, match="not the same twice"):
        nf.cached_step(nf.SupConLoss(), model, rows()[0], labels=LABELS, chunk=4)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    by_chunks(nn.Dropout(), rows()[0], 4)
    torch.testing.assert_close(drawn, torch.rand(3), rtol=0, atol=0)
