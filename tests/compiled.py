"""Every loss under `torch.compile`, in a process of its own: the type checks of the tests cannot be traced."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import nearfar as nf
from harness import KINDS, build, differentiate, keywords_for
from problems import FORMS, forms_of

ROWS, FEATURES = (9, 6), 3
"""The second size, as of an epoch's last batch, is compiled for any size."""


def alike(name: str) -> None:
    """One graph at any size, with the value and the gradients of the loss as it is."""
    torch.compiler.reset()
    form, loss = forms_of(name, KINDS[name])[0], build(name, {}, FEATURES)
    compiled = torch.compile(lambda tensors, keywords: loss(*tensors, **keywords), fullgraph=True, backend="aot_eager")
    for n in ROWS:
        given = FORMS[form](n, FEATURES, 3).map(lambda x: x.detach().float().requires_grad_())
        keywords, leaves = keywords_for(given, torch.float32), [*given.leaves(), *loss.parameters()]
        plain = differentiate(loss(*given.tensors, **keywords), leaves)
        traced = differentiate(compiled(given.tensors, keywords), leaves)
        torch.testing.assert_close(
            traced.value, plain.value, rtol=1e-5, atol=1e-6, msg=lambda text: f"{name}, {n} rows: {text}"
        )
        for a, b in zip(traced.gradients, plain.gradients):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}, {n} rows: {text}")


def one_graph() -> None:
    """Calls beyond the first form: the value of the loss as it is, and no break."""
    draw = torch.Generator().manual_seed(0)
    z, y = torch.randn(2, 60, 4, generator=draw)
    shift = torch.zeros(60).index_fill(0, torch.tensor([0, 7]), -torch.inf)
    calls: dict[str, Callable[[], Tensor]] = {
        "keys left out": lambda: nf.functional.info_nce_loss(z, y, offsets=shift),
        "keys left out both ways": lambda: nf.functional.clip_loss(z[:40], y[:40], offsets=shift[:40]),
    }
    x, near, far, many = *torch.randn(3, 80, 4, generator=draw), torch.randn(80, 20, 4, generator=draw)
    calls |= {  # rows that meet only those given with them: no graph holds a matrix, however many there are
        "triplets": lambda: nf.functional.triplet_loss(x, near, far),
        "triplets, many negatives": lambda: nf.TripletLoss(distance="cosine")(x, near, negative=many),
        "pairs": lambda: nf.functional.contrastive_loss(x, near, torch.arange(80) % 2),
        "own negatives": lambda: nf.InfoNCELoss()(x, near, many),
    }
    for name, call in calls.items():
        torch.compiler.reset()
        found = torch.compile(call, backend="aot_eager", fullgraph=True)()
        torch.testing.assert_close(found, call(), rtol=1e-5, atol=1e-6, msg=lambda text: f"{name}: {text}")


def largest_seen(call: Callable[[], Tensor]) -> int:
    """Numbers in the largest tensor of any graph that was compiled."""
    sizes = [0]

    def record(graph: GraphModule, _: list[Tensor]) -> Callable[..., object]:
        found = [node.meta.get("example_value") for node in graph.graph.nodes]
        sizes.extend(x.numel() for x in found if isinstance(x, Tensor))
        return graph.forward

    torch.compiler.reset()
    torch.compile(call, backend=record)()
    return max(sizes)


def outside() -> None:
    """Of a large batch no graph holds the scores; the loss is computed as it is, or refused where all must be one graph."""
    for loss, n in ((nf.SupConLoss(), 150), (nf.InfoNCELoss(), 1100), (nf.SupConLoss(), 100)):
        z, y = torch.randn(n, 4, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 20
        held = largest_seen(lambda: loss(z, labels=y)) >= n * n
        assert held == (n == 100), (loss, n)
        if not held:
            torch.compiler.reset()
            with pytest.raises(Exception, match="leave fullgraph=True away"):
                torch.compile(lambda: loss(z, labels=y), backend="eager", fullgraph=True)()


def module() -> None:
    """`loss.compile()` is torch's own: it learns, tells what it saw, and can be copied and sent to others."""
    plain, loss = nf.SupConLoss(learnable=True), nf.SupConLoss(learnable=True)
    loss.compile(backend="aot_eager")
    z, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) // 2 % 5
    for one in (plain, loss):
        one(z, labels=y).backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(loss.get_parameter(name).grad, parameter.grad)
    assert {name: int(count) for name, count in loss.stats.items()} == {"queries": 12, "queries_without_positive": 0}
    torch.testing.assert_close(pickle.loads(pickle.dumps(loss))(z, labels=y), plain(z, labels=y))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        alike(name)
    if not sys.argv[1:]:
        outside()
        module()
        one_graph()
