"""Joint supervision: its value, what it reads from the model and what it leaves alone, its state, its messages."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nearfar as nf
from nearfar.joint import Constant, Cosine, Linear, Warmup
from nearfar.joint.relation import UNWEIGHTED

CE = nn.CrossEntropyLoss()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Naive(nn.Module):
    """SupCon by loops over pairs, written from its paper, with the calling form of the package's losses."""

    def forward(self, z, labels=None, pairs=None):
        z, terms = F.normalize(z, dim=1), []
        n = len(z)
        for i in range(n):
            weight = [
                float(pairs.relation(slice(i, i + 1), slice(j, j + 1)).weight)
                if pairs
                else float(labels[i] == labels[j])
                for j in range(n)
            ]
            others = [j for j in range(n) if j != i]
            scores = torch.stack([z[i] @ z[j] / 0.1 for j in others])
            positives = torch.tensor([weight[j] for j in others])
            if positives.sum():
                terms.append(scores.logsumexp(0) - (positives * scores).sum() / positives.sum())
        return torch.stack(terms).mean()


class Net(nn.Module):
    """Eight features to three classes, with a layer to read."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


def batch(n=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, generator=generator), torch.arange(n) % 3


# ---- the value ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, None, 1.0])
def test_alpha_mixes_the_task_and_the_contrast_in_value_and_gradient(model, alpha):
    x, y = batch()
    criterion = nf.Joint(CE, Naive(), features=model.body, alpha=alpha)
    criterion(model(x), y).backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    share = 0.5 if alpha is None else alpha
    expected = share * CE(model(x), y) + (1 - share) * Naive()(model.body(x), labels=y)
    expected.backward()
    torch.testing.assert_close(criterion.terms["total"], expected.detach())
    for grad, p in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(grad, p.grad)


def test_the_package_s_own_loss_gives_the_same_as_the_loops(model):
    x, y = batch()
    criterion = nf.Joint(CE, nf.SupConLoss(temperature=0.1), features=model.body)
    loss = criterion(model(x), y)
    torch.testing.assert_close(loss, 0.5 * CE(model(x), y) + 0.5 * Naive()(model.body(x), labels=y))


def test_weights_by_name_or_in_order_and_one_where_left_out(model):
    x, y = batch()
    spread = lambda z, labels: z.var()  # noqa: E731
    losses = {"supcon": Naive(), "spread": spread}
    by_name = nf.Joint(CE, losses, weights={"task": 2.0, "supcon": 0.5})
    in_order = nf.Joint(CE, losses, weights=[2.0, 0.5, 1.0])
    f = model.body(x)
    expected = 2 * CE(model(x), y) + 0.5 * Naive()(f, labels=y) + f.var()
    torch.testing.assert_close(by_name(model(x), y, features=f), expected)
    torch.testing.assert_close(in_order(model(x), y, features=f), expected)
    assert set(by_name.terms) == {"task", "supcon", "spread", "total", "weight/task", "weight/supcon", "weight/spread"}
    assert by_name.terms["weight/supcon"] == 0.5
    assert not any(value.requires_grad for value in by_name.terms.values())
    torch.testing.assert_close(by_name.terms["spread"], f.var().detach())


def test_a_list_is_named_by_its_classes(model):
    criterion = nf.Joint(CE, [Naive(), nf.SupConLoss(), nf.SupConLoss()])
    assert list(criterion.contrastive) == ["naive", "supcon", "supcon_3"]


def test_several_terms_share_what_alpha_leaves(model):
    x, y = batch()
    f = model.body(x)
    loss = nf.Joint(CE, [Naive(), Naive()], alpha=0.4)(model(x), y, features=f)
    torch.testing.assert_close(loss, 0.4 * CE(model(x), y) + 0.6 * 2 * Naive()(f, labels=y))


def test_any_task_and_its_own_labels(model):
    x, y = batch()
    aims = torch.randn(9, 3)
    loss = nf.Joint(F.mse_loss, Naive(), features=model.body)(model(x), aims, labels=y)
    torch.testing.assert_close(loss, 0.5 * F.mse_loss(model(x), aims) + 0.5 * Naive()(model.body(x), labels=y))


def test_pairs_take_the_place_of_labels(model):
    x, y = batch()
    relation = torch.rand(9, 9, generator=torch.Generator().manual_seed(3))
    loss = nf.Joint(CE, nf.SupConLoss(), features=model.body)(model(x), y, pairs=nf.Pairs.from_matrix(relation))
    expected = Naive()(model.body(x), pairs=nf.Pairs.from_matrix(relation))
    torch.testing.assert_close(loss, 0.5 * CE(model(x), y) + 0.5 * expected)


def test_mixed_up_targets_belong_together_by_the_inner_product_of_their_weights(model):
    x, y = batch()
    mixed = 0.7 * F.one_hot(y, 3).float() + 0.3 * F.one_hot(y.flip(0), 3).float()
    loss = nf.Joint(CE, nf.SupConLoss(), features=model.body)(model(x), mixed)
    expected = Naive()(model.body(x), pairs=nf.Pairs.from_matrix(mixed @ mixed.T))
    torch.testing.assert_close(loss, 0.5 * CE(model(x), mixed) + 0.5 * expected)


def test_rows_of_several_views_share_the_labels(model):
    x, y = batch()
    twice = torch.cat([x, x + 0.1])
    loss = nf.Joint(CE, nf.SupConLoss())(model(x), y, features=model.body(twice))
    torch.testing.assert_close(loss, 0.5 * CE(model(x), y) + 0.5 * Naive()(model.body(twice), labels=y.repeat(2)))


def test_a_loss_of_queries_and_keys_is_given_one_view_against_the_other(model):
    x, y = batch()
    f = model.body(torch.cat([x, x + 0.1]))
    criterion = nf.Joint(CE, nf.InfoNCELoss(), alpha=0.0)
    torch.testing.assert_close(criterion(model(x), y, features=f), nf.InfoNCELoss()(f[:9], f[9:], labels=y))


def test_losses_of_two_sides_take_labels_pairs_and_soft_targets_of_both(model):
    x, y = batch()
    f, clip = model.body(torch.cat([x, x + 0.1])), nf.CLIPLoss()
    criterion = nf.Joint(CE, clip, alpha=0.0)
    soft, relation = F.one_hot(y, 3) * 0.7 + 0.1, torch.eye(9)
    torch.testing.assert_close(criterion(model(x), y, features=f), clip(f[:9], f[9:], labels=y))
    expected = clip(f[:9], f[9:], pairs=nf.Pairs.from_matrix(soft @ soft.T))
    torch.testing.assert_close(criterion(model(x), soft, features=f), expected)
    pairs = nf.Pairs.from_matrix(relation)
    torch.testing.assert_close(criterion(model(x), y, pairs=pairs, features=f), clip(f[:9], f[9:]))
    with pytest.raises(TypeError, match="contrastive compares two views: pass 18 rows of features"):
        nf.Joint(CE, nf.VICRegLoss())(model(x), y, features=f[:9])


@pytest.mark.parametrize("name", [name for name, row in nf.LOSSES.items() if row.kind not in ("noise", "moments")])
def test_soft_targets_are_refused_where_weights_say_nothing(name):
    row, y = nf.LOSSES[name], torch.arange(12) % 4
    loss = row.loss(*[4, 6] * (row.kind == "classes"))
    f, outputs, shares = torch.randn(24, 6), torch.randn(12, 4), torch.rand(2, 12, 1)
    soft = shares * F.one_hot(y, 4) + (1 - shares) * F.one_hot(y ^ 1, 4)  # 0 and 1 are mixed, and 2 and 3
    criterion = nf.Joint(CE, loss, alpha=0.0)
    assert criterion(outputs, y, features=f).isfinite()
    if row.kind == "classes":
        with pytest.raises(TypeError, match=r"takes class ids only: .*targets\.argmax\(1\)"):
            criterion(outputs, soft[0], features=f)
    elif name in UNWEIGHTED:
        with pytest.raises(TypeError, match=f"a {name}, knows no degrees of belonging together"):
            criterion(outputs, soft[0], features=f)
        torch.testing.assert_close(
            criterion(outputs.sigmoid(), F.one_hot(y, 4).float(), features=f), loss(f, labels=y.repeat(2))
        )
        weight = soft[0] @ soft[0].T
        assert loss(f[:12], pairs=nf.Pairs.from_matrix(weight)) == loss(f[:12], pairs=nf.Pairs.from_matrix(weight > 0))
    else:
        assert criterion(outputs, soft[0], features=f) != criterion(outputs, soft[1], features=f)


def test_a_loss_of_views_needs_no_labels(model):
    x, _ = batch()
    aims, f = torch.randn(9, 3), model.body(torch.cat([x, x + 0.1]))
    distance = lambda z1, z2: (z1 - z2).square().mean()  # noqa: E731
    loss = nf.Joint(F.mse_loss, distance, alpha=0.0)(model(x), aims, features=f)
    torch.testing.assert_close(loss, distance(f[:9], f[9:]))


def test_ignored_targets_are_unknown_labels(model):
    x, y = batch()
    y[:3] = -100
    loss = nf.Joint(CE, nf.SupConLoss(), features=model.body)(model(x), y)
    expected = 0.5 * CE(model(x), y) + 0.5 * Naive()(model.body(x)[3:], labels=y[3:])
    torch.testing.assert_close(loss, expected)


# ---- reading the model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "pool", "expected"),
    [
        ((4, 5), "mean", lambda f: f),
        ((4, 5, 2, 3), "mean", lambda f: f.mean((2, 3))),
        ((4, 5, 2, 3), "first", lambda f: f.mean((2, 3))),
        ((4, 7, 5), "mean", lambda f: f.mean(1)),
        ((4, 7, 5), "first", lambda f: f[:, 0]),
        ((4, 5, 2, 3, 2), "mean", lambda f: f.mean((2, 3, 4))),
    ],
)
def test_features_of_more_dimensions_are_pooled(shape, pool, expected):
    f, y = torch.randn(shape), torch.tensor([0, 1, 0, 1])
    criterion = nf.Joint(CE, Naive(), alpha=0.0, pool=pool)
    torch.testing.assert_close(criterion(torch.randn(4, 2), y, features=f), Naive()(expected(f), labels=y))


def test_captured_features_are_used_once(model):
    x, y = batch()
    criterion = nf.Joint(CE, Naive(), features=model.body)
    outputs = model(x)
    criterion(outputs, y)
    with pytest.raises(RuntimeError, match=r"Sequential has not run since the last call\. Run the model"):
        criterion(outputs, y)


def test_features_at_the_call_win_and_use_up_the_captured_ones(model):
    x, y = batch()
    criterion = nf.Joint(CE, Naive(), features=model.body, alpha=0.0)
    f = torch.randn(9, 4)
    torch.testing.assert_close(criterion(model(x), y, features=f), Naive()(f, labels=y))
    with pytest.raises(RuntimeError, match="has not run since"):
        criterion(torch.randn(9, 3), y)


def test_features_that_never_came_or_have_no_gradient_are_named(model):
    x, y = batch()
    with pytest.raises(RuntimeError, match=r"no features: build the criterion with features=model\.avgpool"):
        nf.Joint(CE, Naive())(model(x), y)
    criterion = nf.Joint(CE, Naive(), features=model.body)
    with pytest.raises(RuntimeError, match="Sequential has not run"):
        criterion(model.head(torch.randn(9, 6)), y)
    with torch.no_grad():
        model(x)
    with pytest.raises(RuntimeError, match=r"carry no gradient.*torch\.no_grad"):
        criterion(model.head(torch.randn(9, 6)), y)


def test_evaluation_is_fine_and_moves_no_state(model):
    x, y = batch()
    criterion = nf.Joint(
        CE, Naive(), features=model.body, readout="prototypes", normalize="batchnorm", alpha=Linear(1.0, 0.0, steps=4)
    )
    criterion(model(x), y)
    before = copy.deepcopy(criterion.state_dict())
    model.eval()
    with torch.no_grad():
        one = criterion(model(x), y)
    two = criterion.eval()(model(x), y)
    torch.testing.assert_close(one, two)
    assert before.keys() == criterion.state_dict().keys()
    for name, value in criterion.state_dict().items():
        torch.testing.assert_close(value, before[name])
    assert criterion.step == 1


def test_the_model_stays_out_of_the_criterion(model):
    x, y = batch()
    criterion = nf.Joint(CE, Naive(), features=model.body)
    criterion(model(x), y)
    assert not list(criterion.parameters())
    assert set(criterion.state_dict()) == {"step"}
    assert set(model.state_dict()) == set(Net().state_dict())


def test_the_hook_goes_with_the_criterion_or_on_request(model):
    hooks = model.body._forward_hooks
    criterion = nf.Joint(CE, Naive(), features=model.body)
    assert len(hooks) == 1
    criterion.close()
    assert not hooks
    criterion.attach(model.body)
    criterion.attach(model.head)
    assert not hooks
    assert len(model.head._forward_hooks) == 1
    del criterion
    gc.collect()
    assert not model.head._forward_hooks


def test_the_criterion_does_not_keep_the_model_alive(model):
    criterion = nf.Joint(CE, Naive(), features=(net := Net()).body)
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None
    criterion.close()


def test_copies_of_the_criterion_read_no_layer_until_told_to(model):
    x, y = batch()
    criterion = nf.Joint(CE, nf.SupConLoss(), features=model.body, readout="prototypes")
    expected = criterion(model(x), y)
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        with pytest.raises(RuntimeError, match=r"attach\(layer\)"):
            twin(model(x), y)
        twin.attach(model.body)
        torch.testing.assert_close(twin(model(x), y), expected)
    torch.testing.assert_close(criterion(model(x), y), expected)


def test_the_model_can_be_copied_and_saved_while_its_layer_is_read(model):
    x, y = batch()
    criterion = nf.Joint(CE, Naive(), features=model.body)
    expected = model(x)
    twin = copy.deepcopy(model)  # with features captured and not used yet
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), expected)
    twin(torch.randn(2, 8))
    torch.testing.assert_close(criterion(expected, y), 0.5 * CE(expected, y) + 0.5 * Naive()(model.body(x), labels=y))


class Wraps(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        return self.form(x)


def test_a_layer_that_returns_a_tuple_gives_its_first_and_another_is_named():
    y = torch.tensor([0, 1, 0])
    f = torch.randn(3, 4)
    layer = Wraps(lambda x: (x, None))
    criterion = nf.Joint(CE, Naive(), features=layer, alpha=0.0)
    layer(f)
    torch.testing.assert_close(criterion(torch.randn(3, 2), y), Naive()(f, labels=y))
    layer.form = lambda x: {"last_hidden_state": x}
    layer(f)
    with pytest.raises(
        TypeError, match="Wraps returns a dict with last_hidden_state, not a tensor: name a layer inside"
    ):
        criterion(torch.randn(3, 2), y)


# ---- schedules, state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(0.3), [0.3] * 6),
        (Linear(1.0, 0.2, steps=4), [1.0, 0.8, 0.6, 0.4, 0.2, 0.2]),
        (Linear(0.0, 1.0, steps=2, begin=2), [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]),
        (Cosine(1.0, 0.0, steps=4), [1.0, 0.8535534, 0.5, 0.1464466, 0.0, 0.0]),
        (Warmup(0.8, steps=4), [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]),
    ],
)
def test_schedules_move_with_training_calls(model, schedule, expected):
    x, y = batch()
    criterion, by_weight = nf.Joint(CE, Naive(), alpha=schedule), nf.Joint(CE, Naive(), weights=[1.0, schedule])
    for value in expected:
        f = model.body(x)
        criterion(model(x), y, features=f)
        by_weight(model(x), y, features=f)
        assert criterion.terms["weight/task"].item() == pytest.approx(value, abs=1e-6)
        assert criterion.terms["weight/contrastive"].item() == pytest.approx(1 - value, abs=1e-6)
        assert by_weight.terms["weight/contrastive"].item() == pytest.approx(value, abs=1e-6)
        with torch.no_grad():  # not a training call
            criterion(model(x), y, features=f)


def everything(model):
    return nf.Joint(
        CE, {"supcon": nf.SupConLoss(temperature=0.1, learnable=True), "naive": Naive()}, features=model.body,
        weights={"task": 1.0, "supcon": Cosine(1.0, 0.0, steps=9)}, balance="gradient", head=5,
        normalize="batchnorm", readout="prototypes",
    )  # fmt: skip


def test_a_state_dict_carries_on_where_it_was_saved(model):
    criterion = everything(model)
    for seed in range(3):
        x, y = batch(seed=seed)
        criterion(model(x), y)
    twin = everything(model)
    twin.load_state_dict(criterion.state_dict())
    for seed in range(3, 6):
        x, y = batch(seed=seed)
        criterion(model(x), y)
        twin(model(x), y)
        for name, value in criterion.terms.items():
            torch.testing.assert_close(twin.terms[name], value, rtol=0, atol=0)
    assert twin.step == 6
    torch.testing.assert_close(twin.predict(model.body(x)), criterion.predict(model.body(x)))


# ---- balance, head, normalisation -----------------------------------------------------------------------------------


def test_balanced_gradients_are_as_long_as_the_weights_say(model):
    x, y = batch()
    criterion = nf.Joint(
        CE, {"near": Naive(), "far": lambda z, labels: 1e-3 * z.norm()}, features=model.body,
        weights=[1.0, 0.5, 2.0], balance="gradient",
    )  # fmt: skip
    outputs = model(x)
    criterion(outputs, y)
    f = model.body(x).detach().requires_grad_()
    norms = [
        torch.autograd.grad(loss, f)[0].norm() for loss in (CE(model.head(f), y), Naive()(f, labels=y), 1e-3 * f.norm())
    ]
    pulls = [
        criterion.terms[f"weight/{name}"] * norm for name, norm in zip(("task", "near", "far"), norms, strict=True)
    ]
    torch.testing.assert_close(torch.stack(pulls) / pulls[0], torch.tensor([1.0, 0.5, 2.0]))


def test_balancing_averages_over_steps_and_passes_over_batches_without_positives(model):
    criterion = nf.Joint(CE, nf.SupConLoss(), features=model.body, balance="gradient")
    norms = []
    for seed in range(3):
        x, y = batch(seed=seed)
        f = model.body(x).detach().requires_grad_()
        pair = CE(model.head(f), y), Naive()(f, labels=y)
        norms.append(torch.stack([torch.autograd.grad(loss, f)[0].norm() for loss in pair]))
        criterion(model(x), y)
    mean = torch.stack(norms).mean(0)  # a plain average for the first ten
    torch.testing.assert_close(criterion.terms["weight/contrastive"], 0.5 * mean[0] / mean[1], rtol=1e-4, atol=0)
    before = criterion.balance.norms[1].clone()
    x, y = batch()
    criterion(model(x), torch.zeros_like(y), labels=torch.arange(9))
    assert criterion.balance.norms[1] == before
    assert criterion.terms["total"].isfinite()


def test_balancing_says_when_features_are_not_on_the_way(model):
    x, y = batch()
    criterion = nf.Joint(CE, Naive(), balance="gradient")
    with pytest.raises(RuntimeError, match="'task' does not depend on these features"):
        criterion(model(x), y, features=model.body(x))
    with pytest.raises(RuntimeError, match="carry no gradient to balance"):
        criterion(model(x), y, features=model.body(x).detach())


@pytest.mark.parametrize("head", [5, nn.Linear(6, 5)])
def test_the_projection_head_is_the_criterion_s_and_learns(model, head):
    x, y = batch()
    criterion = nf.Joint(CE, Naive(), features=model.body, head=head)
    optimiser = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.5)
    criterion(model(x), y).backward()
    before = [p.detach().clone() for p in criterion.parameters()]
    optimiser.step()
    assert before
    assert all(not torch.equal(old, new) for old, new in zip(before, criterion.parameters(), strict=True))
    torch.testing.assert_close(
        criterion(model(x), y), 0.5 * CE(model(x), y) + 0.5 * Naive()(criterion.head(model.body(x)), labels=y)
    )


def test_features_can_be_standardised_first(model):
    x, y = batch()
    loss = nf.Joint(CE, Naive(), features=model.body, normalize="batchnorm", alpha=0.0)(model(x), y)
    f = model.body(x)
    z = (f - f.mean(0)) / (f.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(loss, Naive()(z, labels=y))


# ---- prototypes -----------------------------------------------------------------------------------------------------


def test_prototypes_follow_the_features_and_predict(model):
    criterion = nf.Joint(CE, Naive(), features=model.body, readout="prototypes")
    sums = torch.zeros(3, 6)
    for seed in range(4):
        x, y = batch(seed=seed)
        criterion(model(x), y)
        z = F.normalize(model.body(x), dim=1)
        sums = 0.9 * sums + torch.stack([z[y == c].sum(0) for c in range(3)])
    f, outputs = model.body(x).detach(), model(x).detach()
    logits = 10 * F.cosine_similarity(f[:, None], sums[None], dim=2)
    torch.testing.assert_close(criterion.logits(f), logits)
    assert criterion.predict(f).tolist() == logits.argmax(1).tolist()
    mixed = outputs.log_softmax(1) + logits.log_softmax(1)
    torch.testing.assert_close(criterion.logits(f, outputs), mixed)
    assert criterion.predict(f, outputs).tolist() == mixed.argmax(1).tolist()


def test_prototypes_take_every_view_and_soft_labels(model):
    x, y = batch()
    criterion = nf.Joint(CE, Naive(), readout="prototypes")
    f = model.body(torch.cat([x, x + 1]))
    criterion(model(x), y, features=f)
    z = F.normalize(f.detach(), dim=1)
    one, two = (torch.stack([part[y == c].sum(0) for c in range(3)]) for part in z.chunk(2))
    torch.testing.assert_close(criterion.prototypes.sums, one + two)
    soft = nf.Joint(CE, nf.SupConLoss(), features=model.body, readout="prototypes")
    weights = torch.rand(9, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    soft(model(x), weights)
    torch.testing.assert_close(soft.prototypes.sums, weights.T @ F.normalize(model.body(x).detach(), dim=1))


def test_exact_prototypes_from_features_batches_or_a_model(model):
    x, y = batch(30)
    criterion = nf.Joint(CE, Naive(), features=model.body, readout="prototypes")
    f = model.body(x)
    z = F.normalize(f.detach(), dim=1)
    expected = torch.stack([z[y == c].sum(0) for c in range(3)])
    criterion.fit_prototypes(f, y)
    torch.testing.assert_close(criterion.prototypes.sums, expected)
    parts = list(zip(x.split(7), y.split(7), strict=True))
    criterion.fit_prototypes([(model.body(a), b) for a, b in parts])
    torch.testing.assert_close(criterion.prototypes.sums, expected)
    model.train()
    criterion.fit_prototypes(parts, model=model)
    torch.testing.assert_close(criterion.prototypes.sums, expected)
    assert model.training


def test_prototypes_that_are_not_kept_are_refused(model):
    with pytest.raises(RuntimeError, match='build it with readout="prototypes"'):
        nf.Joint(CE, Naive()).predict(torch.randn(3, 6))
    with pytest.raises(RuntimeError, match="there are no prototypes yet"):
        nf.Joint(CE, Naive(), readout="prototypes").predict(torch.randn(3, 6))


def test_prototypes_are_of_the_task_s_classes_whatever_the_contrast_is_told(model):
    x, y = batch()
    criterion = nf.Joint(CE, nf.SupConLoss(), features=model.body, readout="prototypes")
    z = F.normalize(model.body(x).detach(), dim=1)
    expected = torch.stack([z[y == c].sum(0) for c in range(3)])
    criterion(model(x), y, labels=torch.arange(9))
    torch.testing.assert_close(criterion.prototypes.sums, expected)
    criterion(model(x), y, pairs=nf.Pairs.aligned(9))
    torch.testing.assert_close(criterion.prototypes.sums, 1.9 * expected)
    aims = torch.randn(9, 3)
    with pytest.raises(ValueError, match="prototypes need classes, which neither targets nor labels tell"):
        nf.Joint(F.mse_loss, nf.SupConLoss(), features=model.body, readout="prototypes")(
            model(x), aims, pairs=nf.Pairs.aligned(9)
        )


def test_fitting_prototypes_says_what_is_missing_and_leaves_the_mode_alone(model):
    x, y = batch()
    criterion = nf.Joint(CE, Naive(), features=model.body, readout="prototypes")
    with pytest.raises(ValueError, match="the number of classes is not known before the first training call"):
        criterion.fit_prototypes([(model.body(x), y)])
    criterion(model(x), y)
    with pytest.raises(ValueError, match="features were given without labels"):
        criterion.fit_prototypes(model.body(x))
    with pytest.raises(ValueError, match="there was no batch to fit prototypes on"):
        criterion.fit_prototypes([])
    with pytest.raises(RuntimeError):
        criterion.fit_prototypes([(x[:, :3], y)], model=model)
    assert model.training


def test_a_loop_of_one_s_own_may_set_alpha(model):
    x, y = batch()
    criterion = nf.Joint(CE, Naive(), features=model.body)
    criterion.alpha = 1.0
    torch.testing.assert_close(criterion(model(x), y), CE(model(x), y))


def test_prototypes_ask_for_the_number_of_classes_where_outputs_do_not_tell(model):
    y = torch.arange(9) % 3
    with pytest.raises(ValueError, match="pass num_classes="):
        nf.Joint(F.mse_loss, Naive(), readout="prototypes")(
            torch.randn(9), torch.randn(9), y, features=torch.randn(9, 4)
        )
    criterion = nf.Joint(F.mse_loss, Naive(), readout="prototypes", num_classes=3)
    criterion(torch.randn(9), torch.randn(9), y, features=torch.randn(9, 4))
    assert criterion.prototypes.sums.shape == (3, 4)


# ---- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha is Constant\(value=1.5\): wanted from 0 to 1"),
        ({"alpha": Linear(0.0, 2.0, steps=3)}, "wanted from 0 to 1"),
        ({"alpha": "half"}, "alpha is a str: wanted a number or a schedule"),
        ({"alpha": float("nan")}, "value=nan: wanted a finite number"),
        ({"alpha": 0.5, "weights": [1.0, 1.0]}, "alpha and weights were both given"),
        ({"weights": {"task": 1.0, "contrastve": 1.0}}, "no term: did you mean 'contrastive'"),
        ({"weights": {"contrastive": -1.0}}, "the weight of contrastive is .*wanted 0 or more"),
        ({"weights": [1.0]}, "1 weights were given for 2 terms: wanted one each for task, contrastive"),
        ({"balance": "norm"}, "balance='norm' is not known: pass 'gradient' or None"),
        ({"normalize": "layer"}, "normalize='layer' is not known"),
        ({"readout": "knn"}, "readout='knn' is not known: pass 'prototypes' or None"),
        ({"pool": "max"}, "pool='max' is not known"),
        ({"head": 0}, "head is 0: wanted a width of at least 1"),
        ({"features": torch.randn(3, 4)}, "features is a Tensor, wanted a layer .* go to the call"),
        ({"features": "avgpool"}, "features is a str, wanted a layer of the model such as model.avgpool"),
    ],
)
def test_bad_options_say_what_was_wanted(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        nf.Joint(CE, Naive(), **options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({}, "no contrastive loss was given"),
        ({"task": Naive()}, "a contrastive loss is called 'task'"),
        ({"a.b": Naive()}, "without . and /"),
        ([Naive(), 3], "contrastive loss 'int' is a int: wanted a loss such as nf.SupConLoss()"),
    ],
)
def test_bad_losses_say_what_was_wanted(losses, message):
    with pytest.raises((ValueError, TypeError), match=message):
        nf.Joint(CE, losses)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": torch.rand(9)}, r"targets are torch.float32 \(9,\), which do not say .* pass labels="),
        ({"targets": torch.zeros(9, 2, 2, dtype=torch.int64)}, r"torch.int64 \(9, 2, 2\), which do not say"),
        ({"targets": torch.randn(9, 3)}, r"torch.float32 \(9, 3\), which do not say"),
        ({"targets": torch.rand(9, 3) + 1}, "which do not say"),
        ({"targets": torch.ones(9, dtype=torch.bool)}, r"torch.bool \(9,\)"),
        ({"targets": torch.tensor(1)}, r"torch.int64 \(\), which do not say"),
        ({"targets": {"y": 1}}, "targets are dict, which do not say"),
        ({"labels": torch.rand(9)}, r"labels are torch.float32: pass integers, labels.long\(\)"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, "features have 9 rows but there are 4 labels.*nn.DataParallel"),
        ({"labels": torch.zeros(0, dtype=torch.int64)}, "features have 9 rows but there are 0 labels"),
        ({"labels": torch.zeros(9).long(), "pairs": nf.Pairs.aligned(9)}, "labels and pairs were both given"),
        ({"features": torch.randn(9)}, r"features have shape \(9,\): wanted \(n, d\)"),
    ],
)
def test_bad_calls_say_what_was_wanted(arguments, message):
    criterion = nf.Joint(lambda outputs, targets: outputs.mean(), Naive())
    given = {"targets": torch.arange(9) % 3, "features": torch.randn(9, 4), **arguments}
    with pytest.raises(ValueError, match=message):
        criterion(torch.randn(9, 3), **given)


def test_losses_that_cannot_be_told_say_so():
    y, f = torch.arange(9) % 3, torch.randn(9, 4)
    ids = nf.Joint(CE, {"ids": lambda z, labels: z.sum()})
    with pytest.raises(TypeError, match=r"ids takes class ids only: .*targets\.argmax\(1\)"):
        ids(torch.randn(9, 3), F.one_hot(y).float(), features=f)
    with pytest.raises(TypeError, match="ids takes class ids only: pass the criterion labels="):
        ids(torch.randn(9, 3), y, pairs=nf.Pairs.aligned(9), features=f)
    with pytest.raises(TypeError, match="views compares two views: pass 18 rows"):
        nf.Joint(CE, {"views": lambda a, b: (a - b).mean()})(torch.randn(9, 3), y, features=f)
    with pytest.raises(ValueError, match=r'the task loss returned shape \(9,\).*reduction="mean"'):
        nf.Joint(nn.CrossEntropyLoss(reduction="none"), Naive())(torch.randn(9, 3), y, features=f)


@pytest.mark.parametrize(("cls", "steps"), [(Warmup, 0), (Linear, -1), (Cosine, 0)])
def test_schedules_refuse_no_steps(cls, steps):
    with pytest.raises(ValueError, match=f"{cls.__name__} takes {steps} steps: wanted at least 1"):
        cls(*([1.0] if cls is Warmup else [1.0, 0.0]), steps=steps)


# ---- mixed precision, compiled models -------------------------------------------------------------------------------


def test_under_autocast_and_a_gradient_scaler(model):
    x, y = batch()
    criterion = nf.Joint(CE, nf.SupConLoss(), features=model.body, balance="gradient", readout="prototypes")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    exact = criterion(model(x), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(model(x), y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)
    scaler.scale(loss).backward()
    scaler.unscale_(optimiser)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    scaler.step(optimiser)


def test_a_model_compiled_before_its_layer_was_read_is_named(model):
    x, y = batch()
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    criterion = nf.Joint(CE, nf.SupConLoss(), features=model.body)
    with pytest.raises(RuntimeError, match=r"does not see the hook: call torch\.compiler\.reset\(\)"):
        criterion(compiled(x), y)
    torch.compiler.reset()
    assert criterion(compiled(x), y) > 0


def test_balancing_within_one_compiled_graph_is_refused(model):
    x, y = batch()
    torch.compiler.reset()
    criterion = nf.Joint(CE, nf.SupConLoss(), features=model.body, balance="gradient")
    with pytest.raises(RuntimeError, match=r"'task' does not depend on these features.*torch\.compile graph"):
        criterion(torch.compile(model, backend="aot_eager")(x), y)


def test_a_compiled_model_gives_its_features(model):
    x, y = batch()
    torch.compiler.reset()
    criterion = nf.Joint(CE, nf.SupConLoss(), features=model.body)
    expected = criterion(model(x), y)
    expected.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        loss = criterion(compiled(x), y)
        torch.testing.assert_close(loss, expected)
        model.zero_grad()
        loss.backward()
        for grad, p in zip(grads, model.parameters(), strict=True):
            torch.testing.assert_close(p.grad, grad)
