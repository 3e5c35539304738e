"""A tiny BERT with a tokenizer of letters, in a folder as transformers saves one."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import torch


def tiny_bert(folder: Path, layers: int = 3) -> Path:
    """Writes it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    letters = [*string.ascii_lowercase, *string.digits]
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(known), encoding="utf-8")
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=40).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(known), hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=40,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder
