"""The losses under PyTorch's transformations: autocast, `torch.func`, saved and swapped parameters."""

from __future__ import annotations

import pytest
import torch

import nearfar as nf
from harness import KINDS, backends_of, build, keywords_for, tiles
from problems import FORMS, Problem, draw, forms_of, variant_cases

pytestmark = pytest.mark.usefixtures("unchecked")
N, D = 9, 3
NAMES = [name for name in KINDS if name != "NCELoss"]
PLANS = [(name, backend) for name in NAMES for backend in backends_of(name)]


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    return FORMS[forms_of(name, KINDS[name])[0]](N, D, 3).map(lambda x: x.to(dtype))


def of_first(name: str, backend: str | None, given: Problem):
    """The loss as a function of its first matrix."""
    loss, keywords = build(name, {}, D, backend), keywords_for(given, given.tensors[0].dtype)
    return lambda x: loss(x, *given.tensors[1:], **keywords)


def assert_that_autocast_changes_nothing(value, x):
    """The whole loss is an island of float32, its backward pass too, wherever that runs."""
    with tiles():
        plain = value(x)
        (wanted,) = torch.autograd.grad(plain, x)
        with torch.autocast("cpu", torch.bfloat16):
            cast = value(x)
            (inside,) = torch.autograd.grad(cast, x, retain_graph=True)
        (outside,) = torch.autograd.grad(cast, x)
    assert cast.dtype is torch.float32
    torch.testing.assert_close(cast, plain, rtol=1e-6, atol=1e-7)
    for found in (inside, outside):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "backend"), PLANS)
def test_autocast_changes_nothing(name, backend):
    given = problem(name)
    assert_that_autocast_changes_nothing(of_first(name, backend, given), given.tensors[0].requires_grad_())


VARIED = [case for case in variant_cases(KINDS) if case.form in ("labels", "two views", "vectors", "maps")]


@pytest.mark.parametrize(
    ("case", "backend"), [(case, backend) for case in VARIED for backend in backends_of(case.name)], ids=str
)
def test_nor_with_other_options(case, backend):
    given = case.problem(N, D).map(lambda x: x.float())
    loss, keywords = build(case.name, case.options, D, backend), keywords_for(given, torch.float32)
    value = lambda x: loss(x, *given.tensors[1:], **keywords)  # noqa: E731
    assert_that_autocast_changes_nothing(value, given.tensors[0].requires_grad_())


AROUND = {
    "a bilinear critic": lambda z: nf.functional.mutual_information_loss(z, WIDE, bilinear=WEIGHT),
    "own negatives": lambda z: nf.InfoNCELoss()(z, z.flip(0), WIDE[:, None, :3].expand(N, 4, 3)),
    "soft labels": lambda z: nf.SupConLoss()(z, labels=WIDE.softmax(1)),
    "noise": lambda z: nf.functional.nce_loss(
        z, torch.arange(N), WIDE[:, :3], noise=nf.Noise(torch.ones(N)), k=4, generator=torch.Generator().manual_seed(0)
    ),
}
WIDE, WEIGHT = draw(N, 5, seed=1).float(), draw(D, 5, seed=2).float()


@pytest.mark.parametrize("name", AROUND)
def test_nor_in_products_around_the_scores(name):
    assert_that_autocast_changes_nothing(AROUND[name], draw(N, D, seed=3).float().requires_grad_())


@pytest.mark.parametrize(("name", "backend"), PLANS)
def test_torch_func_grad_is_autograds(name, backend):
    given = problem(name, torch.float64)
    value, x = of_first(name, backend, given), given.tensors[0].requires_grad_()
    with tiles():
        torch.testing.assert_close(
            torch.func.grad(value)(x), torch.autograd.grad(value(x), x)[0], rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize(("name", "backend"), PLANS)
def test_forward_mode_is_right_or_refused(name, backend):
    """Never silently zero."""
    given = problem(name, torch.float64)
    value, x = of_first(name, backend, given), given.tensors[0]
    with tiles():
        wanted = torch.func.grad(value)(x)
        try:
            actual = torch.func.jacfwd(value)(x)
        except (RuntimeError, NotImplementedError):
            return
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-11)


def test_parameters_can_be_swapped():
    """As meta-learning does: the module computes with those it is given."""
    loss, given = build("ProxyNCALoss", {}, D), problem("ProxyNCALoss")
    table = torch.randn(4, D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ((name, _),) = loss.named_parameters()
    value = torch.func.functional_call(loss, {name: table}, given.tensors, given.keywords)
    wanted = nf.LOSSES["ProxyNCALoss"].function(*given.tensors, given.keywords["labels"], table)
    torch.testing.assert_close(value, wanted)
    assert torch.autograd.grad(value, table)[0].abs().sum() > 0


@pytest.mark.parametrize("name", ["CLIPLoss", "SigLIPLoss", "ArcFaceLoss", "CenterLoss"])
def test_what_is_learned_survives_a_checkpoint(name):
    options = {"learnable": True} if KINDS[name] == "two-sided" else {}
    first, second = build(name, options, D), build(name, options, D)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1)
    second.load_state_dict(first.state_dict())
    given = problem(name)
    torch.testing.assert_close(second(*given.tensors, **given.keywords), first(*given.tensors, **given.keywords))
