"""The main job: fair arms, an honest result, and nothing lost when it is stopped."""

from __future__ import annotations

import json
import time
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import nearfar as nf
from nearfar.compare import ARMS, CompareConfig, Comparison, Interrupted
from nearfar.compare.convergence import compare
from nearfar.compare.inputs import make_task
from nearfar.compare.learner import Learner
from nearfar.compare.record import Look, Run, RunFolder
from nearfar.compare.summary import summarize
from nearfar.compare.sweep import choose
from nearfar.compare.trainer import Trainer
from nearfar.compare.verdict import judge
from nearfar.encoders.factory import find_factory
from nearfar.training.loop import Diverged, fit, shuffled_batches
from studies import EVERY, SMALL, arriving, blobs, study, tiny

ALL = tuple(ARMS)


def small(tmp_path, **options):
    given = SMALL | {"data": blobs(), "model": tiny, "out": tmp_path / "run"} | options
    return compare(**(given | {"out": None if given["out"] is None else str(given["out"])}))


def accuracies(folder) -> dict[Run, list[float]]:
    return {run: curve.accuracy for run, curve in RunFolder.open(folder).finished().items()}


# ---- the comparison is fair -----------------------------------------------------------------------------------------


class Spy(nn.Module):
    """Notes which rows it is shown, by the number in their first feature, and in which mode."""

    seen: ClassVar[list[tuple[bool, list[int]]]] = []

    def __init__(self, in_shape, num_classes):
        super().__init__()
        self.net = tiny(in_shape, num_classes)

    def forward(self, x):
        Spy.seen.append((self.training, (x[:, 0] * 1000).round().long().tolist()))
        return self.net(x)


@pytest.fixture
def spied(tmp_path):
    inputs, labels = blobs(120)
    inputs[:, 0] = torch.arange(120) / 1000
    data = (inputs[:80], labels[:80], inputs[80:], labels[80:])
    shown, train = [], Spy.seen

    def run(**options):
        Spy.seen = []
        result = small(tmp_path, data=data, model=Spy, **options)
        shown.extend(Spy.seen)
        return result, shown

    yield run
    Spy.seen = train


def test_the_test_rows_are_never_seen_while_choosing_nor_trained_on(spied):
    _, shown = spied(seeds=1, rates=(1e-3, 1e-2), budget=3)
    test_rows = set(range(80, 120))
    for training, rows in shown:
        assert not (training and test_rows & set(rows))
    watched = [set(rows) for training, rows in shown if not training and len(rows) > 2]  # 2: the check at the start
    # two arms, three trials and three evaluations each on validation rows; then one seed each on the test rows
    assert [rows == test_rows for rows in watched] == [False] * 18 + [True] * 6
    validation = set.union(*watched[:18])
    assert not validation & test_rows
    trained = {row for training, rows in shown if training for row in rows}
    # the check at the start takes the first training rows; none of what is trained on is validated on
    assert not trained & validation


def test_all_arms_see_the_same_batches_and_start_from_the_same_weights(spied, tmp_path):
    _, shown = spied(arms=ALL, seeds=1, steps=8, batch_size=16)
    batches = [rows for training, rows in shown if training and len(rows) == 16]
    steps = 3 + 8  # each is warmed up for three steps, as this process measures it for the first time
    measured = batches[-steps * len(ALL) :]
    for arm in range(1, len(ALL)):
        assert measured[steps * arm : steps * arm + steps] == measured[:steps]
    assert measured[0] != measured[1]

    config = CompareConfig().resolved(100, 6)
    task = make_task(blobs(), config)
    trainer = Trainer(config, task, tiny, nf.SupConLoss(), nn.CrossEntropyLoss())
    first = [trainer.learner(Run("measure", arm, 1e-2, 1.0, 3)).network for arm in ALL]
    other = trainer.learner(Run("measure", "task", 1e-2, 1.0, 4)).network
    for network in first:
        torch.testing.assert_close(network[0].weight, first[0][0].weight, rtol=0, atol=0)
    torch.testing.assert_close(first[1][2][1].weight, first[0][2].weight, rtol=0, atol=0)  # BatchNorm + the same linear
    assert not torch.equal(other[0].weight, first[0][0].weight)


def test_every_arm_gets_the_same_number_of_trials_and_other_seeds_than_it_is_measured_with(tmp_path):
    arms = ("task", "joint", "prototypes")
    small(tmp_path, arms=arms, rates=(1e-3, 1e-2), budget=4, sweep_seeds=2, steps=2, eval_every=1)
    runs = RunFolder.open(tmp_path / "run").finished()
    for arm in arms:
        swept = [run for run in runs if run.stage == "sweep" and run.arm == arm]
        assert len({(run.rate, run.weight) for run in swept}) == 4
        assert len(swept) == 8
        measured = {run.seed for run in runs if run.stage == "measure" and run.arm == arm}
        assert len(measured) == 2
        assert not measured & {run.seed for run in swept}


def test_knobs_are_paid_from_the_same_budget_as_rates():
    score = lambda rate, weight: -abs(np.log(rate / 5e-3)) - abs(np.log(weight / 0.3))  # noqa: E731
    rates = (1e-3, 3e-3, 1e-2, 3e-2)
    plain, joint = (choose(ARMS[name], rates, 6, score) for name in ("task", "joint"))
    assert len(plain.trials) == len(joint.trials) == 6
    assert {weight for _, weight, _ in plain.trials} == {1.0}
    assert plain.rate == 5.29e-3  # half a step above 3e-3, which it had the budget to try
    assert (joint.rate, joint.weight) == (3e-3, 0.3)
    assert not plain.edge


def test_a_best_rate_at_the_end_of_the_range_is_told():
    choice = choose(ARMS["task"], (1e-3, 1e-2), 2, lambda rate, weight: rate)
    assert choice.rate == 1e-2
    assert choice.edge


def test_rows_are_counted_so_that_two_views_are_not_taken_for_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny((6,), 3)

        def forward(self, x):
            return self.net(x)

    learner = Learner(ARMS["task"], Twice(), 3, task=nn.CrossEntropyLoss(), contrastive=nf.SupConLoss())
    inputs, labels = blobs(20)
    learner.loss(inputs, labels)
    learner.accuracy(inputs, labels)  # evaluation is not training
    assert learner.rows == 20
    learner.loss(torch.cat([inputs, inputs]), torch.cat([labels, labels]))
    assert learner.rows == 60


def test_the_clock_runs_only_while_it_trains():
    weight = nn.Parameter(torch.ones(()))
    pauses = []
    for pause in fit(
        lambda batch: weight**2, torch.optim.SGD([weight], 0.1), iter([torch.zeros(1)] * 9), steps=4, every=2
    ):
        time.sleep(0.2)
        pauses.append(pause)
    assert [pause.step for pause in pauses] == [2, 4]
    assert 0 < pauses[0].seconds < pauses[1].seconds < 0.2


def test_batches_of_a_pass_are_apart_and_orders_differ():
    batches = shuffled_batches(10, 3, torch.Generator().manual_seed(0))
    first = [next(batches) for _ in range(3)]
    assert len(torch.cat(first).unique()) == 9
    second = [next(batches) for _ in range(3)]
    assert torch.cat(first).tolist() != torch.cat(second).tolist()
    with pytest.raises(ValueError, match="batch size 11 for 10 rows"):
        next(shuffled_batches(10, 11, torch.Generator()))


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    few = {"arms": ALL, "seeds": 1, "steps": 4, "eval_every": 2}
    small(tmp_path, out=tmp_path / "a", **few)
    torch.manual_seed(77)
    small(tmp_path, out=tmp_path / "b", **few)
    assert accuracies(tmp_path / "a") == accuracies(tmp_path / "b")


def test_the_caller_s_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    small(tmp_path)
    torch.testing.assert_close(torch.rand(3), expected)


def test_every_arm_learns(tmp_path):
    result = small(tmp_path, arms=ALL, steps=30, eval_every=15, seeds=1)
    assert all(arm.final.lower > 0.9 for arm in result.arms)
    assert result.complete


# ---- the result is honest -------------------------------------------------------------------------------------------


def test_medians_speedups_and_targets_by_hand():
    about, runs = study(
        {"task": arriving(8, 8, 10, 12, 12), "control": arriving(5, 5, 5, 5, 5), "joint": arriving(4, 4, 5, 6, 6)},
        slower={"joint": 2.0}, target=(0.8, 0.95),
    )  # fmt: skip
    result = summarize(about, runs)
    task, joint = result["task"].reach[0], result["joint"].reach[0]
    assert task.steps == (100.0, 100.0)
    assert joint.steps == (50.0, 50.0)
    assert joint.seconds == pytest.approx((1.0, 1.0))
    assert task.rows == (6400.0, 6400.0)
    assert joint.gain_steps is not None
    # looks are 10 steps apart: 70 to 80 over 30 to 40 at the fastest pairs, and the slower ones lie in between
    assert (joint.gain_steps.lower, joint.gain_steps.low, joint.gain_steps.high) == (2.0, 70 / 40, 80 / 30)
    assert joint.gain_seconds is not None
    assert joint.gain_seconds.lower == pytest.approx(1.0)
    assert result.rivals[0] == "control"
    assert joint.own_steps is not None
    assert joint.own_steps.lower == 1.0
    assert judge(joint.own_steps) == "no gain"
    never = result["joint"].reach[1]
    assert (never.reached, never.steps) == (0, (200.0, np.inf))
    assert result.contrast == "joint"
    assert result.complete


def test_targets_nobody_set_are_parts_of_the_baselines_best_mean():
    accuracy = [[0.1, 0.5, 0.8, 0.7], [0.1, 0.5, 0.6, 0.7]] * 3
    result = summarize(*study({"task": accuracy, "joint": accuracy}))
    assert [target.accuracy for target in result.targets] == pytest.approx([0.63, 0.665, 0.693, 0.7])
    assert result.headline == 1


def test_the_rival_is_the_best_arm_without_contrast_even_if_it_is_the_baseline():
    slow, fast = arriving(10, 10, 10, 10, 10), arriving(5, 5, 5, 5, 5)
    assert summarize(*study({"task": fast, "control": slow, "joint": fast})).rivals[1] == "task"
    result = summarize(*study({"task": slow, "batchnorm": fast, "control": slow, "joint": fast}))
    assert result.rivals[1] == "batchnorm"
    assert "cross-entropy, batch-normalised features" in "".join(result.verdict)


def test_without_a_control_the_head_is_not_credited_to_the_contrast():
    result = summarize(*study({"task": arriving(*[10] * 5), "joint": arriving(*[4] * 5)}))
    assert "what the head brings is not told from what the contrast brings" in result.verdict[2]


@pytest.mark.parametrize(
    ("task", "control", "joint", "words"),
    [
        ((10, 11, 12, 13, 14), (9, 10, 11, 12, 13), (4, 4, 5, 5, 6), "2.20× of it stays against the best"),
        ((10, 11, 12, 13, 14), (4, 4, 5, 5, 6), (4, 4, 5, 5, 6), "no gain is shown against the best arm without"),
        ((10, 11, 12, 13, 14), (2, 2, 2, 2, 2), (4, 4, 5, 5, 6), "the best arm without contrast is sooner still"),
        ((8, 9, 10, 11, 12), (8, 9, 10, 11, 12), (7, 12, 8, 12, 10), "shows no gain over plain cross-entropy"),
        ((5, 5, 5, 5, 5), (6, 6, 6, 6, 6), (8, 8, 9, 9, 10), "converges later than plain cross-entropy"),
    ],
)
def test_the_verdict_says_what_the_interval_says(task, control, joint, words):
    arms = {"task": arriving(*task), "control": arriving(*control), "joint": arriving(*joint)}
    gist = summarize(*study(arms)).verdict[0]
    assert words in gist


def test_a_bound_is_never_printed_as_a_value():
    arms = {"task": arriving(0, 0, 0, 18, 0), "joint": arriving(4, 4, 5, 5, 5)}
    result = summarize(*study(arms, target=(0.8,)))
    words = str(result)
    assert "≥ 200 (1/5)" in words
    assert "≥ 4.00×" in words
    assert "≥ 3.40×" in words  # 170 / 50: resamples of the one that arrived, taken at its earliest
    assert "converges sooner" in result.verdict[0]
    turned = summarize(*study({"task": arms["joint"], "joint": arms["task"]}, target=(0.8,)))
    assert "≤ 0.25×" in str(turned)
    assert "later" in turned.verdict[0]


def test_neither_arm_arriving_is_no_gain():
    arms = {"task": arriving(0, 0, 0, 0, 0), "joint": arriving(0, 0, 0, 0, 0)}
    result = summarize(*study(arms, target=(0.8,)))
    assert "shows no gain" in result.verdict[0]
    assert "open (95% interval open)" in result.verdict[1]


def test_too_few_seeds_show_nothing_and_say_so():
    result = summarize(*study({"task": arriving(10, 10, 10), "joint": arriving(2, 2, 2)}))
    assert "shows no gain" in result.verdict[0]
    assert any("Too few seeds (3)" in sentence for sentence in result.verdict)


def test_steps_that_send_more_rows_through_the_network_are_told():
    about, runs = study({"task": arriving(*[10] * 5), "joint": arriving(*[5] * 5)})
    for run, curve in runs.items():
        if run.arm == "joint":
            curve.rows = [2 * rows for rows in curve.rows]
    assert any("sends 2.00× the rows" in sentence for sentence in summarize(about, runs).verdict)


def test_medians_of_few_evaluations_are_called_rough():
    result = summarize(*study({"task": arriving(*[10] * 5), "joint": arriving(*[2] * 5)}))
    assert any("take the ratio as rough" in sentence for sentence in result.verdict)
    assert f"{EVERY} steps apart" in "".join(result.verdict)


def test_the_arm_that_is_spoken_of_is_chosen_on_validation_rows():
    # the sweep likes the last arm best, the test rows like the first with contrast
    arms = {"task": arriving(*[10] * 5), "joint": arriving(*[2] * 5), "prototypes": arriving(*[9] * 5)}
    assert summarize(*study(arms)).contrast == "prototypes"


def test_what_is_not_finished_is_not_hidden():
    about, runs = study({"task": arriving(*[10] * 6), "joint": arriving(*[2] * 6)})
    partial = {run: curve for run, curve in runs.items() if run.stage == "sweep" or run.arm == "task" or run.seed < 4}
    result = summarize(about, partial)
    assert not result.complete
    assert (result["task"].seeds, result["joint"].seeds) == (4, 4)  # pairs only
    assert any("Not finished: 4 of 6 seeds so far" in sentence for sentence in result.verdict)
    nothing = summarize(about, {})
    assert nothing.verdict == (
        "Nothing to compare yet: no seed is finished in the baseline and in an arm with contrast.",
    )
    assert "Nothing to compare yet" in str(nothing)


class Fuse(nn.Module):
    """Blows in one call, of all copies together."""

    calls, blows = 0, 0

    def forward(self, outputs, labels):
        Fuse.calls += 1
        return nn.functional.cross_entropy(outputs, labels) * (float("nan") if Fuse.calls == Fuse.blows else 1)


def test_a_run_that_blows_up_counts_as_never_arriving(tmp_path):
    Fuse.calls, Fuse.blows = (
        0,
        61,
    )  # two checks, two sweeps of 12, seed 0 of both with 3 to warm up: then seed 1 of the baseline
    result = small(tmp_path, task=Fuse(), seeds=2, target=(0.05,))
    assert [arm.diverged for arm in result.arms] == [1, 0]
    task = result["task"]
    assert task.reach[0].reached == 1
    assert task.reach[0].steps[1] == np.inf
    assert any("no longer finite: task (1)" in sentence for sentence in result.verdict)
    lost = next(curve for curve in RunFolder.open(tmp_path / "run").finished().values() if curve.diverged)
    assert lost.steps == [4, 8, 12]
    assert lost.accuracy[-1] == 0
    assert 0 < lost.seconds[0] < lost.seconds[2]


def test_a_baseline_that_blows_up_at_every_rate_ends_the_comparison(tmp_path):
    with pytest.raises(ValueError, match=r"baseline diverged at every rate, 1e\+30: pass lower rates"):
        small(tmp_path, rates=(1e30,), steps=40)


def test_a_refusal_of_the_loss_is_divergence_only_if_the_weights_are_to_blame():
    weight = nn.Parameter(torch.ones(()))

    def refuse(batch):
        raise ValueError("NaN in the embeddings")

    run = lambda: list(fit(refuse, torch.optim.SGD([weight], 0.1), [torch.zeros(1)], steps=1, every=1))  # noqa: E731
    with pytest.raises(ValueError, match="NaN in the embeddings"):
        run()
    weight.data.fill_(float("inf"))
    with pytest.raises(Diverged, match="no longer finite at step 1: lower the learning rate"):
        run()


# ---- nothing is lost ------------------------------------------------------------------------------------------------


class StopAfter(nn.Module):
    """A task loss that is interrupted at one of its calls, of all copies together."""

    calls, limit = 0, 10**9

    def forward(self, outputs, labels):
        StopAfter.calls += 1
        if StopAfter.calls == StopAfter.limit:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(outputs, labels)


@pytest.fixture
def stopping():
    StopAfter.calls, StopAfter.limit = 0, 10**9
    yield StopAfter
    StopAfter.limit = 10**9


def test_an_interrupted_comparison_keeps_its_table_and_goes_on_to_the_same_result(tmp_path, stopping):
    options = {"task": StopAfter(), "seeds": 3}
    small(tmp_path, out=tmp_path / "whole", **options)
    calls = stopping.calls
    stopping.calls, stopping.limit = 0, calls - 20  # in the last of the seeds
    with pytest.raises(Interrupted) as stopped:
        small(tmp_path, out=tmp_path / "run", **options)
    kept = stopped.value.comparison
    assert not kept.complete
    assert kept["joint"].seeds == 2
    assert f"resume={str(tmp_path / 'run')!r}" in str(stopped.value)
    assert json.loads((tmp_path / "run/result.json").read_text())["complete"] is False
    assert (tmp_path / "run/report.html").exists()

    stopping.calls, stopping.limit = 0, 10**9
    result = small(tmp_path, out=None, resume=str(tmp_path / "run"), **options)
    assert stopping.calls < calls / 2  # what was finished is not repeated
    assert result.complete
    assert accuracies(tmp_path / "run") == accuracies(tmp_path / "whole")
    assert [arm.final for arm in result.arms] == [arm.final for arm in Comparison.load(tmp_path / "whole").arms]


def small_again(tmp_path, **options):
    return compare(**({"data": blobs(), "model": tiny, "show": False, "resume": str(tmp_path / "run")} | options))


def test_a_torn_last_line_is_cut_off_and_its_run_repeated(tmp_path):
    small(tmp_path)
    before = accuracies(tmp_path / "run")
    events = tmp_path / "run/events.jsonl"
    events.write_bytes(events.read_bytes()[:-9])
    assert len(accuracies(tmp_path / "run")) == len(before) - 1
    assert small_again(tmp_path).complete
    assert accuracies(tmp_path / "run") == before


def test_a_line_that_cannot_be_read_is_named(tmp_path):
    small(tmp_path)
    events = tmp_path / "run/events.jsonl"
    lines = events.read_text().splitlines()
    lines[4] = "{half"
    events.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"events\.jsonl:5 cannot be read"):
        Comparison.load(tmp_path / "run")


def test_going_on_with_something_else_is_refused(tmp_path):
    small(tmp_path)
    with pytest.raises(ValueError, match=r"seeds was 2 when .* was begun and is 9 now"):
        small_again(tmp_path, seeds=9)
    with pytest.raises(ValueError, match=r"begun with another data \(fingerprint"):
        small_again(tmp_path, data=blobs(seed=1))
    with pytest.raises(ValueError, match="begun with a data in memory"):
        small_again(tmp_path, data="digits")
    with pytest.raises(ValueError, match="begun with another losses"):
        small_again(tmp_path, contrastive=nf.NTXentLoss())
    with pytest.raises(ValueError, match="holds a comparison already: go on with it"):
        small(tmp_path)
    with pytest.raises(ValueError, match="holds no comparison"):
        small_again(tmp_path, resume=str(tmp_path))
    with pytest.raises(ValueError, match=r"a comparison goes on in its own folder, .*run: leave it out"):
        small_again(tmp_path, out=str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    assert small_again(tmp_path, seeds=2, out=str(tmp_path / "run")).complete


def test_run_folders_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [str(RunFolder.create(None, "my data/x").path) for _ in range(2)]
    assert names == ["runs/compare-my-data-x-1", "runs/compare-my-data-x-2"]


def test_every_evaluation_is_on_disk_as_soon_as_it_is_made(tmp_path):
    folder = RunFolder.create(tmp_path / "run", "x")
    with folder:
        run = Run("sweep", "task", 0.1, 1.0, 0)
        folder.log("start", run, None)
        folder.log("look", run, Look(3, 0.1, 30, 0.5))
        assert json.loads((tmp_path / "run/events.jsonl").read_text().splitlines()[1]) == {
            "event": "look", "stage": "sweep", "arm": "task", "rate": 0.1, "weight": 1.0, "seed": 0,
            "step": 3, "seconds": 0.1, "rows": 30, "accuracy": 0.5, "lost": False,
        }  # fmt: skip
        assert folder.finished() == {}
        folder.log("end", run, None)
    assert folder.finished()[run].accuracy == [0.5]


def test_side_by_side_gives_the_same_numbers(tmp_path):
    few = {"rates": (1e-3, 1e-2), "budget": 3}
    small(tmp_path, out=tmp_path / "one", **few)
    small(tmp_path, out=tmp_path / "two", workers=2, **few)
    assert accuracies(tmp_path / "one") == accuracies(tmp_path / "two")
    assert RunFolder.open(tmp_path / "two").config["config"]["workers"] == 2


def test_a_network_that_cannot_be_sent_is_trained_here(tmp_path):
    result = small(tmp_path, model=lambda shape, classes: tiny(shape, classes), workers=2)
    assert result.complete
    assert result.about["config"]["workers"] == 1


# ---- whatever the user has ------------------------------------------------------------------------------------------


def test_data_come_in_many_forms():
    inputs, labels = blobs(60)
    config = CompareConfig()
    dataset = TensorDataset(inputs, labels)
    forms = [(inputs, labels), (inputs.numpy(), labels.numpy()), dataset]
    tasks = [make_task(form, config) for form in forms]
    assert len({task.fingerprint() for task in tasks}) == 1
    split = make_task((inputs[:40], labels[:40], inputs[40:], labels[40:]), config)
    assert (
        split.fingerprint()
        == make_task(
            (TensorDataset(inputs[:40], labels[:40]), TensorDataset(inputs[40:], labels[40:])), config
        ).fingerprint()
    )
    assert len(split.train) + len(split.validation) == 40
    assert make_task(nf.data.sources.load_data("digits"), config).name == "digits"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.randn(6, 2), torch.arange(5)), r"inputs are \(6, 2\) and labels \(5,\)"),
        ((torch.randn(6, 2), torch.randn(6)), r"labels are torch\.float32: wanted whole class ids"),
        ((torch.randn(6, 2), torch.zeros(6).long()), "one class only"),
        ((torch.randn(6, 2), torch.tensor([0, 1, -1, 0, 1, 0])), "training labels run from -1 to 1"),
        ((torch.randn(6, 2).log(), torch.arange(6) % 2), "rows hold NaN or infinity, the first is row"),
        ((torch.randn(4, 2), torch.arange(4) % 2, torch.randn(4, 3), torch.arange(4) % 2), r"test inputs \(3,\)"),
        ((torch.randn(2, 2), torch.arange(2)), "has no test rows"),
        ((torch.randn(4, 2), torch.arange(4), torch.randn(4, 2), torch.arange(4)), "too few to hold some out"),
    ],
)
def test_data_that_cannot_be_used_are_refused_in_words(data, message):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=message):
        make_task(data, CompareConfig())


def test_what_is_no_data_is_refused_in_words():
    with pytest.raises(TypeError, match="data is tuple of 3: pass a name, a path"):
        make_task((1, 2, 3), CompareConfig())
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        make_task("digts", CompareConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": ("task", "jiont")}, "no arm 'jiont'; did you mean 'joint'"),
        ({"arms": ("joint", "control")}, "needs the baseline 'task'"),
        ({"rates": (0.0,), "budget": 1}, "wanted one or more learning rates above 0"),
        ({"rates": (0.1, 0.1), "budget": 2}, "named twice"),
        ({"rates": (0.1, 0.2), "budget": 1}, "budget is 1 trials for 2 rates"),
        ({"target": (90.0,)}, "pass 0.9 for 90%"),
        ({"seeds": 0}, "seeds is 0: wanted 1 or more"),
        ({"batch_size": 1}, "batch_size is 1: wanted 2 or more"),
        ({"steps": 5, "eval_every": 5}, "too few to hold a target for 2"),
        ({"temperature": 0.0}, "temperature is 0.0: wanted a number above 0"),
        ({"validation": 1.0}, "validation is 1.0"),
    ],
)
def test_options_out_of_range_are_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**options)


def test_an_unknown_option_is_answered_with_the_nearest():
    with pytest.raises(TypeError, match="no option 'step'; did you mean 'steps'"):
        nf.compare("digits", step=10)


def test_the_users_network_is_found_beside_them(tmp_path, monkeypatch):
    (tmp_path / "netofmine.py").write_text("from studies import tiny as build\nbroken = 3\n")
    monkeypatch.chdir(tmp_path)
    factory, name = find_factory("netofmine:build", (6,))
    assert factory is tiny
    assert name == "netofmine:build"
    with pytest.raises(ValueError, match="no factory in netofmine: 'biuld'; did you mean 'build'"):
        find_factory("netofmine:biuld", (6,))
    with pytest.raises(ValueError, match=r"no module 'netofyours'.*run this in the folder that holds netofyours\.py"):
        find_factory("netofyours:build", (6,))
    with pytest.raises(ValueError, match="no network 'small-cn'; did you mean 'small-cnn'"):
        find_factory("small-cn", (6,))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda shape, classes: 3, "returned a int: wanted a torch.nn.Module"),
        (lambda shape, classes: nn.Linear(6, 5), r"maps inputs \(2, 6\) to \(2, 5\): wanted logits \(2, 3\)"),
        (lambda shape, classes: nn.Linear(6, 3), "no linear layer with 3 outputs inside"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_before_training(tmp_path, model, message):
    with pytest.raises((ValueError, TypeError), match=message):
        small(tmp_path, model=model)
    assert not (tmp_path / "run").exists()


def test_features_are_read_at_a_named_layer(tmp_path):
    class Named(nn.Module):
        def __init__(self, in_shape, num_classes):
            super().__init__()
            self.stem, self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, num_classes)

        def forward(self, x):
            return self.head(self.body(self.stem(x).relu()).relu())

    assert small(tmp_path, model=Named, features="stem", arms=ALL, seeds=1, steps=4, eval_every=2).complete
    with pytest.raises(ValueError, match="no layer 'sten'; did you mean 'stem'"):
        small(tmp_path, model=Named, features="sten", out=tmp_path / "b")


def test_a_module_is_copied_for_every_run_so_that_all_start_from_its_weights(tmp_path):
    module = tiny((6,), 3)
    before = module[0].weight.clone()
    result = small(tmp_path, model=module)
    torch.testing.assert_close(module[0].weight, before)
    assert result.about["model"]["name"] == "Sequential"


def test_the_users_own_losses_are_used_and_copied(tmp_path):
    result = small(tmp_path, contrastive=nf.TripletLoss(), task=nn.CrossEntropyLoss(label_smoothing=0.1))
    assert "TripletLoss" in result.about["losses"]["contrastive"]


def test_defaults_follow_the_size_of_the_data():
    assert CompareConfig().resolved(1_000, 64).threads == 1
    assert CompareConfig().resolved(60_000, 784).batch_size == 256
    # side by side only where a run takes one thread, and never unasked from Python
    assert CompareConfig().resolved(1_000, 64).workers == 1
    assert CompareConfig().resolved(1_000, 64, cores=4).workers == 4
    assert CompareConfig().resolved(60_000, 784, cores=4).workers == 1
    quick = CompareConfig(quick=True).resolved(1_000, 64)
    assert (quick.steps, len(quick.rates), quick.budget) == (100, 2, 2)
    assert quick.resolved(1_000, 64) == quick
    assert CompareConfig(quick=True, steps=50, arms=ALL[:2]).resolved(1_000, 64).steps == 50


@pytest.mark.parametrize("first", ["compare", "compare.statistics"])
def test_compare_is_a_function_whatever_was_imported_first(first):
    import subprocess
    import sys

    code = (
        f"import nearfar.{first}, nearfar as nf, inspect\n"
        "assert callable(nf.compare)\n"
        "assert 'contrastive' in inspect.signature(nf.compare).parameters\n"
        "from nearfar.compare import Comparison, CompareConfig\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
