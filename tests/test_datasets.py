"""Pair and triplet datasets: what is drawn, from what, and the same in any number of workers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import nearfar as nf
from nearfar.data.datasets import PairDataset, TripletDataset


def tensors(labels):
    """Items whose input is their own row, so that what was drawn can be read off."""
    return TensorDataset(torch.arange(len(labels)).float().unsqueeze(1), torch.as_tensor(labels))


LABELS = [0, 1, 0, 2, 1, 0, 2, 2, 1, 0]


@given(
    counts=st.lists(st.integers(2, 5), min_size=2, max_size=4),
    positives=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    seed=st.integers(0, 5),
)
def test_pairs_say_what_they_are_and_are_balanced(counts, positives, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    pairs = PairDataset(tensors(labels), positives=positives, seed=seed)
    drawn = [pairs[i] for i in range(len(pairs))]
    assert [int(pair.pairs[0]) for pair in drawn] == list(range(len(labels)))
    for pair in drawn:
        one, two = pair.pairs.tolist()
        assert one != two
        assert [x.item() for x in pair.inputs] == [one, two]
        assert pair.labels.tolist() == labels[[one, two]].tolist()
        assert pair.pair_labels == (labels[one] == labels[two])
    assert sum(int(pair.pair_labels) for pair in drawn) == round(positives * len(labels))


def test_partners_are_drawn_from_all_there_are():
    pairs = PairDataset(tensors(LABELS))
    seen = set()
    for epoch in range(60):
        pairs.set_epoch(epoch)
        seen |= {tuple(pairs[i].pairs.tolist()) for i in range(len(pairs))}
    assert seen == {(i, j) for i in range(10) for j in range(10) if i != j}


def test_an_item_alone_in_its_class_is_in_pairs_of_different_classes():
    pairs = PairDataset(tensors([0, 0, 0, 0, 1, 2]))
    drawn = [pairs[i] for i in range(6)]
    assert sum(int(pair.pair_labels) for pair in drawn) == 3
    assert drawn[4].pair_labels == drawn[5].pair_labels == 0


def test_as_many_pairs_of_one_class_as_there_can_be_are_drawn():
    pairs = PairDataset(tensors([0, 1, 2, 2]))
    assert [int(pairs[i].pair_labels) for i in range(4)] == [0, 0, 1, 1]


def test_items_of_unknown_class_are_left_out():
    pairs = PairDataset(tensors([0, -1, 0, 1, 1, -1]))
    assert len(pairs) == 4
    rows = torch.stack([pairs[i].pairs for i in range(4)])
    assert rows[:, 0].tolist() == [0, 2, 3, 4]
    assert not set(rows.flatten().tolist()) & {1, 5}


def epoch_of(loader):
    return torch.cat([torch.as_tensor(batch.pairs) for batch in loader]).tolist()


def test_workers_draw_the_same_and_see_the_next_epoch():
    pairs = PairDataset(tensors(LABELS))
    alone = DataLoader(pairs, batch_size=4)
    workers = DataLoader(pairs, batch_size=4, num_workers=2, persistent_workers=True, timeout=60)
    epochs = []
    for epoch in range(2):
        pairs.set_epoch(epoch)
        epochs.append(epoch_of(alone))
        assert epoch_of(workers) == epochs[-1]
    assert epochs[0] != epochs[1]
    pairs.set_epoch(0)
    assert epoch_of(alone) == epochs[0]
    assert epoch_of(DataLoader(PairDataset(tensors(LABELS), seed=1), batch_size=4)) != epochs[0]


def test_a_batch_goes_into_the_contrastive_loss():
    (first, second), labels, pairs, same = next(iter(DataLoader(nf.PairDataset(tensors(LABELS)), batch_size=10)))
    assert first.shape == second.shape == (10, 1)
    assert labels.shape == pairs.shape == (10, 2)
    assert same.dtype == torch.int64
    assert nf.ContrastiveLoss()(first, second, same) >= 0


class Dicts(Dataset):
    def __len__(self):
        return len(LABELS)

    def __getitem__(self, row):
        return {"image": torch.tensor([float(row)]), "label": LABELS[row]}


def test_dicts_are_read_by_their_keys():
    pair = PairDataset(Dicts(), keys=("image", "label"))[3]
    assert pair.inputs[0].item() == 3
    assert pair.labels[0] == LABELS[3]


def test_a_hugging_face_dataset_is_read_by_its_columns():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": [str(i) for i in range(10)], "label": LABELS})
    pair = PairDataset(rows, keys=("text", "label"))[3]
    assert pair.inputs[0] == "3"
    assert pair.labels[0] == LABELS[3]


class Counted(Dataset):
    """Counts how many items were read, as reading images would cost."""

    def __init__(self, targets=None):
        self.read = 0
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, row):
        self.read += 1
        return row, LABELS[row]


def test_labels_kept_in_one_place_are_not_read_item_by_item():
    kept, scattered = Counted(LABELS), Counted()
    assert PairDataset(kept).labels.tolist() == LABELS
    assert kept.read == 0
    assert PairDataset(scattered).labels.tolist() == LABELS
    assert scattered.read == 10
    part = Subset(kept, [0, 1, 2, 4])
    assert PairDataset(part).labels.tolist() == [0, 1, 0, 1]
    assert kept.read == 0
    assert PairDataset(scattered, labels=LABELS[::-1]).labels.tolist() == LABELS[::-1]


def test_triplets_hold_an_anchor_one_of_its_class_and_one_of_another():
    labels = [0, 0, 1, 1, 1, 2]
    triplets = TripletDataset(tensors(labels))
    assert len(triplets) == 5
    assert triplets.alone == 1
    for index in range(5):
        item = triplets[index]
        a, p, n = item.triplets.tolist()
        assert a == index
        assert p != a
        assert labels[a] == labels[p] != labels[n]
        assert [x.item() for x in item.inputs] == [a, p, n]
        assert item.labels.tolist() == [labels[a], labels[p], labels[n]]
    batch = next(iter(DataLoader(triplets, batch_size=5)))
    assert nf.TripletLoss()(*batch.inputs) >= 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PairDataset(tensors(LABELS), positives=1.5), "positives is 1.5: wanted a fraction from 0 to 1"),
        (
            lambda: PairDataset(tensors([0, 1, 2, 3])),
            "2 pairs of one class were asked for, but only 0 of 4 items have another of their class: pass positives=0",
        ),
        (lambda: PairDataset(tensors([1, 1, 1])), "but there is one class: pass positives=1.0"),
        (lambda: PairDataset(tensors(LABELS), labels=[0, 1]), "the dataset has 10 items but there are 2 labels"),
        (lambda: PairDataset(tensors(LABELS), seed=-1), "seed is -1"),
        (lambda: PairDataset(tensors(LABELS)).set_epoch(1.5), "epoch is 1.5: wanted a whole number"),
        (
            lambda: PairDataset(Dicts()),
            r"the label was looked for at 1, but an item of the dataset \(dict\) holds 'image', 'label': pass keys=",
        ),
        (
            lambda: PairDataset(Dicts(), keys=("picture", "label"))[0],
            "the input was looked for at 'picture', but .* holds 'image', 'label'",
        ),
        (lambda: PairDataset([1, 2, 3]), r"an item of the dataset \(int\) is no such tuple"),
        (lambda: TripletDataset(tensors([0, 0])), "there are 1 classes, the largest with 2 items"),
        (lambda: TripletDataset(tensors([0, 1])), "there are 2 classes, the largest with 1 items"),
        (lambda: TripletDataset(tensors([-1, -1])), "all 2 labels are negative, which means unknown"),
    ],
)
def test_what_cannot_be_drawn_is_said(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
