"""Batch samplers: what a batch holds, that an epoch holds everything, that ranks share one plan."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nearfar as nf
from nearfar.data.samplers import ClassBalancedSampler, EpisodeSampler, PKSampler


def joined(batches):
    return list(chain.from_iterable(batches))


def labels_of(counts):
    """Labels with these counts, shuffled."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))]


COUNTS = [[6, 6, 6, 6], [1, 2, 3, 30], [5, 1, 1, 1, 1], [7, 9], [40, 3, 3, 3, 3, 3]]


def check_plan(labels, p, k, batches):
    known = (labels >= 0).nonzero().squeeze(1).tolist()
    counts = labels[labels >= 0].bincount()
    for batch in batches:
        assert len(batch) == p * k
        classes, sizes = labels[batch].unique(return_counts=True)
        assert sizes.tolist() == [k] * p
        for c in classes:
            rows = [row for row in batch if labels[row] == c]
            assert max(map(rows.count, rows)) <= max(1, -(-k // int(counts[c])))  # again only where it must
    assert sorted({row for batch in batches for row in batch}) == known


@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=7),
    p=st.integers(1, 4),
    k=st.integers(2, 5),
    epoch=st.integers(0, 3),
)
def test_every_batch_is_p_by_k_and_an_epoch_covers_everything(counts, p, k, epoch):
    labels, p = labels_of(counts), min(p, len(counts))
    sampler = PKSampler(labels, p, k)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    check_plan(labels, p, k, batches)
    assert sampler.repeats == sum(map(len, batches)) - len(labels)
    assert sampler.short_classes == sum(count < k for count in counts)


def test_nothing_is_repeated_where_nothing_must_be():
    labels = labels_of([6, 6, 6, 6])
    sampler = PKSampler(labels, 2, 3)
    assert sampler.repeats == 0
    assert sorted(joined(sampler)) == list(range(24))
    assert len(sampler) == 4


def test_a_large_class_sets_the_length_and_the_others_come_again():
    sampler = PKSampler(labels_of([1, 2, 3, 30]), 2, 3)
    assert len(sampler) == 10  # thirty rows by threes, one group a batch
    assert sampler.repeats == 10 * 6 - 36
    assert sampler.short_classes == 2


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_one_plan(counts, world_size):
    labels = labels_of(counts)
    samplers = [PKSampler(labels, 2, 2, rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [list(sampler) for sampler in samplers]
    assert len({len(part) for part in parts}) == 1
    assert len(parts[0]) == len(samplers[0])
    check_plan(labels, 2, 2, joined(parts))
    if counts == [6, 6, 6, 6] and world_size == 2:
        rows = [sorted(joined(part)) for part in parts]
        assert not set(rows[0]) & set(rows[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: PKSampler(labels_of([6, 7, 8]), 2, 2, **k),
        lambda **k: ClassBalancedSampler(labels_of([6, 7, 8]), **k),
        lambda **k: EpisodeSampler(labels_of([6, 7, 8]), 2, 1, 2, 9, **k),
    ],
)
def test_seed_and_epoch_alone_say_what_is_drawn(make):
    sampler = make()
    first = list(sampler)
    assert first == list(sampler) == list(make())
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(make(seed=1)) != first
    torch.manual_seed(3)
    assert list(sampler) == first


@pytest.mark.parametrize("kind", [torch.tensor, list, np.array, lambda x: np.array(x, np.uint8)])
def test_labels_of_any_integers_will_do(kind):
    labels = [7, 7, 3, 3]
    assert sorted(joined(PKSampler(kind(labels), 2, 2))) == [0, 1, 2, 3]


def test_integers_beyond_float32_stay_apart():
    labels = torch.tensor([2**24, 2**24 + 1] * 4)
    for batch in PKSampler(labels, 2, 2):
        assert labels[batch].unique().numel() == 2


def test_unknown_labels_are_left_out():
    labels = torch.tensor([0, -1, 0, 1, -100, 1])
    assert sorted(joined(PKSampler(labels, 2, 2))) == [0, 2, 3, 5]


def test_the_process_group_says_which_rank_this_is(monkeypatch):
    sampler = PKSampler(labels_of([6, 6]), 2, 2)
    whole = list(sampler)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    assert len(sampler) == 1
    assert list(sampler) == whole[1::3]


def test_a_data_loader_takes_it():
    data = torch.utils.data.TensorDataset(torch.randn(24, 3), labels_of([6, 6, 6, 6]))
    loader = torch.utils.data.DataLoader(data, batch_sampler=nf.PKSampler(data.tensors[1], p=4, k=2))
    assert len(loader) == 3
    assert all(y.bincount().tolist() == [2] * 4 for _, y in loader)


@pytest.mark.parametrize("world_size", [1, 2])
def test_balanced_classes_come_equally_often(world_size):
    labels = labels_of([1, 4, 20])
    rows = [list(ClassBalancedSampler(labels, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(part) for part in rows}) == 1
    counts = labels[joined(rows)].bincount()
    assert counts.max() - counts.min() <= 1
    large = [row for row in joined(rows) if labels[row] == 2]
    assert len(set(large)) == len(large)


@pytest.mark.parametrize("world_size", [1, 2])
def test_episodes_have_ways_shots_and_queries_of_their_own(world_size):
    labels = labels_of([5, 6, 7, 2, 9])
    samplers = [EpisodeSampler(labels, 3, 2, 3, 7, rank=rank, world_size=world_size) for rank in range(world_size)]
    episodes = joined(map(list, samplers))
    assert len(episodes) == {1: 7, 2: 8}[world_size] == sum(map(len, samplers))
    for episode in episodes:
        assert len(set(episode)) == len(episode) == 15
        support, query = samplers[0].split(labels[episode])
        assert support.shape == (3, 2)
        assert query.shape == (3, 3)
        assert (support == support[:, :1]).all()
        assert (query == support[:, :1]).all()
        assert support[:, 0].unique().numel() == 3
        assert 3 not in support  # two rows are too few


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PKSampler([0, 0, 1, 1], 3, 2), "p=3 classes a batch were asked for, but the labels hold 2: pass p=2"),
        (lambda: PKSampler([0, 0, 1, 1], 0, 2), "p is 0: wanted a whole number of at least 1"),
        (lambda: PKSampler([0, 0, 1, 1], 2, 1), "k is 1: wanted a whole number of at least 2"),
        (lambda: PKSampler([0, 0, 1, 1], 2, 2.5), "k is 2.5: wanted a whole number"),
        (lambda: PKSampler([0.0, 1.0], 2, 2), "labels are torch.float64: wanted integer class ids"),
        (lambda: PKSampler(["a", "b"], 2, 2), "labels are <U1, such as .*'a'.*: wanted integer class ids"),
        (lambda: PKSampler([], 2, 2), r"labels have shape \(0,\)|labels are"),
        (lambda: PKSampler(torch.zeros(2, 2).long(), 2, 2), r"labels have shape \(2, 2\): wanted one class id a row"),
        (lambda: PKSampler([-1, -1], 1, 2), "all 2 labels are negative, which means unknown"),
        (lambda: PKSampler([0, 0, 1, 1], 2, 2, seed=-1), "seed is -1"),
        (lambda: PKSampler([0, 0, 1, 1], 2, 2).set_epoch(-1), "epoch is -1"),
        (lambda: PKSampler([0, 0, 1, 1], 2, 2, rank=1), "rank is 1 and world_size None: pass both, or neither"),
        (lambda: PKSampler([0, 0, 1, 1], 2, 2, rank=2, world_size=2), "rank is 2 of 2: wanted 0 to 1"),
        (
            lambda: EpisodeSampler([0, 0, 1, 1], 2, 2, 1, 5),
            "2 ways with 2 shots and 1 queries were asked for, but 0 of 2 classes have 3 rows",
        ),
        (lambda: EpisodeSampler([0, 0, 1, 1], 1, 1, 1, 5), "ways is 1"),
    ],
)
def test_what_cannot_be_drawn_is_said(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
