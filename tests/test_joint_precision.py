"""The joint objective in every floating-point type: its own head, and cosines of prototypes under autocast."""

import pytest
import torch
from torch import nn

import nearfar as nf
from nearfar.encoders.heads import ProjectionHead

X = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


@pytest.fixture(autouse=True)
def _default():
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("features", "default", "head"),
    [
        (torch.float64, torch.float32, torch.float64), (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float32, torch.float32), (torch.float32, torch.float64, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ],
)  # fmt: skip
def test_the_head_takes_features_of_any_type(features, default, head):
    torch.manual_seed(0)
    torch.set_default_dtype(default)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)).to(features)
    criterion = nf.Joint(nn.CrossEntropyLoss(), nf.SupConLoss(), features=model[0], head=3)
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1)
    outputs = model(X.to(features))
    loss = criterion(outputs, Y)
    assert {parameter.dtype for parameter in criterion.parameters()} == {head}
    first, second = criterion.head[0], criterion.head[2]
    z = model[0](X.to(features)).to(head)
    projected = (z @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias
    wanted = (nn.functional.cross_entropy(outputs, Y) + nf.SupConLoss()(projected, labels=Y)) / 2
    torch.testing.assert_close(loss.double(), wanted.double(), rtol=1e-5, atol=1e-5)
    loss.backward()
    before = first.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(first.weight, before)


def test_a_head_that_is_made_casts_what_it_is_given():
    head = ProjectionHead(8, 4)
    torch.testing.assert_close(head(X.double()), head(X))
    assert head(X.half()).dtype == torch.float32


def test_prototypes_are_read_in_float32_under_autocast():
    criterion = nf.Joint(nn.CrossEntropyLoss(), nf.SupConLoss(), readout="prototypes", num_classes=3)
    criterion.fit_prototypes(X, Y)
    unit = nn.functional.normalize(X.double())
    sums = torch.stack([unit[k == Y].sum(0) for k in range(3)])
    wanted = 10 * unit @ nn.functional.normalize(sums).T
    with torch.autocast("cpu", torch.bfloat16):
        found = criterion.logits(X)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
