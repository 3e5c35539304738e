"""Batches: functions of seed, step and rank; ranks that together are one process; going on at any step; threads that fail."""

import json
import threading
import time
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from nearfar.data import loading
from nearfar.data.config import DataConfig
from nearfar.data.corpus import RawBatch, TensorPart
from nearfar.data.loading import Loader, default_workers
from nearfar.data.open import open_corpus

PART = TensorPart({"vector": torch.arange(103.0).unsqueeze(1)}, torch.arange(103) % 7)


def rows(loader, stop, start=0):
    return [batch.rows.tolist() for batch in loader.batches(start, stop)]


@pytest.fixture
def pictures(tmp_path):
    """Forty images on disk whose first pixel is their number."""
    for i in range(40):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.new("L", (5, 4), 6 * i).save(tmp_path / "ab"[i % 2] / f"{i:02d}.png")
    return tmp_path


class TestOrder:
    def test_an_epoch_holds_no_row_twice_and_the_next_is_another(self):
        loader = Loader(PART, 10, seed=1)
        assert loader.steps_per_epoch == 10
        first, second = rows(loader, 10), rows(loader, 20, 10)
        assert len(set(sum(first, []))) == len(set(sum(second, []))) == 100  # noqa: RUF017
        assert first != second

    def test_it_is_a_function_of_the_seed(self):
        assert rows(Loader(PART, 10, seed=1), 25) == rows(Loader(PART, 10, seed=1), 25)
        assert rows(Loader(PART, 10, seed=1), 3) != rows(Loader(PART, 10, seed=2), 3)

    @pytest.mark.parametrize("classes", [None, 5])
    @pytest.mark.parametrize("start", [1, 9, 10, 23])
    def test_going_on_at_a_step_is_not_having_stopped(self, start, classes):
        whole = rows(Loader(PART, 10, seed=4, classes_per_batch=classes), 30)
        assert rows(Loader(PART, 10, seed=4, classes_per_batch=classes), 30, start) == whole[start:]

    @pytest.mark.parametrize("classes", [None, 4, 6])
    @pytest.mark.parametrize("world", [2, 3])
    def test_the_ranks_together_are_one_process(self, world, classes):
        one = rows(Loader(PART, 12 * world, seed=2, classes_per_batch=classes), 9)
        ranks = [
            rows(Loader(PART, 12, seed=2, rank=r, world=world, classes_per_batch=classes), 9) for r in range(world)
        ]
        assert [sum(parts, []) for parts in zip(*ranks)] == one  # noqa: RUF017
        steps = {
            Loader(PART, 12, seed=2, rank=r, world=world, classes_per_batch=classes).steps_per_epoch
            for r in range(world)
        }
        assert len(steps) == 1

    def test_classes_per_batch(self):
        for batch in Loader(PART, 12, seed=0, classes_per_batch=4).batches(0, 20):
            values, counts = batch.labels.unique(return_counts=True)
            assert (len(values), counts.tolist()) == (4, [3] * 4)
            assert batch.labels.tolist() == (batch.rows % 7).tolist()

    def test_what_cannot_be_filled_is_refused(self):
        with pytest.raises(ValueError, match=r"wants 104, and there are 103 .* pass batch_size=51 or less"):
            Loader(PART, 52, seed=0, world=2)
        with pytest.raises(ValueError, match="5 classes a batch do not divide 12 rows"):
            Loader(PART, 12, seed=0, classes_per_batch=5)
        with pytest.raises(ValueError, match="wants labels, and the data have none"):
            Loader(TensorPart({"text": ["a"] * 9}), 4, seed=0, classes_per_batch=2)
        with pytest.raises(ValueError, match="rank is 2 of 2"):
            Loader(PART, 4, seed=0, rank=2, world=2)


class TestThreads:
    def test_images_of_a_folder_are_the_same_by_any_number_of_workers(self, pictures):
        part = open_corpus(DataConfig(str(pictures))).train
        by = [list(Loader(part, 6, seed=3, workers=n).batches(2, 12)) for n in (0, 1, 3)]
        for one, two, three in zip(*by):
            assert one.rows.tolist() == two.rows.tolist() == three.rows.tolist()
            assert torch.equal(one.columns["image"], three.columns["image"])
            names = [int(part.name(row)[-6:-4]) for row in one.rows.tolist()]
            assert (one.columns["image"][:, 0, 0, 0] / 6).tolist() == names

    def test_what_is_in_memory_wants_no_workers_and_images_on_disk_do(self, pictures, tmp_path):
        assert default_workers(PART) == 0
        assert 1 <= default_workers(open_corpus(DataConfig(str(pictures))).train) <= 8
        texts = tmp_path / "t.csv"
        texts.write_text("text\na b\nc d\n")
        assert default_workers(open_corpus(DataConfig(str(texts))).train) == 0

    def test_an_image_that_breaks_later_ends_the_run_with_its_name(self, pictures):
        part = open_corpus(DataConfig(str(pictures))).train
        loader = Loader(part, 6, seed=3, workers=2)
        victim = part.name(loader.rows(3)[1])
        with open(victim, "w") as file:
            file.write("broken")
        batches = loader.batches()
        for _ in range(3):
            next(batches)
        with pytest.raises(ValueError, match=victim.replace(".", r"\.") + ".*cannot be read as an image"):
            next(batches)

    def test_a_disk_that_hangs_is_an_error(self, monkeypatch):
        monkeypatch.setattr(loading, "PATIENCE", 0.2)
        released = threading.Event()

        @dataclass(frozen=True)
        class Hanging(TensorPart):
            def fetch(self, rows):
                released.wait(20)
                return super().fetch(rows)

        started = time.perf_counter()
        with pytest.raises(RuntimeError, match="still being read after 0 seconds"):
            next(Loader(Hanging(PART.data), 4, seed=0, workers=2).batches())
        released.set()
        assert time.perf_counter() - started < 10

    def test_no_more_is_read_than_is_asked_for_and_threads_end(self, pictures):
        part = open_corpus(DataConfig(str(pictures))).train
        batches = Loader(part, 6, seed=0, workers=3).batches(0, 5)
        assert len(list(batches)) == 5
        until = time.perf_counter() + 10
        while any(t.name == "nearfar-loader" for t in threading.enumerate()) and time.perf_counter() < until:
            time.sleep(0.01)
        assert not any(t.name == "nearfar-loader" for t in threading.enumerate())

    def test_the_threads_of_the_caller_are_left_as_they_are(self, pictures):
        torch.set_num_threads(2)
        try:
            list(Loader(open_corpus(DataConfig(str(pictures))).train, 6, seed=0, workers=2).batches(0, 3))
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(1)

    def test_prepare_is_called_in_the_calling_thread(self):
        def prepare(batch: RawBatch):
            return threading.current_thread(), len(batch)

        assert set(Loader(PART, 8, seed=0, workers=2, prepare=prepare).batches(0, 4)) == {
            (threading.current_thread(), 8)
        }


class TestStreams:
    @pytest.fixture
    def stream(self, tmp_path):
        lines = [
            json.dumps({"query": f"q{i}", "answer": f"a{i}", "label": "ab"[i % 2], "id": i // 3}) for i in range(50)
        ]
        path = tmp_path / "s.jsonl"
        path.write_text("\n".join([*lines[:20], "{broken", *lines[20:]]))
        return open_corpus(DataConfig(str(path), streaming=True, skip_bad=True))

    def texts(self, loader, stop, start=0):
        return [batch.columns["query"] for batch in loader.batches(start, stop)]

    def test_an_epoch_is_every_row_once_in_another_order(self, stream):
        loader = Loader(stream.train, 10, seed=0)
        assert loader.steps_per_epoch is None
        batches = self.texts(loader, 10)
        first, second = (sum(part, []) for part in (batches[:5], batches[5:]))  # noqa: RUF017
        assert sorted(first) == sorted(second) == sorted(f"q{i}" for i in range(50))
        assert first != second
        assert first != [f"q{i}" for i in range(50)]

    def test_going_on_and_ranks(self, stream):
        whole = self.texts(Loader(stream.train, 8, seed=5), 9)
        assert self.texts(Loader(stream.train, 8, seed=5), 9, 4) == whole[4:]
        ranks = [self.texts(Loader(stream.train, 4, seed=5, rank=r, world=2), 9) for r in range(2)]
        assert [a + b for a, b in zip(*ranks)] == whole
        assert self.texts(Loader(stream.train, 8, seed=6), 9) != whole

    def test_what_is_left_out_is_named_once_an_epoch_by_one_rank(self, stream):
        assert [bad.partition("s.jsonl:")[2][:14] for bad in stream.bad] == ["21: is not JSO"]
        ranks = [Loader(stream.train, 5, seed=0, rank=r, world=2).batches(0, 5) for r in range(2)]
        bad = [[line for batch in batches for line in batch.bad] for batches in ranks]
        assert [len(lines) for lines in bad] == [1, 0]
        assert "s.jsonl:21: is not JSON" in bad[0][0]

    def test_labels_and_ids(self, stream):
        assert stream.class_names == ("a", "b")
        for batch in Loader(stream.train, 10, seed=1).batches(0, 3):
            numbers = [int(text[1:]) for text in batch.columns["query"]]
            assert batch.labels.tolist() == [n % 2 for n in numbers]
            ids = {n // 3 for n in numbers}
            assert len(set(batch.groups.tolist())) == len(ids)

    def test_a_broken_line_is_named(self, tmp_path):
        path = tmp_path / "s.jsonl"
        path.write_text('{"text": "a"}\n{broken\n')
        with pytest.raises(ValueError, match=r"s\.jsonl:2: is not JSON"):
            open_corpus(DataConfig(str(path), streaming=True))

    def test_classes_cannot_be_chosen(self, stream):
        with pytest.raises(ValueError, match="a stream gives them in order"):
            Loader(stream.train, 4, seed=0, classes_per_batch=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning wants a GPU")
def test_pinned():
    batch = next(Loader(PART, 8, seed=0).batches())
    assert batch.columns["vector"].is_pinned()
    assert batch.labels.is_pinned()
