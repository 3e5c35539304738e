"""A text encoder as a folder of sentence-transformers', with no code in it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.encoders.embedder import Embedder
from nearfar.encoders.pretrained import PooledTransformer
from nearfar.encoders.towers import TextTower
from nearfar.encoders.transformer import TextTransformer
from nearfar.encoders.weights import write_weights
from nearfar.report.files import write_json, write_text

WHY = "an export"
TOLERANCE = 1e-5
TEXTS = ("", "Near and far.", "What belongs together, pulled near: " * 40, "Übergröße, näher? 遠い 近い 🙂")


def export_sentence(embedder: Embedder, folder: str | Path) -> float | None:
    """Writes a folder that ``SentenceTransformer(folder)`` reads offline, and that gives the same embeddings there.

    The modules are transformer, pooling, a dense layer for each projection, and normalisation. ``text-small`` becomes the
    RoBERTa-PreLayerNorm that it is.

    Args:
        embedder: With a text tower; others are left out.
        folder: Where to; made if it is not there.

    Returns:
        The largest difference between the embeddings there and here; None if sentence-transformers is not installed and
        nothing was checked.

    Raises:
        ValueError: If there is no text tower, or embeddings differ by more than 1e-5.
    """
    if "text" not in embedder.kinds:
        raise ValueError(f"sentence-transformers reads texts; this encoder reads {', '.join(embedder.kinds)}")
    tower = embedder.tower("text")
    assert isinstance(tower, TextTower)
    folder = Path(folder)
    network, pooling, linears = tower.network, "mean", []
    if isinstance(network, TextTransformer):
        config, state = as_roberta(network, tower.pad)
        if isinstance(network.head, nn.Linear):
            linears.append(network.head)
    elif isinstance(network, PooledTransformer):
        config, state, pooling = tower.spec["config"], network.model.state_dict(), network.pooling
    else:
        raise ValueError(f"{tower.spec['name']} is no transformer that sentence-transformers could build again")
    if "text" in embedder.projections:
        projection = embedder.projections["text"]
        assert isinstance(projection, nn.Linear)
        linears.append(projection)
    write_json(_made(folder) / "config.json", config)
    write_weights(folder / "model.safetensors", state, WHY)
    _write_tokenizer(folder, tower)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    width = config["hidden_size"]
    modes = {name: name == {"mean": "mean_tokens", "cls": "cls_token"}[pooling] for name in POOLINGS}
    pools = {"word_embedding_dimension": width} | {f"pooling_mode_{name}": on for name, on in modes.items()}
    write_json(_made(folder / "1_Pooling") / "config.json", pools)
    for linear in linears:
        path = f"{len(modules)}_Dense"
        modules.append((path, "Dense"))
        identity = "torch.nn.modules.linear.Identity"
        sizes = {"in_features": linear.in_features, "out_features": linear.out_features}
        write_json(_made(folder / path) / "config.json",
                   sizes | {"bias": linear.bias is not None, "activation_function": identity})  # fmt: skip
        plain = {f"linear.{k}": v for k, v in linear.state_dict().items()}
        write_weights(folder / path / "model.safetensors", plain, WHY)
    modules.append((f"{len(modules)}_Normalize", "Normalize"))
    _made(folder / modules[-1][0])
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": tower.spec["max_length"], "do_lower_case": False}
    )
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    # Last: without it the folder is no model yet.
    write_json(folder / "modules.json", [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(modules)
    ])  # fmt: skip
    return _difference(embedder, folder)


POOLINGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")


def as_roberta(network: TextTransformer, pad: int = 0) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``text-small`` as transformers' RoBERTa-PreLayerNorm: its configuration, and its weights by the names there.

    Positions there count from ``pad + 1``; token types and the pooler, which nothing here has, are zero.
    """
    vocabulary, width = network.tokens.weight.shape
    length = len(network.positions.weight) + pad + 1
    first = network.layers[0] if len(network.layers) else None
    config = {
        "model_type": "roberta-prelayernorm", "architectures": ["RobertaPreLayerNormModel"], "vocab_size": vocabulary,
        "hidden_size": width, "num_hidden_layers": len(network.layers), "num_attention_heads": network.heads,
        "intermediate_size": 4 * width, "hidden_act": "gelu", "max_position_embeddings": length, "type_vocab_size": 1,
        "layer_norm_eps": network.norm.eps, "pad_token_id": pad, "bos_token_id": None, "eos_token_id": None,
        "hidden_dropout_prob": network.dropout.p, "attention_probs_dropout_prob": network.dropout.p, "dtype": "float32",
    }  # fmt: skip
    assert first is None or isinstance(first, nn.Module)
    own = {name: value.detach() for name, value in network.state_dict().items()}
    positions = torch.cat([own["positions.weight"].new_zeros(pad + 1, width), own["positions.weight"]])
    state = {
        "embeddings.word_embeddings.weight": own["tokens.weight"],
        "embeddings.position_embeddings.weight": positions,
        "embeddings.token_type_embeddings.weight": torch.zeros(1, width, dtype=torch.float32),
        "pooler.dense.weight": torch.zeros(width, width, dtype=torch.float32),
        "pooler.dense.bias": torch.zeros(width, dtype=torch.float32),
    }
    for kind in ("weight", "bias"):
        state[f"embeddings.LayerNorm.{kind}"] = own[f"embedding_norm.{kind}"]
        state[f"LayerNorm.{kind}"] = own[f"norm.{kind}"]
        for i in range(len(network.layers)):
            here, there = f"layers.{i}", f"encoder.layer.{i}"
            for name, value in zip(("query", "key", "value"), own[f"{here}.query_key_value.{kind}"].chunk(3)):
                state[f"{there}.attention.self.{name}.{kind}"] = value
            for name, other in NAMES.items():
                state[f"{there}.{other}.{kind}"] = own[f"{here}.{name}.{kind}"]
    return config, state


NAMES = {
    "attention_norm": "attention.LayerNorm", "attention_out": "attention.output.dense", "norm": "intermediate.LayerNorm",
    "inner": "intermediate.dense", "outer": "output.dense",
}  # fmt: skip


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_tokenizer(folder: Path, tower: TextTower) -> None:
    write_text(folder / "tokenizer.json", tower.tokenizer.to_str())
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": tower.tokenizer.id_to_token(tower.pad),
        "model_max_length": tower.spec["max_length"],
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    })  # fmt: skip


def _difference(embedder: Embedder, folder: Path) -> float | None:
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    from sentence_transformers import SentenceTransformer

    other = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=False)
    there = other.encode(list(TEXTS), convert_to_tensor=True, show_progress_bar=False)
    assert isinstance(there, Tensor)
    worst = float((there.cpu() - embedder.embed(list(TEXTS), kind="text")).abs().max())
    if not worst <= TOLERANCE:
        (folder / "modules.json").unlink()
        raise ValueError(
            f"sentence-transformers gives embeddings that differ by {worst:.1e}: more than {TOLERANCE:.0e}"
        )
    return worst
