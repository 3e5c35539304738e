"""Pushed to a Hub and read from one over HTTP, by huggingface_hub's and datasets' own code, in processes of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

import nearfar as nf
from hub import TOKEN, Hub, running
from nearfar.cli import main
from towers import TEXTS, embedder

NEARFAR = ("-c", "import sys; from nearfar.cli import main; sys.exit(main())")

pytest.importorskip("huggingface_hub", reason="huggingface-hub is not installed")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as found:
        yield found


def python(hub: Hub, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python, where the Hub is the stand-in."""
    environment = hub.environment(home, **environment)
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def push(hub: Hub, home: Path, folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``nearfar export``, to the Hub."""
    command = (*NEARFAR, "export", str(folder), "--to", "hub", "--out", "me/boxes", *options)
    return python(hub, home, *command, **environment)


def test_what_is_pushed_is_what_the_card_s_lines_read(hub, tmp_path):
    """One commit, weights by Git LFS; a second push of the same sends no weights, and makes no second repository."""
    ours = embedder("image", "text")
    ours.save(tmp_path / "run")
    done = push(hub, tmp_path, tmp_path / "run", "--private", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    files = hub.repositories["models/me/boxes"]
    assert f"{hub.address}/me/boxes/commit/" in done.stdout
    assert set(files) == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert (hub.commits, hub.private) == (["An encoder trained with nearfar"], {"models/me/boxes"})
    assert list(hub.large.values()) == [(tmp_path / "run" / "model.safetensors").read_bytes()]

    (code,) = re.findall(r"```python\n(.*?)```", files["README.md"].decode(), re.DOTALL)
    code = f"import torch\nitems = {TEXTS[:3]!r}\n{code}torch.save(embeddings, 'embeddings.pt')\n"
    read = python(hub, tmp_path, "-c", code, HF_TOKEN=TOKEN)
    assert read.returncode == 0, read.stderr
    assert torch.equal(torch.load(tmp_path / "embeddings.pt"), ours.embed(TEXTS[:3]))

    sent = sum(line.startswith("PUT") for line in hub.asked)
    assert push(hub, tmp_path, tmp_path / "run", HF_TOKEN=TOKEN).returncode == 0
    assert sum(line.startswith("PUT") for line in hub.asked) == sent == 1
    assert list(hub.repositories) == ["models/me/boxes"]


@pytest.mark.parametrize("token", [{}, {"HF_TOKEN": "hf_wrong"}], ids=["none", "wrong"])
def test_without_a_token_it_says_how_to_log_in(hub, tmp_path, token):
    embedder("image").save(tmp_path / "run")
    done = push(hub, tmp_path, tmp_path / "run", **token)
    assert done.returncode == 2
    assert "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.repositories == {}


@pytest.mark.parametrize("streaming", ["", ", streaming=True"], ids=["whole", "streamed"])
def test_a_data_set_by_its_name(hub, tmp_path, streaming):
    """With its own split and its names of classes."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"])})
    files = {"README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
             b"  - split: test\n    path: data/test-*\n---\n"}  # fmt: skip
    for part, count in (("train", 6), ("test", 3)):
        rows = {"text": [f"{part} {i}" for i in range(count)], "label": [i % 2 for i in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "part.parquet")
        files[f"data/{part}-00000-of-00001.parquet"] = (tmp_path / "part.parquet").read_bytes()
    hub.repositories["datasets/owner/animals"] = files
    code = f"""
from nearfar.data.config import DataConfig
from nearfar.data.open import open_corpus
corpus = open_corpus(DataConfig("owner/animals"{streaming}))
print(corpus.name, corpus.class_names, corpus.test.fetch([2]).columns)
"""
    done = python(hub, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "owner/animals ('cat', 'dog') {'text': ['test 2']}"


def test_a_data_set_that_the_hub_does_not_have(hub, tmp_path):
    none = python(hub, tmp_path, *NEARFAR, "train", "--data", "owner/plants")
    assert none.returncode == 2
    assert "owner/plants is no path here, and the Hugging Face Hub did not give it" in none.stderr


@pytest.mark.parametrize("command", ["evaluate RUN", "index RUN", "train --resume RUN"])
def test_a_run_s_own_folder_is_no_name_on_the_hub(command, tmp_path, monkeypatch, capsys):
    """Seen from another folder, from which ``photos/cats`` is no path: the data are where they were, or nowhere."""
    monkeypatch.setattr(import_module("nearfar.data.sheets"), "from_hub", lambda *_: pytest.fail("asked"))
    for number in range(24):
        path = tmp_path / "photos" / "cats" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * number).save(path)
    monkeypatch.chdir(tmp_path)
    options = {"steps": 2, "eval_every": 2, "batch_size": 4, "threads": 1, "show": False}
    run = nf.train(data="photos/cats", out=str(tmp_path / "run"), model="small-cnn", **options)
    arguments = command.replace("RUN", str(run.path)).split()
    assert main(arguments) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(arguments) == 0
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert main(arguments) == 2
    assert f"photos/cats, which {run.path} was trained on, is not here" in capsys.readouterr().err
