"""The joint objective on real digits, in a plain loop, in Lightning's training step and in the Hugging Face Trainer."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nearfar as nf
from nearfar.data.sources import load_data
from nearfar.encoders.heads import CosineHead


class Digits(nn.Module):
    """A small network for 8×8 digits."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 32))
        self.head = CosineHead(32, 10)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Digits()


def loader(data, rows=640):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(data.train_inputs[:rows], data.train_labels[:rows]), 64, True, generator=generator)


def accuracy(model, data):
    with torch.no_grad():
        return (model.eval()(data.test_inputs).argmax(1) == data.test_labels).double().mean().item()


def test_a_plain_loop(data, model):
    criterion = nf.Joint(
        nn.CrossEntropyLoss(), nf.SupConLoss(), features=model.head.norm, head=16, readout="prototypes"
    )
    optimiser = torch.optim.Adam([*model.parameters(), *criterion.parameters()], lr=1e-2)
    first = None
    for x, y in loader(data):
        loss = criterion(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        first = first or criterion.terms["contrastive"]
    assert criterion.step == 10
    assert criterion.terms["contrastive"] < first
    assert accuracy(model, data) > 0.8
    with torch.no_grad():
        outputs = model(data.test_inputs)
        features = model.head.norm(model.body(data.test_inputs))
    for predicted in (criterion.predict(features), criterion.predict(features, outputs)):
        assert (predicted == data.test_labels).double().mean() > 0.8


def _one_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(_two_steps(rank), f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # a rank that leaves early takes the other's connections with it
    torch.distributed.destroy_process_group()


def _two_steps(rank):
    """What the criterion holds then. The wrapped network must be gone before its process group is: freeing it may hang."""
    torch.manual_seed(0)
    network = Digits()
    parallel = nn.parallel.DistributedDataParallel(network)
    criterion = nf.Joint(
        nn.CrossEntropyLoss(), nf.SupConLoss(gather=True), features=network.head.norm, balance="gradient",
        readout="prototypes",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 24, 1, 8, 8, generator=generator)[rank], (torch.arange(24) + rank) % 10
    for _ in range(2):
        criterion(parallel(x), y).backward()
    return {**criterion.state_dict(), "gradient": network.body[0].weight.grad, **criterion.terms}


def test_ranks_keep_the_same_state(tmp_path):
    # Processes of their own: a fork of this one would inherit the locks of threads that it does not have.
    code = "import sys; from test_joint_frameworks import _one_rank; _one_rank(int(sys.argv[1]), sys.argv[2])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[1].decode() for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in ("prototypes.sums", "balance.norms", "step", "gradient", "weight/contrastive", "contrastive"):
        torch.testing.assert_close(one[name], two[name])
    assert not torch.equal(one["task"], two["task"])  # each saw rows of its own


def test_lightning_s_training_step(data, model, tmp_path):
    lightning = pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model
            self.criterion = nf.Joint(nn.CrossEntropyLoss(), nf.SupConLoss(), features=model.head.norm, head=16)

        def training_step(self, batch, index):
            x, y = batch
            loss = self.criterion(self.model(x), y)
            self.log_dict(self.criterion.terms)
            return loss

        def validation_step(self, batch, index):
            x, y = batch
            self.log("validation", self.criterion(self.model(x), y))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    task = Task()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, val_check_interval=5,
    )  # fmt: skip
    trainer.fit(task, loader(data), DataLoader(TensorDataset(data.test_inputs, data.test_labels), 64))
    assert task.criterion.step == 10  # validation was not counted
    assert {"task", "contrastive", "total", "weight/task", "validation"} <= set(trainer.logged_metrics)
    assert accuracy(model, data) > 0.8
    # The checkpoint holds the criterion's state and head, and the model's weights once.
    state = task.state_dict()
    assert state["criterion.step"] == 10
    assert not [name for name in state if name.startswith("criterion.") and "body" in name]


def test_the_hugging_face_trainer_s_compute_loss(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class JointTrainer(transformers.Trainer):
        def __init__(self, *args, criterion, **kwargs):
            super().__init__(*args, **kwargs)
            self.criterion = criterion

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(pixel_values=inputs["pixel_values"])
            loss = self.criterion(outputs.logits, inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=8, patch_size=2, num_channels=1, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, num_labels=10, initializer_range=0.2,
        )
    )  # fmt: skip
    criterion = nf.Joint(nn.CrossEntropyLoss(), nf.SupConLoss(), features=model.vit.layernorm, pool="first", head=16)
    optimiser = torch.optim.Adam([*model.parameters(), *criterion.parameters()], lr=3e-3)
    pairs = zip(data.train_inputs[:640], data.train_labels[:640], strict=True)
    rows = [{"pixel_values": x, "labels": int(y)} for x, y in pairs]
    trainer = JointTrainer(
        model,
        transformers.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=64, per_device_eval_batch_size=64,
            num_train_epochs=8, report_to=[], use_cpu=True, save_strategy="no", logging_strategy="no",
            disable_tqdm=True, seed=0,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        criterion=criterion,
        optimizers=(optimiser, torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)),
    )  # fmt: skip
    trainer.evaluate()
    assert criterion.step == 0  # evaluation is not counted
    trainer.train()
    assert criterion.step == 80
    found = trainer.predict(rows)
    assert (found.predictions.argmax(1) == found.label_ids).mean() > 0.6  # one in ten by chance
