"""A small transformer for texts, to be trained from scratch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def text_small(
    in_shape: tuple[int, ...],
    num_outputs: int | None = None,
    *,
    vocabulary: int = 8192,
    width: int = 256,
    depth: int = 2,
    heads: int = 4,
    dropout: float = 0.1,
) -> TextTransformer:
    """A pre-norm transformer over tokens, and the mean over them.

    Layer for layer the encoder that transformers calls RoBERTa-PreLayerNorm, in plain PyTorch: training needs no other
    package, and what was trained can be handed to transformers and sentence-transformers as a model they know.

    Args:
        in_shape: ``(tokens,)``: the most tokens of a text.
        num_outputs: Adds a linear layer of that many outputs; by default ``width`` features come out.
        vocabulary: Number of token ids.
        width: Of a token's features.
        depth: Layers. Two: a corpus to train from scratch on is small, and each costs time.
        heads: Of attention; a divisor of ``width``.
        dropout: While training, on token features, attention and layers. 0.1 is what makes two passes of one text
            differ, which SimCSE trains on (Gao et al. 2021, arXiv:2104.08821).

    Raises:
        ValueError: If ``heads`` does not divide ``width``.

    Example:
        >>> ids = torch.tensor([[2, 7, 9], [2, 5, 0]])
        >>> text_small((16,), vocabulary=10).eval()({"ids": ids, "mask": ids != 0}).shape
        torch.Size([2, 256])
    """
    if width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}")
    return TextTransformer(vocabulary, in_shape[0], width, depth, heads, dropout, num_outputs)


class TextTransformer(nn.Module):
    """See ``text_small``."""

    def __init__(
        self,
        vocabulary: int,
        max_length: int,
        width: int,
        depth: int,
        heads: int,
        dropout: float,
        num_outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(max_length, width)
        self.embedding_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head: nn.Module = nn.Identity() if num_outputs is None else nn.Linear(width, num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):  # BERT's, with which pre-norm layers start near identity
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, inputs: dict[str, Tensor]) -> Float[Tensor, "n d"]:
        """The mean of a text's token features; ``inputs``: ids ``(n, tokens)``, and a mask that is true at tokens."""
        ids, mask = inputs["ids"], inputs["mask"].bool()
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.embedding_norm(self.tokens(ids) + self.positions(places)))
        seen = mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, seen)
        return self.head(masked_mean(self.norm(x), mask))


def masked_mean(tokens: Float[Tensor, "n t d"], mask: Int[Tensor, "n t"] | Tensor) -> Float[Tensor, "n d"]:
    """The mean of the rows at which the mask is true; a text of no token at all is zero.

    Example:
        >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    weights = mask.to(tokens.dtype).unsqueeze(2)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


class Layer(nn.Module):
    """Attention and a perceptron, each normalised before and added to what came in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "n t d"], seen: Tensor) -> Float[Tensor, "n t d"]:
        """One layer; ``seen`` ``(n, 1, 1, t)`` is true at the tokens that may be looked at."""
        n, t, d = x.shape
        split = self.query_key_value(self.attention_norm(x)).view(n, t, 3, self.heads, d // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout)
        x = x + self.dropout(self.attention_out(mixed.transpose(1, 2).reshape(n, t, d)))
        return x + self.dropout(self.outer(F.gelu(self.inner(self.norm(x)))))
