"""Under ``torch.set_default_dtype(torch.float64)`` everything trains and embeds, and to the same numbers."""

import numpy as np
import pytest
import torch
from torch import nn

import nearfar as nf
from nearfar.data.corpus import Column, Corpus, TensorPart
from nearfar.encoders.towers import build_tower
from nearfar.methods.table import METHODS

SERIES = torch.randn(32, 2, 40, generator=torch.Generator().manual_seed(0))
COLUMNS = {
    "image": torch.randint(256, (32, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    "vector": SERIES[:, 0, :6].clone(), "series": SERIES, "text": [f"row {i} of {i % 7} and {i % 5}" for i in range(32)],
}  # fmt: skip
LABELS = torch.arange(32) % 4


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def corpus(*kinds: str) -> Corpus:
    columns = tuple(Column(kind, kind, "positive" if at else "anchor") for at, kind in enumerate(kinds))
    part = TensorPart({kind: COLUMNS[kind] for kind in kinds}, LABELS)
    image = {"size": (24, 24), "channels": 3} if "image" in kinds else {}
    return Corpus("-".join(kinds), columns, part, part, tuple("abcd"), **image)


def trained(data: Corpus, tmp_path, **options) -> nf.Run:
    options = {"steps": 2, "batch_size": 8, "eval_every": 2, "threads": 1, "show": False} | options
    return nf.train(corpus=data, out=str(tmp_path / f"{torch.get_default_dtype()}"), **options)


CASES = [
    *((("vector",), {"method": name}) for name, row in METHODS.items() if row.needs.startswith(("labels", "views"))),
    (("image",), {"method": "simclr"}), (("image",), {"method": "joint", "ema": 0.9}), (("series",), {"method": "moco"}),
    (("image", "text"), {"method": "clip"}), (("text",), {"method": "supcon", "accumulate": 2}),
    (("vector",), {"method": "supcon", "optimizer": "lars"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kinds", "options"), CASES, ids=lambda value: "-".join(map(str, getattr(value, "values", lambda: value)()))
)
def test_training_gives_the_same_numbers(kinds, options, tmp_path, double):
    data = corpus(*kinds)
    run = trained(data, tmp_path, **options)
    found = run.embedder().embed(COLUMNS[kinds[0]])
    assert found.dtype == torch.float32
    torch.set_default_dtype(torch.float32)
    again = trained(data, tmp_path, **options)
    assert torch.equal(again.embedder().embed(COLUMNS[kinds[0]]), found)
    assert again.metrics == run.metrics


@pytest.mark.parametrize("kind", ["image", "vector", "series"])
def test_networks_of_ones_own_keep_their_type(kind, tmp_path, double):
    name = {"image": "small-cnn", "vector": "mlp", "series": "series-cnn"}[kind]
    embedder = nf.Embedder([build_tower(kind, {"name": name, "shape": list(COLUMNS[kind].shape[1:]), "outputs": 8})])
    assert next(embedder.parameters()).dtype == torch.float64
    assert embedder.embed(COLUMNS[kind]).dtype == torch.float32
    run = trained(corpus(kind), tmp_path, method="simclr", embedder=embedder)
    assert torch.equal(run.embedder().embed(COLUMNS[kind]), embedder.eval().embed(COLUMNS[kind]))
    halved = embedder.to(torch.bfloat16).embed(COLUMNS[kind])
    assert halved.isfinite().all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(24, 6), (24, 3, 12, 12)])
@pytest.mark.parametrize("classes", [True, False])
def test_the_transformer_for_scikit_learn(dtype, shape, classes, double):
    x = np.random.default_rng(0).random(shape).astype(dtype)
    encoder = nf.ContrastiveEncoder(dim=4, epochs=2, random_state=0)
    found = encoder.fit(x, np.arange(24) % 3 if classes else None).transform(x)
    assert found.dtype == dtype
    torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(encoder.fit(x, np.arange(24) % 3 if classes else None).transform(x), found)


def test_a_comparison(tmp_path, double):
    x, y = torch.randn(120, 6), torch.arange(120) % 3
    options = {"steps": 6, "seeds": 2, "sweep_seeds": 1, "budget": 1, "rates": (0.01,), "eval_every": 3, "workers": 1}
    found = nf.compare((x, y), out=str(tmp_path / "a"), arms=("task", "joint"), show=False, **options)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))  # in float64
    assert (
        nf.compare((x, y), model=model, out=str(tmp_path / "b"), arms=("task", "joint"), show=False, **options)
        is not None
    )
    assert found is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_loop_of_ones_own_uses(dtype, double):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).to(dtype)
    x = COLUMNS["vector"].to(dtype)
    for options in ({}, {"balance": "gradient"}, {"readout": "prototypes"}):
        criterion = nf.Joint(nn.CrossEntropyLoss(), nf.SupConLoss(), features=model[1], **options)
        criterion(model(x), LABELS).backward()
    z = model(x)
    for loss in (nf.CLIPLoss(learnable=True), nf.SigLIPLoss(learnable=True)):
        loss(z, z.flip(0)).backward(retain_graph=True)
    bank = nf.MemoryBank(size=32, dim=4)
    bank.add(z.detach(), LABELS)
    bank.loss(nf.InfoNCELoss(), z, labels=LABELS).backward()
    assert nf.evaluate(z.detach(), LABELS).measures
    assert len(list(nf.PKSampler(LABELS, p=2, k=2)))
