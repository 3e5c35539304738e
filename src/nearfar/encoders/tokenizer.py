"""Texts to token ids: a byte-pair encoding learned from the texts themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nearfar.data.labelled import require

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, START = "[PAD]", "[CLS]"


def train_tokenizer(texts: Iterable[str], vocabulary: int = 8192) -> Tokenizer:
    """Learns a byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) from texts.

    Over bytes, so that no text has unknown parts; lower-cased, since a small corpus shows few words in both cases. Every
    text starts with ``[CLS]``, so that an empty one has a token too.

    Args:
        texts: What to learn from.
        vocabulary: The most tokens; small corpora give fewer. At 8,192 common words of a language are one token.

    Raises:
        ImportError: If ``tokenizers`` is not installed.

    Example:
        >>> tokenizer = train_tokenizer(["near and far", "far and away"] * 3)
        >>> tokenizer.encode("Far").tokens
        ['[CLS]', 'Ġfar']
    """
    tokenizers = require("tokenizers", "text-small", "train")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[PAD, START],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start = tokenizer.token_to_id(START)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(START, start)]
    )
    return tokenizer


def read_tokenizer(text: str, where: str) -> Tokenizer:
    """A tokenizer from its JSON.

    Raises:
        ValueError: If it is none; the message names ``where``.
    """
    tokenizers = require("tokenizers", "a text encoder", "train")
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises Exception itself
        raise ValueError(f"{where} is no tokenizer ({error}): was it written in full?") from error


def encode(tokenizer: Tokenizer, texts: list[str], pad: int = 0) -> dict[str, Tensor]:
    """Token ids and a mask ``(n, tokens)``, padded to the longest of the texts.

    A text without any token has one of padding: attention to nothing would be NaN.

    Example:
        >>> encode(train_tokenizer(["a b"] * 2), ["a b", "a"])["mask"].tolist()
        [[True, True, True], [True, True, False]]
    """
    rows = [encoded.ids for encoded in tokenizer.encode_batch(texts)]
    rows = [row or [pad] for row in rows]
    longest = max(map(len, rows), default=0)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], dtype=torch.int64).view(len(rows), -1)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    return {"ids": ids, "mask": torch.arange(longest) < lengths.unsqueeze(1)}
