"""Noise-contrastive estimation: tell the true target from samples of a known noise distribution."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding, logsigmoid
from typing_extensions import Unpack, override

from nearfar.given import as_tensor, at_least, ids_of, is_integer
from nearfar.losses.arguments import (
    Options,
    a_generator,
    as_matrix,
    check_names,
    check_rows,
    check_weights,
    takes,
    with_tensors,
    working_dtype,
)
from nearfar.losses.base import Loss, Outcome, averaged, without_scores
from nearfar.losses.numbers import FINITE
from nearfar.scores.autograd import full_precision
from nearfar.scores.similarity import product


class Noise(nn.Module):
    """A categorical distribution over a vocabulary, sampled in constant time by the alias method.

    Source: Vose 1991, "A linear algorithm for generating random numbers with a given distribution".

    Args:
        weights: Probabilities or counts ``(v,)``, 0 or more; they are normalised.

    Raises:
        ValueError: For negative or non-finite weights, or none above 0.

    Example:
        >>> import torch, nearfar as nf
        >>> noise = nf.Noise(torch.tensor([1.0, 3.0]))
        >>> sample = noise.sample((10_000,), torch.Generator().manual_seed(0))
        >>> abs(float((sample == 1).float().mean()) - 0.75) < 0.02
        True
    """

    log_probability: Float[Tensor, " v"]
    threshold: Float[Tensor, " v"]
    alias: Int[Tensor, " v"]

    def __init__(self, weights: Float[Tensor, " v"]) -> None:
        super().__init__()
        weights = as_tensor("noise", weights, "one weight a word").detach().double().cpu()
        if weights.ndim != 1 or not len(weights):
            raise ValueError(
                f"noise has shape {tuple(weights.shape)}; one weight of 0 or more a word, (v,), was wanted"
            )
        if not bool(weights.isfinite().all()) or bool((weights < 0).any()) or not bool(weights.sum() > 0):
            raise ValueError(
                f"noise has shape {tuple(weights.shape)} and weights from {float(weights.min()):g} to {float(weights.max()):g}; "
                "one finite weight of 0 or more a word, not all 0, was wanted"
            )
        probability = weights / weights.sum()
        threshold, alias = _alias_table(probability)
        self.register_buffer("log_probability", probability.log())
        self.register_buffer("threshold", threshold.float())
        self.register_buffer("alias", alias)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Int[Tensor, "..."]:
        """Independent draws; the same ones for the same generator."""
        device = self.alias.device
        column = torch.randint(len(self.alias), shape, generator=generator, device=device)
        keep = torch.rand(shape, generator=generator, device=device) < self.threshold[column]
        return torch.where(keep, column, self.alias[column])


def _alias_table(probability: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of equal height, each shared by at most two outcomes."""
    size = len(probability)
    heights = (probability * size).tolist()
    threshold, alias = [1.0] * size, list(range(size))
    low = [k for k, height in enumerate(heights) if height < 1]
    high = [k for k, height in enumerate(heights) if height >= 1]
    while low and high:
        small, large = low.pop(), high[-1]
        threshold[small], alias[small] = heights[small], large
        heights[large] -= 1 - heights[small]
        if heights[large] < 1:
            low.append(high.pop())
    return torch.tensor(threshold, dtype=torch.float64), torch.tensor(alias)


def unigram_noise(counts: Tensor, power: float = 0.75) -> Noise:
    """Noise proportional to ``count^power``.

    Source: Mikolov et al. 2013, arXiv:1310.4546, sec. 2.2, which found 3/4 best.

    Args:
        counts: How often each word occurs, ``(v,)``.
        power: 1 is the unigram distribution, 0 the uniform one.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.unigram_noise(torch.tensor([1, 16])).log_probability.exp()  # 1 : 8
        tensor([0.1111, 0.8889], dtype=torch.float64)
    """
    return Noise(as_tensor("counts", counts, "one number a word").double() ** FINITE("power", power))


def _count(what: str, value: Any) -> int:
    return at_least(what, value, 1, "a whole number, at least one noise sample a query")


def _words(what: str, words: Any, table: Tensor, *shapes: tuple[int, ...]) -> Tensor:
    """Words of a table, in one of some shapes."""
    words, wanted = ids_of(what, words, table.device), " or ".join(map(str, shapes))
    if words.shape not in shapes or not is_integer(words):
        raise ValueError(f"{what} are {words.dtype} {tuple(words.shape)}; integers {wanted} were wanted")
    if words.numel() and words.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(words.min()), int(words.max())
        if low < 0 or high >= len(table):
            raise ValueError(f"{what} reach from {low} to {high}; words of the table are 0 to {len(table) - 1}")
    return words.long()


@without_scores
@takes(log_z=FINITE, k=_count, generator=a_generator)
def nce_loss(
    queries: Tensor,
    targets: Tensor,
    table: Tensor,
    *,
    noise: Noise,
    k: int,
    bias: Tensor | None = None,
    log_z: float | Tensor = 0.0,
    samples: Tensor | None = None,
    generator: torch.Generator | None = None,
    **options: Unpack[Options],
) -> Outcome:
    """NCE: ``−log σ(Δ(target)) − Σ_{j≤k} log σ(−Δ(w_j))``, ``Δ(w) = ⟨q, t_w⟩ + b_w − log Z − log(k·noise_w)``.

    With scores that are normalised log-probabilities, the expected gradient tends to that of the full softmax at O(1/k).

    Source: Gutmann & Hyvärinen 2010, "Noise-contrastive estimation", eq. 3; Mnih & Teh 2012, arXiv:1206.6426, eq. 8.

    Args:
        queries: Contexts ``(n, d)``.
        targets: The true words ``(n,)``.
        table: Word vectors ``(v, d)``.
        noise: The distribution of the samples.
        k: Noise samples a query.
        bias: ``(v,)``.
        log_z: Logarithm of the normaliser; 0 lets the model normalise itself.
        samples: The noise words, ``(n, k)`` or shared ``(k,)``, in place of drawing them.
        generator: For the draw.
        **options: ``weights`` and ``validate`` of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> noise, table = nf.Noise(torch.ones(4)), torch.zeros(4, 2)
        >>> nf.functional.nce_loss(torch.zeros(1, 2), torch.tensor([1]), table, noise=noise, k=4)  # Δ = 0: 5·log 2
        tensor(3.4657)
    """
    check_names(options)
    x = as_matrix("queries", queries)
    rows, options = as_matrix("table", table, x), with_tensors(options, x.device)
    n, v = len(x), len(rows)
    if x.shape[1] != rows.shape[1]:
        raise ValueError(f"queries have {x.shape[1]} features but the table has {rows.shape[1]}: both need the same")
    targets = _words("targets", targets, rows, (n,))
    if not isinstance(noise, Noise):
        raise TypeError(f"noise is a {type(noise).__name__}; an nf.Noise(weights) was wanted")
    if len(noise.log_probability) != v:
        raise ValueError(f"the noise has {len(noise.log_probability)} words but the table has {v}")
    if bias is not None:
        bias = as_tensor("bias", bias, "one number a word", x.device)
        if bias.shape != (v,):
            raise ValueError(f"bias has shape {tuple(bias.shape)}; one number a word, ({v},), was wanted")
    unused = set(options) - {"weights", "validate", "backend", "precision"}
    if unused:
        raise TypeError(f"{min(unused)}= speaks of in-batch pairs; NCE has none")
    check_rows("queries", x, options.get("validate"))
    drawn = noise.sample((n, k), generator) if samples is None else _words("samples", samples, rows, (k,), (n, k))
    dtype = working_dtype(x, rows)

    def delta(words: Tensor, scores: Tensor) -> Tensor:
        scores = scores if bias is None else scores + bias.to(dtype)[words]
        return scores - log_z - math.log(k) - noise.log_probability.to(dtype)[words]

    def values() -> Tensor:
        with full_precision(x):
            contexts, vectors = x.to(dtype), rows.to(dtype)
            true = (contexts * embedding(targets, vectors)).sum(1)
            if drawn.ndim == 1:  # shared: no vector is read twice
                false = product(contexts, embedding(drawn, vectors))
            else:
                false = product(contexts[:, None], embedding(drawn, vectors))[:, 0]
            return -logsigmoid(delta(targets, true)) - logsigmoid(-delta(drawn, false)).sum(1)

    weights = check_weights(options.get("weights"), options.get("validate"), n)
    keep = torch.ones(n, dtype=torch.bool, device=x.device)
    return averaged(values, keep, None if weights is None else weights.to(dtype), lambda: {"queries": torch.tensor(n)})


class NCELoss(Loss):
    """Noise-contrastive estimation; see :func:`nearfar.functional.nce_loss`.

    Called as ``loss(queries, targets, table, bias=None, generator=None)``.

    Args:
        noise: A :class:`Noise`, or probabilities or counts ``(v,)``.
        k: Noise samples a query: the bias against softmax's gradient falls as 1/k.
        normalizer: ``"zero"``: the scores should normalise themselves (Mnih & Teh 2012 found that they do); a number: the
            logarithm of a fixed normaliser; ``"learned"``: one parameter ``log_z``.
        **options: ``weights`` and ``validate``.

    Example:
        >>> import torch, nearfar as nf
        >>> loss = nf.NCELoss(torch.ones(4), k=4)
        >>> loss(torch.zeros(1, 2), torch.tensor([1]), torch.zeros(4, 2))
        tensor(3.4657)
    """

    function = nce_loss

    def __init__(
        self,
        noise: Noise | Tensor,
        k: int = 16,
        *,
        normalizer: Literal["zero", "learned"] | float = "zero",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if isinstance(normalizer, str) and normalizer not in ("zero", "learned"):
            raise ValueError(f"normalizer={normalizer!r} is not known: 'zero', 'learned' or a number, the fixed log Z")
        self.noise = noise if isinstance(noise, Noise) else Noise(noise)
        self.k = _count("k", k)
        fixed = 0.0 if isinstance(normalizer, str) else FINITE("normalizer", normalizer)
        self.log_z = nn.Parameter(torch.zeros(())) if normalizer == "learned" else fixed

    @override
    def arguments(self) -> dict[str, Any]:
        return {"noise": self.noise, "k": self.k, "log_z": self.log_z}

    def forward(
        self,
        queries: Tensor,
        targets: Tensor,
        table: Tensor,
        bias: Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The loss, a scalar."""
        return super().forward(queries, targets, table, bias=bias, generator=generator, **kwargs)
