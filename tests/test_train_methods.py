"""Methods: the loss of a batch is the one that the paper asks for, by the loss functions or by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import nearfar as nf
from nearfar.data.corpus import Column, Corpus, TensorPart
from nearfar.data.same import hashed
from nearfar.methods.base import Batch, Setting
from nearfar.methods.config import MethodConfig
from nearfar.methods.table import METHODS, Holds, choose_method
from nearfar.training.assemble import make_method
from nearfar.training.config import TrainConfig

X = (Column("x", "vector"),)
XY = (*X, Column("y", "vector", "positive"))
XYN = (*XY, Column("n", "vector", "negative"))


class Line(nn.Module):
    """An embedder of vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line, self.dim = nn.Linear(6, 4), 4

    def forward(self, kind: str, inputs: torch.Tensor) -> torch.Tensor:
        assert kind == "vector"
        return self.line(inputs)


def build(name: str, columns=X, view=None, classes: int = 3, **options):
    module, _, kind = METHODS[name].home.partition(":")
    setting = Setting(name, columns, MethodConfig(**{"projection": 0} | options), classes, view)
    return getattr(__import__(module, fromlist=[kind]), kind)(Line(), 4, setting)


def batch(rows: int = 6, groups=None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    columns = {name: torch.randn(rows, 6, generator=generator) for name in ("x", "y", "n")}
    return Batch(torch.arange(rows) + 100, columns, torch.arange(rows) % 3, groups)


def shifted(inputs: torch.Tensor, which: int) -> torch.Tensor:
    return inputs + 0.1 * (which + 1)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("simclr", nf.NTXentLoss(0.1)),
        ("simcse", nf.InfoNCELoss(0.05)),
        ("barlow", nf.BarlowTwinsLoss()),
        ("vicreg", nf.VICRegLoss()),
        ("supcon", lambda a, b: nf.SupConLoss(0.1)(a, b, labels=batch().labels)),
    ],
)
def test_two_views(name, loss):
    method, given = build(name, view=shifted), batch()
    line = method.embedder.line
    (term,) = method(given).values()
    wanted = loss(line(given.columns["x"] + 0.1), line(given.columns["x"] + 0.2))
    torch.testing.assert_close(term, wanted)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("pairs", nf.InfoNCELoss(0.05)),
        ("clip", nf.CLIPLoss(0.07)),
        ("siglip", nf.SigLIPLoss(0.1)),
    ],
)
def test_two_columns(name, loss):
    method, given = build(name, XY), batch()
    line = method.embedder.line
    (term,) = method(given).values()
    torch.testing.assert_close(term, loss(line(given.columns["x"]), line(given.columns["y"])))
    assert (method.loss.tau.log_scale is not None) == (name != "pairs")  # the papers of CLIP and SigLIP learn it


def test_hard_negatives_meet_every_anchor_and_one_thing_is_not_its_own_negative():
    """By hand: logits over all positives and all negatives; rows of one id are positives, an unknown id is a thing alone."""
    groups = torch.tensor([7, 7, -1, -1, 0, 1])
    method, given = build("pairs", XYN, temperature=0.5), batch(groups=groups)
    line = method.embedder.line
    q, k, n = (torch.nn.functional.normalize(line(given.columns[c]), dim=1) for c in "xyn")
    scores = q @ torch.cat([k, n]).T / 0.5
    wanted = []
    for row in range(6):
        positives = [row] if groups[row] < 0 else [j for j in range(6) if groups[j] == groups[row]]
        wanted.append(scores[row].logsumexp(0) - scores[row, positives].mean())
    torch.testing.assert_close(method(given)["info_nce"], torch.stack(wanted).mean())


def test_labels():
    given = batch()
    x = given.columns["x"]
    method = build("siamese", margin=0.8)
    wanted = nf.ContrastiveLoss(0.8, normalize=True)(method.embedder.line(x), labels=given.labels)
    torch.testing.assert_close(method(given)["contrastive"], wanted)
    method = build("triplet")
    loss = nf.TripletLoss(0.2, "semihard", "sqeuclidean", normalize=True)
    torch.testing.assert_close(method(given)["triplet"], loss(method.embedder.line(x), labels=given.labels))
    method = build("triplet", XYN)
    loss = nf.TripletLoss(0.2, distance="sqeuclidean", normalize=True)
    sides = [method.embedder.line(given.columns[c]) for c in "xyn"]
    torch.testing.assert_close(method(given)["triplet"], loss(*sides))


def test_joint_sums_two_terms_and_passes_over_unknown_labels():
    given = batch()
    assert given.labels is not None
    method = build("joint", weight=0.3).train()
    outputs = method.network(method.sides(given))
    terms = method.terms(outputs, given)
    features, logits = outputs[0]
    torch.testing.assert_close(terms["cross_entropy"], torch.nn.functional.cross_entropy(logits, given.labels))
    torch.testing.assert_close(terms["supcon"], nf.SupConLoss(0.1)(features, labels=given.labels))
    torch.testing.assert_close(method.total(terms), terms["cross_entropy"] + 0.3 * terms["supcon"])
    half = Batch(given.rows, given.columns, torch.where(given.rows % 2 == 0, given.labels, -1))
    terms = method.terms(outputs, half)
    wanted = torch.nn.functional.cross_entropy(logits[::2], given.labels[::2])
    torch.testing.assert_close(terms["cross_entropy"], wanted)


def test_moco_by_hand():
    """The loss over the queue, then the slow encoder's step and the queue's, in this order (algorithm 1)."""
    method, given = build("moco", view=shifted, queue=8, momentum=0.75), batch()
    start = copy.deepcopy(method.embedder.line)
    queue = method.queue.rows
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(8))
    x = given.columns["x"]
    unit = torch.nn.functional.normalize
    q, k = unit(start(x + 0.1), dim=1), unit(start(x + 0.2), dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.2
    wanted = torch.nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    terms = method(given)
    torch.testing.assert_close(terms["info_nce"], wanted)
    method.total(terms).backward()
    with torch.no_grad():
        for p in method.embedder.parameters():
            p -= p.grad
    method.after_step(1)
    slow = method.slow.module.embedder.line.weight
    torch.testing.assert_close(slow, 0.75 * start.weight + 0.25 * method.embedder.line.weight)
    torch.testing.assert_close(method.queue.rows, torch.cat([queue[6:], k.detach()]))


def test_moco_leaves_out_past_keys_of_the_same_thing():
    method = build("moco", view=shifted, queue=8)
    given = batch(groups=torch.tensor([0, 0, 1, 1, 2, -1]))
    method(given)
    method.after_step(1)
    start, slow, queue = method.embedder.line, method.slow.module.embedder.line, method.queue.rows
    x, unit = given.columns["x"], torch.nn.functional.normalize
    q, k = unit(start(x + 0.1), dim=1), unit(slow(x + 0.2), dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.2
    for row, same in enumerate([(0, 1), (0, 1), (2, 3), (2, 3), (4,), (5,)]):  # two random rows are left before them
        logits[row, [3 + at for at in same]] = -torch.inf
    wanted = torch.nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(method(given)["info_nce"], wanted)


def test_moco_is_built_without_a_word_between_ranks(monkeypatch):
    """It is built on the CPU, and NCCL knows GPUs alone."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    setting = Setting("moco", X, MethodConfig(queue=8, projection=0), view=shifted, gather=True)
    method = METHODS["moco"].home.rpartition(":")[2]
    queue = getattr(__import__("nearfar.methods.moco", fromlist=[method]), method)(Line(), 4, setting).queue
    assert len(queue.rows) == 8
    assert queue.gather


def test_ids_of_a_stream_are_known_to_all_losses():
    """None is negative, which would mean unknown: the row would be left out."""
    groups = torch.tensor([hashed(f"person {i}") for i in range(200)])
    ids = Batch(torch.arange(200), {}, groups=groups).ids
    assert ids is not None
    assert bool((ids % 3 == 0).all())
    assert bool((ids >= 0).all())
    assert len(ids.unique()) == 200


@pytest.mark.parametrize("name", ["simclr", "simcse", "supcon", "pairs", "clip"])
def test_chance_is_what_identical_embeddings_give(name):
    method = build(name, XYN if METHODS[name].needs == "pairs" else X, view=shifted)
    with torch.no_grad():
        method.embedder.line.weight.zero_()
    (term,) = method(batch()).values()
    assert math.isclose(float(term.detach()), method.chance(6), rel_tol=1e-5)


def test_every_method_is_built_from_its_row():
    for name, row in METHODS.items():
        columns = XY if row.needs == "pairs" else X
        config = TrainConfig(method=name, queue=4)
        corpus = Corpus("rows", columns, TensorPart({"x": batch().columns["x"]}), None, ("a", "b", "c"))
        method = make_method(config, corpus, columns, Line(), shifted, False)
        given = batch()
        terms = method(given)
        method.total(terms).backward()
        assert all(p.grad is not None for p in method.embedder.parameters()), name
        assert row.paper


@pytest.mark.parametrize(
    ("kinds", "labels", "wanted"),
    [
        (("image",), True, "supcon"),
        (("image",), False, "simclr"),
        (("text",), False, "simcse"),
        (("text", "text"), False, "pairs"),
        (("image", "text"), True, "clip"),
        (("series",), False, "simclr"),
    ],
)
def test_the_method_that_fits(kinds, labels, wanted):
    assert choose_method(None, Holds(kinds, labels)) == wanted


@pytest.mark.parametrize(
    ("method", "kinds", "message"),
    [
        ("simclrr", ("image",), "there is no method 'simclrr'; did you mean 'simclr'?"),
        ("supcon", ("image",), "needs labels, and the data have none: name the column by label=, or use simclr"),
        ("clip", ("image",), "needs a second column, and the data have one"),
        ("simclr", ("text",), "use simcse"),
        ("simcse", ("image",), "needs texts, and the data are of kind image"),
        ("triplet", ("text",), "needs labels, or a positive and a negative column"),
    ],
)
def test_what_the_data_lack_is_said(method, kinds, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        choose_method(method, Holds(kinds, False))
