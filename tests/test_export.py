"""What other programs make of an exported encoder: onnxruntime, sentence-transformers, transformers, the Hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch

import nearfar as nf
from nearfar.cli import main
from nearfar.encoders.export_onnx import export_onnx
from nearfar.encoders.export_sentence import as_roberta, export_sentence
from nearfar.encoders.make import make_embedder
from nearfar.encoders.transformer import text_small
from test_embedder import bert  # noqa: F401
from towers import TEXTS, corpus, embedder, items

pytestmark = pytest.mark.filterwarnings("ignore")


# ---- onnx -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graphs(tmp_path_factory) -> Path:
    """Exported from the command line, as a run folder holds it."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    run = tmp_path_factory.mktemp("run")
    embedder("image", "text").save(run / "model")
    assert main(["export", str(run), "--to", "onnx", "-o", str(run / "graphs")]) == 0
    return run / "graphs"


def outputs(graphs: Path, kind: str, *inputs: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graphs / f"{kind}.onnx"), providers=["CPUExecutionProvider"])
    about = json.loads((graphs / "onnx.json").read_text())["graphs"][kind]
    assert [given["name"] for given in about["inputs"]] == [given.name for given in session.get_inputs()]
    given = {about["inputs"][i]["name"]: value.numpy() for i, value in enumerate(inputs)}
    return torch.from_numpy(session.run(None, given)[0])


@pytest.mark.parametrize("rows", [1, 7])
def test_a_graph_takes_bytes_of_any_number_of_images(graphs, rows):
    images = items("image", rows)
    torch.testing.assert_close(
        outputs(graphs, "image", images), embedder("image", "text").embed(images), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("texts", [["near"], [*TEXTS[:6], "", "boxes " * 200]], ids=["one", "many"])
def test_a_graph_takes_texts_through_the_tokenizer_beside_it(graphs, texts):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(graphs / "tokenizer.json"))
    pad = json.loads((graphs / "onnx.json").read_text())["graphs"]["text"]["pad"]
    tokenizer.enable_padding(pad_id=pad)
    encoded = tokenizer.encode_batch(texts)
    ids, mask = (torch.tensor([getattr(row, name) for row in encoded]) for name in ("ids", "attention_mask"))
    torch.testing.assert_close(
        outputs(graphs, "text", ids, mask), embedder("image", "text").embed(texts), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", ["image", "text"])
def test_axes_have_names_and_a_graph_says_what_it_takes(graphs, kind):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    model = onnx.load(str(graphs / f"{kind}.onnx"))
    images = list(embedder("image").tower("image").shape)
    wanted = [["batch", *images]] if kind == "image" else [["batch", "sequence"]] * 2

    def axes(value):
        return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]

    about = json.loads((graphs / "onnx.json").read_text())["graphs"][kind]
    assert [axes(given) for given in model.graph.input] == wanted == [given["shape"] for given in about["inputs"]]
    assert [axes(given) for given in model.graph.output] == [["batch", 256]]
    names = {
        word for v in model.graph.value_info for axis in axes(v) for word in re.findall(r"[A-Za-z_]\w*", str(axis))
    }
    assert names <= {"batch", "sequence"}
    [told] = [json.loads(entry.value) for entry in model.metadata_props if entry.key == "nearfar"]
    assert told == about | {"dim": 256, "normalised": True}


def test_images_read_as_the_graph_says_have_the_embeddings_of_their_files(graphs, tmp_path):
    """By Pillow and onnxruntime alone: the filter, the sides, the background and the orientation are those that are told."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    facts = json.loads((graphs / "onnx.json").read_text())["graphs"]["image"]["preprocess"]
    assert facts["resize"] | {"as": ""} == {
        "filter": "bilinear",
        "antialias": True,
        "keep_aspect_ratio": False,
        "as": "",
    }
    image = Image.open(tmp_path / "a.png")
    image = Image.alpha_composite(Image.new("RGBA", image.size, facts["transparent"]), image).convert(facts["mode"])
    image = image.resize((facts["width"], facts["height"]), Image.Resampling[facts["resize"]["filter"].upper()])
    read = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    wanted = embedder("image", "text").embed([tmp_path / "a.png"], kind="image")
    torch.testing.assert_close(outputs(graphs, "image", read), wanted, atol=1e-5, rtol=0)


def test_the_folder_holds_whole_files_alone(graphs):
    assert {path.name for path in graphs.iterdir()} == {"image.onnx", "text.onnx", "onnx.json", "tokenizer.json"}


def test_a_graph_that_differs_is_refused_and_not_written(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    made = embedder("vector")
    with pytest.raises(ValueError, match=r"differs from it by .*: more than"):
        export_onnx(made, tmp_path, tolerance=-1.0)
    assert not list(tmp_path.iterdir())
    found = export_onnx(made, tmp_path)
    assert max(found.values()) < 1e-5
    assert made.training
    torch.testing.assert_close(
        outputs(tmp_path, "vector", items("vector")), made.embed(items("vector")), atol=1e-5, rtol=0
    )


# ---- sentence-transformers ------------------------------------------------------------------------------------------


def sentence(folder: Path) -> torch.Tensor:
    """Embeddings by sentence-transformers, from the folder alone."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=False)
    return torch.from_numpy(model.encode(QUERIES, show_progress_bar=False, batch_size=3))


QUERIES = [*TEXTS[:6], "", "BOXES " * 100, "Übergröße 遠い 🙂"]


@pytest.mark.parametrize("kinds", [("text",), ("image", "text")], ids=["alone", "projected"])
def test_text_small_is_read_by_sentence_transformers(kinds, tmp_path, capsys):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    made = embedder(*kinds)
    made.save(tmp_path / "model")
    assert main(["export", str(tmp_path), "--to", "sentence-transformers", "-o", str(tmp_path / "st")]) == 0
    worst = float(re.search(r"equal there to (\S+)", capsys.readouterr().out)[1])
    assert worst <= 1e-5
    torch.testing.assert_close(sentence(tmp_path / "st"), made.embed(QUERIES, kind="text"), atol=1e-5, rtol=0)
    assert (tmp_path / "st" / "2_Dense").exists() == (len(kinds) > 1)
    assert not [path for path in (tmp_path / "st").rglob("*") if path.suffix in (".py", ".bin", ".pt", ".pkl")]


def test_a_transformers_encoder_is_read_by_sentence_transformers(bert, tmp_path):  # noqa: F811
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    made = make_embedder(corpus("text"), f"hf:{bert}", dim=16)
    assert export_sentence(made, tmp_path) <= 1e-5
    torch.testing.assert_close(sentence(tmp_path), made.embed(QUERIES), atol=1e-5, rtol=0)


def test_weights_that_differ_there_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from nearfar.encoders import export_sentence as module

    def wrong(network, pad=0):
        config, state = as_roberta(network, pad)
        return config, state | {"LayerNorm.weight": state["LayerNorm.weight"] * 2 + 0.5 * torch.rand(32)}

    monkeypatch.setattr(module, "as_roberta", wrong)
    with pytest.raises(ValueError, match="sentence-transformers gives embeddings that differ"):
        export_sentence(embedder("text"), tmp_path)
    assert not (tmp_path / "modules.json").exists()  # what is wrong is no model


@pytest.mark.parametrize("pad", [0, 3])
def test_the_transformer_is_robertas_layer_for_layer(pad):
    """In training mode without dropout, and in every gradient: not only in what comes out."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    ours = text_small((12,), vocabulary=40, width=24, heads=3, depth=3, dropout=0.0)
    config, state = as_roberta(ours, pad)
    theirs = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config))
    theirs.load_state_dict(state)
    ids = torch.randint(pad + 1, 40, (4, 12))
    mask = torch.arange(12) < torch.tensor([[12], [7], [1], [3]])
    ids = ids.masked_fill(~mask, pad)
    hidden = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    wanted = (hidden * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
    rows = ours({"ids": ids, "mask": mask})
    torch.testing.assert_close(rows, wanted, atol=1e-5, rtol=1e-5)
    rows.square().sum().backward()
    wanted.square().sum().backward()
    grads = dict(theirs.named_parameters())
    torch.testing.assert_close(
        ours.layers[0].inner.weight.grad, grads["encoder.layer.0.intermediate.dense.weight"].grad
    )
    torch.testing.assert_close(ours.norm.bias.grad, grads["LayerNorm.bias"].grad)


def test_an_image_encoder_is_no_sentence_encoder(tmp_path, capsys):
    embedder("image").save(tmp_path)
    assert main(["export", str(tmp_path), "--to", "sentence-transformers"]) == 2
    assert "sentence-transformers reads texts; this encoder reads image" in capsys.readouterr().err


# ---- safetensors and the Hub ----------------------------------------------------------------------------------------


def test_safetensors_is_what_load_reads(tmp_path, capsys):
    embedder("image").save(tmp_path / "run" / "model")
    assert main(["export", str(tmp_path / "run")]) == 0
    out = tmp_path / "run" / "export-safetensors"
    assert str(out) in capsys.readouterr().out
    assert torch.equal(nf.load(out).embed(items("image")), embedder("image").embed(items("image")))


def test_no_run_no_export(tmp_path, capsys):
    assert main(["export", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_hub_gets_the_folder_and_a_card(tmp_path, monkeypatch, capsys):
    """Against the client's own signatures; nothing goes over the network."""
    hub = pytest.importorskip("huggingface_hub", reason="huggingface-hub is not installed")
    api = create_autospec(hub.HfApi, instance=True)
    seen: dict[str, bytes] = {}

    def upload(**given):
        seen.update({path.name: path.read_bytes() for path in Path(given["folder_path"]).iterdir()})
        assert given["repo_id"] == "me/boxes"
        return hub.CommitInfo(
            commit_url="https://huggingface.co/me/boxes/commit/1", commit_message="", commit_description="", oid="1"
        )

    api.upload_folder.side_effect = upload
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    embedder("image", "text").save(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--to", "hub", "--out", "me/boxes", "--private"]) == 0
    api.create_repo.assert_called_once_with("me/boxes", private=True, exist_ok=True)
    assert "huggingface.co/me/boxes/commit/1" in capsys.readouterr().out
    card = seen.pop("README.md").decode()
    assert "# boxes" in card
    assert 'snapshot_download("me/boxes")' in card
    for name, content in seen.items():
        (tmp_path / name).write_bytes(content)
    assert torch.equal(nf.load(tmp_path).embed(TEXTS[:3]), embedder("image", "text").embed(TEXTS[:3]))


@pytest.mark.parametrize("name", [None, "boxes", "me/boxes/more", "me/bo xes"])
def test_a_repository_has_an_owner_and_a_name(tmp_path, capsys, name):
    embedder("image").save(tmp_path)
    assert main(["export", str(tmp_path), "--to", "hub", *([] if name is None else ["--out", name])]) == 2
    assert "user/name" in capsys.readouterr().err
