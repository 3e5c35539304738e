"""What the joint objective reads of a layer: the right pass, as it was before later layers wrote into it; or a refusal."""

from __future__ import annotations

import copy
import io
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import nearfar as nf

CE, SUPCON = nn.CrossEntropyLoss(), nf.SupConLoss()
X, Y = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
X2, Y2 = torch.randn(12, 8, generator=torch.Generator().manual_seed(1)), torch.arange(12) // 4


class Net(nn.Module):
    """A layer to read, something behind it, and a classifier."""

    def __init__(self, after=nn.Identity(), body=None):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head, self.after = body or nn.Linear(8, 6), nn.Linear(6, 3), after

    def forward(self, x):
        return self.head(self.after(self.body(x)))


def joint(model, **options):
    return nf.Joint(CE, SUPCON, features=model.body, **options)


def by_hand(outputs, y, features):
    return 0.5 * CE(outputs, y) + 0.5 * SUPCON(features, labels=y)


def expected(model, x, y):
    """The joint loss of a copy, whose features are kept before anything behind them runs; and its gradients."""
    model = copy.deepcopy(model)
    torch.manual_seed(3)  # of dropout
    features = model.body(x)
    kept = features.clone()
    loss = by_hand(model.head(model.after(features)), y, kept)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def check(model, loss, x, y):
    wanted, gradients = expected(model, x, y)
    torch.testing.assert_close(loss.detach(), wanted)
    loss.backward()
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def shortcut(f):
    f += torch.linspace(-1, 1, f.numel()).view_as(f)
    return f


def blanked(f):
    f[:, 0] = 0
    return f


WRITES = {
    "relu": nn.ReLU(inplace=True), "function": F.relu_, "leaky": nn.LeakyReLU(0.1, True), "dropout": nn.Dropout(inplace=True),
    "shortcut": shortcut, "scaled": lambda f: f.mul_(-2), "assigned": blanked, "by a view": lambda f: f.view(-1).relu_().view_as(f),
    "twice": lambda f: f.add_(1).mul_(2), "nothing": nn.BatchNorm1d(6),
}  # fmt: skip


@pytest.mark.parametrize("after", WRITES.values(), ids=WRITES.keys())
def test_layers_behind_may_write_into_the_features(after):
    model = Net(after)
    criterion = joint(model)
    torch.manual_seed(3)
    check(model, criterion(model(X), Y), X, Y)


def test_gradients_are_balanced_where_the_features_were_before_they_were_written_to():
    model = Net(nn.ReLU(inplace=True))
    criterion = joint(model, balance="gradient")
    criterion(model(X), Y)
    features = model.body(X)
    norms = [
        torch.autograd.grad(loss, features, retain_graph=True)[0].norm()
        for loss in (CE(model.head(F.relu(features)), Y), SUPCON(features, labels=Y))
    ]
    torch.testing.assert_close(criterion.terms["weight/contrastive"], 0.5 * norms[0] / norms[1])


@pytest.mark.parametrize("pool", ["mean", "first"])
@pytest.mark.parametrize("shape", [(12, 6, 5, 5), (12, 7, 6), (12, 6, 2, 3, 2)])
def test_maps_and_tokens_may_be_written_to(shape, pool):
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer = nn.Identity()
    criterion = nf.Joint(CE, SUPCON, features=layer, pool=pool)
    f = layer(given * 1)
    outputs = f.relu_().flatten(1)[:, :3]
    rows = given.flatten(2).mean(2) if given.ndim > 3 else given[:, 0] if pool == "first" else given.mean(1)
    torch.testing.assert_close(criterion(outputs, Y), by_hand(outputs, Y, rows))


def test_the_first_of_a_tuple_may_be_written_to():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), None

    model = Net(lambda pair: pair[0].relu_(), Pair(8, 6))
    criterion = joint(model)
    torch.testing.assert_close(criterion(model(X), Y), by_hand(model(X), Y, model.body(X)[0]))


def test_a_map_is_not_kept_alive():
    layer, seen = nn.Conv2d(1, 6, 3), []
    criterion = nf.Joint(CE, SUPCON, features=layer)
    layer.register_forward_hook(lambda module, given, output: seen.append(weakref.ref(output)))
    outputs = layer(torch.randn(12, 1, 9, 9)).mean((2, 3))
    assert seen[0]() is None
    assert criterion(outputs, Y) > 0


def test_a_model_whose_layer_was_read_can_be_loaded_again_without_what_was_captured():
    model = Net(nn.ReLU(inplace=True))
    criterion = joint(model)
    outputs = model(X)
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    torch.load(file, weights_only=False)(X2)
    check(model, criterion(outputs, Y), X, Y)


# ---- which pass -----------------------------------------------------------------------------------------------------


def test_passes_that_wait_are_told_apart_in_any_order():
    batches = [(X + k, Y) for k in range(4)]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        model = Net(nn.ReLU(inplace=True))
        criterion = joint(model)
        outputs = [model(x) for x, _ in batches]
        for k in order:
            torch.testing.assert_close(criterion(outputs[k], Y).detach(), expected(model, *batches[k])[0])
        with pytest.raises(RuntimeError, match="Linear has not run since the last call"):
            criterion(outputs[1], Y)


@pytest.mark.parametrize("graph", [False, True])
def test_evaluation_between_a_pass_and_its_loss_changes_nothing(graph):
    model = Net(nn.ReLU(inplace=True))
    criterion = joint(model)
    outputs = model(X)
    model.eval()
    batches = [(X2, Y2), (X, Y2)]
    wanted = [expected(model, *batch)[0] for batch in batches]
    with torch.set_grad_enabled(graph):
        for _ in range(20):
            model(X2)
        for (x, y), value in zip(batches, wanted, strict=True):
            torch.testing.assert_close(criterion.eval()(model(x), y).detach(), value)
    model.train()
    check(model, criterion.train()(outputs, Y), X, Y)


def test_a_pass_that_failed_is_not_taken_for_another():
    model = Net()
    criterion = joint(model)
    outputs, good = model(X), model.after
    model.after = nn.Linear(7, 7)  # of another width
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(X2)
    model.after = good
    check(model, criterion(outputs, Y), X, Y)


def test_a_call_that_failed_has_used_its_pass():
    model = Net()
    criterion = joint(model)
    outputs = model(X)
    with pytest.raises(ValueError, match="there are 5 labels"):
        criterion(outputs, Y, labels=torch.arange(5))
    with pytest.raises(RuntimeError, match="Linear has not run since the last call"):
        criterion(outputs, Y)
    check(model, criterion(model(X2), Y2), X2, Y2)


def test_of_more_passes_than_may_wait_the_first_is_refused():
    model = Net()
    criterion = joint(model)
    outputs = [model(X) for _ in range(9)]
    check(model, criterion(outputs[-1], Y), X, Y)
    with pytest.raises(RuntimeError, match=r"gone: .* and 8 passes wait at most\. Call the criterion right after"):
        criterion(outputs[0], Y)


@pytest.mark.parametrize("wrap", [lambda o: {"loss": None, "logits": o}, lambda o: (1.0, [o])])
def test_outputs_in_a_dict_or_a_tuple_tell_their_pass(wrap):
    model = Net()
    criterion = nf.Joint(lambda outputs, y: torch.zeros(()), SUPCON, features=model.body, alpha=0.0)
    one, _ = wrap(model(X)), model(X2)
    torch.testing.assert_close(criterion(one, Y), SUPCON(model.body(X), labels=Y))


class Several(Net):
    """Its layer runs more than once in a forward pass."""

    def __init__(self, way):
        super().__init__(nn.ReLU(inplace=True))
        self.way, self.mid = way, nn.Linear(6, 8)

    def forward(self, x):
        return self.head(self.way(self, x))


def test_a_layer_that_runs_one_after_the_other_gives_its_last_output():
    model = Several(lambda net, x: net.after(net.body(net.mid(net.after(net.body(x))))))
    criterion = joint(model)
    features = model.body(model.mid(F.relu(model.body(X))))
    torch.testing.assert_close(criterion(model(X), Y), by_hand(model.head(F.relu(features)), Y, features))


def test_a_layer_that_runs_side_by_side_is_refused_where_both_count():
    model = Several(lambda net, x: net.body(x) + net.body(x.flip(0)))
    criterion = joint(model)
    with pytest.raises(
        RuntimeError, match=r"Linear ran 2 times .* cannot be told which run is meant\. Call .*features="
    ):
        criterion(model(X), Y)
    one = Several(lambda net, x: (net.body(x), net.body(x.flip(0)))[0])
    torch.testing.assert_close(joint(one)(one(X), Y), by_hand(one(X), Y, one.body(X)))


def test_a_branch_beside_the_outputs_is_read_where_it_ran_once():
    model = Net()
    side = nn.Linear(8, 5)
    criterion = nf.Joint(CE, SUPCON, features=side)
    outputs, features = model(X), side(X)
    torch.testing.assert_close(criterion(outputs, Y), by_hand(outputs, Y, features))
    side(X), side(X2)
    with pytest.raises(RuntimeError, match="Linear ran 2 times for these outputs, or since the last call"):
        criterion(model(X), Y)


# ---- activation checkpointing, compiled models ----------------------------------------------------------------------


class Checkpointed(Net):
    def __init__(self, after, reentrant):
        super().__init__(after)
        self.reentrant = reentrant

    def inner(self, x):
        return self.after(self.body(x))

    def forward(self, x):
        return self.head(checkpoint(self.inner, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize(
    "after", [nn.Identity(), nn.Tanh(), nn.ReLU(inplace=True)], ids=["plain", "tanh", "written to"]
)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_the_layer_gives_the_same_and_its_second_run_is_nobody_s_pass(after, reentrant):
    model = Checkpointed(after, reentrant)
    criterion = joint(model)
    outputs = model(X.clone().requires_grad_())
    if reentrant and not isinstance(after, nn.Identity):
        with pytest.raises(RuntimeError, match=r"carry no gradient.*checkpoint\(\.\.\., use_reentrant=False\)"):
            criterion(outputs, Y)
        CE(outputs, Y).backward()
    else:
        check(model, criterion(outputs, Y), X, Y)
    with pytest.raises(RuntimeError, match="has not run since the last call"):
        criterion(torch.randn(12, 3, requires_grad=True), Y2)


@pytest.mark.parametrize("after", ["relu", "function", "shortcut"])
def test_a_compiled_model_may_write_into_the_features(after):
    torch.compiler.reset()
    model = Net(WRITES[after])
    criterion = joint(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    check(model, criterion(compiled(X), Y), X, Y)
    first, second = compiled(X), compiled(X2)
    with pytest.raises(
        RuntimeError, match=r"do not come from the last run of Linear, the only one .* Call the criterion"
    ):
        criterion(first, Y)
    assert second.shape == first.shape


def test_a_copy_of_the_model_keeps_nothing_of_its_passes():
    model = Net()
    criterion = joint(model)
    twin = copy.deepcopy(model)
    outputs = model(X)
    twin(X2)
    (hook,) = twin.body._forward_hooks.values()
    assert not hook.waiting
    check(model, criterion(outputs, Y), X, Y)
