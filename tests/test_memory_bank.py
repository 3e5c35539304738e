"""A memory bank is a Python list of past rows, cut to its size: what it holds, and the losses of batches that meet it."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import nearfar as nf
from oracles import ORACLES

D = 3
NAN = math.nan


def batch(n: int, seed: int, grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, labels of three classes of which −1 is unknown, ids of nine samples (twelve rows meet one twice)."""
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(n, D, generator=random, dtype=torch.float64)
    labels = torch.randint(-1, 3, (n,), generator=random)
    return z.requires_grad_(grad), labels, torch.randperm(9, generator=random)[:n]


class Naive:
    """The same, as lists, one row at a time."""

    def __init__(self, size: int) -> None:
        self.held: deque[tuple[Tensor, int, int]] = deque(maxlen=size)

    def add(self, z: Tensor, labels: Tensor, ids: Tensor) -> None:
        self.held.extend(zip(z.detach(), labels.tolist(), ids.tolist()))

    def loss(self, oracle: Any, z: Tensor, labels: Tensor, ids: Tensor, frozen: bool = False) -> Tensor:
        """Each row meets the other rows of the batch, and every remembered row of a sample that is not in it."""
        old = [(row, label) for row, label, known in self.held if known < 0 or known not in ids.tolist()]
        keys = torch.stack([*(z.detach() if frozen else z), *(row for row, _ in old)])
        key_labels = [*labels.tolist(), *(label for _, label in old)]
        relation = [
            [NAN if i == j or a < 0 or b < 0 else float(a == b) for j, b in enumerate(key_labels)]
            for i, a in enumerate(labels.tolist())
        ]
        return oracle(z, keys, pairs=torch.tensor(relation, dtype=z.dtype))


# ---- what it holds --------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@example(size=3, sizes=[2, 2])
@example(size=3, sizes=[1, 8, 2])
@given(size=st.integers(1, 7), sizes=st.lists(st.integers(0, 17), max_size=6))
def test_it_is_a_deque(size, sizes):
    """Whatever the sizes: more than is left, more than it holds, nothing at all. Integers stay integers."""
    bank, held, number = nf.MemoryBank(size, 1, dtype=torch.float64), deque(maxlen=size), 0
    for n in sizes:
        numbers = torch.arange(number, number := number + n)
        bank.add(numbers[:, None].double(), 2**62 + numbers, 2**61 + numbers)
        held.extend(numbers.tolist())
        assert bank.labels.tolist() == [2**62 + k for k in held]
        assert bank.ids.tolist() == [2**61 + k for k in held]
        assert bank.rows.tolist() == [[float(k)] for k in held]
        assert bank.rows.shape == (len(held), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_kept_as_told(dtype):
    """Rounded once, labels of any integer type, unknown where nothing is said; in half precision in half the memory."""
    bank, (z, labels, ids) = nf.MemoryBank(4, D, dtype=dtype), batch(3, 0)
    bank.add(z, labels.to(torch.int16))
    torch.testing.assert_close(bank.rows, z.detach().to(dtype), rtol=0, atol=0)
    assert not bank.rows.requires_grad
    assert bank.rows.nbytes == 3 * D * dtype.itemsize
    assert (bank.labels.tolist(), bank.ids.tolist()) == (labels.tolist(), [-1] * 3)
    bank.add(z, ids=ids.to(torch.int32))
    assert (bank.labels.tolist(), bank.ids.tolist()) == ([labels[-1].item(), -1, -1, -1], [-1, *ids.tolist()])
    assert bank.loss(nf.SupConLoss(), z.float(), labels).dtype == torch.float32


def test_what_was_read_does_not_change():
    """So that a bank may be added to between a loss and its backward pass."""
    bank, z = nf.MemoryBank(4, D, dtype=torch.float64), batch(4, 0, grad=False)[0]
    bank.add(z)
    queries, keys = batch(2, 1)[0], batch(2, 2)[0]
    rows = bank.rows
    loss = nf.InfoNCELoss(normalize=False)(queries, keys, rows)
    bank.add(keys)
    torch.testing.assert_close(rows, z, rtol=0, atol=0)
    loss.backward()


# ---- losses ---------------------------------------------------------------------------------------------------------

LOSSES: dict[str, dict[str, Any]] = {
    "SupConLoss": {},
    "InfoNCELoss": {"form": "in"},
    "TripletLoss": {"margin": 1.0},
    "ContrastiveLoss": {},
    "MultiSimilarityLoss": {"epsilon": 2.0, "beta": 10.0},
    "NCALoss": {},
}


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_the_lists(name, frozen):
    """Value and gradient at every step, through empty, filling, wrapping and full; the memory gets no gradient."""
    loss, oracle = getattr(nf, name)(**LOSSES[name]), ORACLES[name]
    bank, naive = nf.MemoryBank(11, D, frozen=frozen, dtype=torch.float64), Naive(11)
    for step, n in enumerate([5, 4, 1, 6, 5, 9]):
        z, labels, ids = batch(n, step)
        value = bank.loss(loss, z, labels, ids)
        wanted = naive.loss(lambda *a, **k: oracle(*a, **k, **LOSSES[name]), z, labels, ids, frozen)
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-12)
        for a, b in zip(torch.autograd.grad(value, z), torch.autograd.grad(wanted, z)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        naive.add(z, labels, ids)
        torch.testing.assert_close(bank.rows, torch.stack([row for row, *_ in naive.held]), rtol=0, atol=0)


def test_without_ids_stale_rows_are_met_like_any_other():
    bank, naive, loss = nf.MemoryBank(9, D, dtype=torch.float64), Naive(9), nf.SupConLoss()
    for step in range(3):
        z, labels, _ = batch(5, step)
        unknown = torch.full((5,), -1)
        value = bank.loss(loss, z, labels)
        torch.testing.assert_close(value, naive.loss(ORACLES["SupConLoss"], z, labels, unknown), rtol=0, atol=1e-12)
        naive.add(z, labels, unknown)


def test_views_of_a_sample_in_a_batch_stay_partners():
    """Two rows with one id and one label meet; only the remembered ones make way."""
    bank, loss = nf.MemoryBank(9, D, dtype=torch.float64), nf.SupConLoss()
    z, ids = batch(6, 0)[0], torch.tensor([0, 1, 2, 0, 1, 2])
    first = bank.loss(loss, z, ids, ids)
    torch.testing.assert_close(first, loss(z[:3], z[3:]), rtol=0, atol=1e-12)
    torch.testing.assert_close(bank.loss(loss, z, ids, ids), first, rtol=0, atol=1e-12)
    assert bank.loss(loss, z, ids) != first


def test_mocos_queue():
    """Each query with its own key and the queue: no step meets what it adds, the first meets nothing."""
    loss, bank, queue = nf.InfoNCELoss(temperature=0.2), nf.MemoryBank(7, D, dtype=torch.float64), deque(maxlen=7)
    for step in range(4):
        q, k = batch(3, step)[0], batch(3, 10 + step, grad=False)[0]
        value = loss(q, k, bank.rows)
        rows = [torch.nn.functional.normalize(x, dim=-1) for x in (q, k, *queue)]
        logits = [[a @ b / 0.2 for b in [rows[1][i], *rows[2:]]] for i, a in enumerate(rows[0])]
        wanted = sum(torch.stack(row).logsumexp(0) - row[0] for row in logits) / 3
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-12)
        for a, b in zip(torch.autograd.grad(value, q), torch.autograd.grad(wanted, q)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        bank.add(k)
        queue.extend(k)


def test_warming_up():
    """For so many training calls the batch is alone, and nothing is kept."""
    bank, loss = nf.MemoryBank(9, D, start_after=2, dtype=torch.float64), nf.SupConLoss()
    for step in range(4):
        z, labels, ids = batch(5, step)
        value = bank.loss(loss, z, labels, ids)
        assert len(bank.rows) == (0, 0, 5, 9)[step]
        if step < 3:
            torch.testing.assert_close(value, loss(z, labels=labels), rtol=0, atol=1e-12)


def test_only_training_is_remembered():
    bank, loss, (z, labels, _) = nf.MemoryBank(9, D), nf.SupConLoss(), batch(5, 0)
    bank.eval().loss(loss, z, labels)
    with torch.no_grad():
        bank.train().loss(loss, z, labels)
    assert (len(bank.rows), int(bank.calls)) == (0, 0)
    bank.loss(loss, z, labels, weights=torch.ones(5))
    assert len(bank.rows) == 5


def test_in_a_cached_step():
    """The criterion is called once a step, so the batch is remembered once; without ids, in this case."""
    torch.manual_seed(0)
    model, loss = torch.nn.Linear(4, D).double(), nf.SupConLoss()
    bank, twin = (nf.MemoryBank(12, D, dtype=torch.float64) for _ in range(2))
    for step in range(3):
        x, labels = torch.randn(8, 4, dtype=torch.float64), batch(8, step)[1]
        value = nf.cached_step(lambda z, y=labels: bank.loss(loss, z, y), model, x, chunk=3)
        found = model.weight.grad.clone()
        model.zero_grad()
        wanted = twin.loss(loss, model(x), labels)
        wanted.backward()
        torch.testing.assert_close(value, wanted.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(found, model.weight.grad, rtol=0, atol=1e-12)
        model.zero_grad()


# ---- resuming -------------------------------------------------------------------------------------------------------


def run(bank: nf.MemoryBank, steps: range) -> list[Tensor]:
    loss = nf.SupConLoss()
    return [bank.loss(loss, z.float(), y, ids).detach() for z, y, ids in (batch(4, step) for step in steps)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["torch", "safetensors"])
def test_resuming_is_no_interruption(how, dtype, tmp_path):
    """Bit for bit: saved while warming up, half full, full, and in the middle of a turn."""
    for at in range(8):
        whole, first, second = (nf.MemoryBank(11, D, start_after=2, dtype=dtype) for _ in range(3))
        wanted = run(whole, range(8))
        found = run(first, range(at))
        if how == "torch":
            torch.save(first.state_dict(), tmp_path / "bank")
            state = torch.load(tmp_path / "bank", weights_only=True)
        else:
            safetensors = pytest.importorskip("safetensors.torch")
            safetensors.save_file(first.state_dict(), tmp_path / "bank")
            state = safetensors.load_file(tmp_path / "bank")
        second.load_state_dict(state)
        found += run(second, range(at, 8))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        for (name, a), (other, b) in zip(second.state_dict().items(), whole.state_dict().items(), strict=True):
            assert name == other
            assert torch.equal(a, b), name


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_says_what_is_wrong():
    z = torch.ones(2, D)
    bank, labels = nf.MemoryBank(4, D), torch.tensor([0, 1])
    for kind, words, call in [
        (ValueError, "size is 0: wanted a whole number of at least 1", lambda: nf.MemoryBank(0, D)),
        (ValueError, "start_after is -1: wanted a whole number of at least 0", lambda: nf.MemoryBank(1, D, start_after=-1)),
        (TypeError, "dtype is torch.int64: wanted a float type", lambda: nf.MemoryBank(1, D, dtype=torch.int64)),
        (ValueError, r"rows have shape \(2, 2\); \(n, 3\) was wanted", lambda: bank.add(z[:, :2], labels)),
        (TypeError, "rows are torch.int64", lambda: bank.add(z.long(), labels)),
        (TypeError, r"labels are torch.float32, integers were wanted: pass labels.long\(\)", lambda: bank.add(z, labels.float())),
        (ValueError, r"ids have shape \(1,\) for 2 rows", lambda: bank.add(z, labels, labels[:1])),
        (ValueError, "rows have NaN or infinity, which would stay in the memory", lambda: bank.add(z / 0)),
        (ValueError, "both the bank and the loss gather", lambda: nf.MemoryBank(4, D, gather=True).loss(nf.SupConLoss(gather=True), z, labels)),  # noqa: E501
    ]:  # fmt: skip
        with pytest.raises(kind, match=words):
            call()
    assert len(bank.rows) == 0


@pytest.mark.parametrize("scale", [1e-9, 1e5])
def test_halves_that_would_lose_the_rows_are_refused(scale):
    """At 1e-9 all would be zeros, which nobody is near; at 1e5 infinite."""
    rows = scale * torch.ones(2, D)
    bank = nf.MemoryBank(4, D, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"row 0 has numbers beyond what float16 holds.*bfloat16"):
        bank.add(rows)
    assert int(bank.calls) == 0
    wide = nf.MemoryBank(4, D, dtype=torch.bfloat16)
    wide.add(rows)
    assert torch.equal(wide.rows.float(), rows.bfloat16().float())
