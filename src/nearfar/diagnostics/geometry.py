"""How embeddings lie: aligned, uniform, in how many dimensions. Exact at any number of rows, by tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nearfar.given import at_least, ids_of, is_integer
from nearfar.lengths import safe_range, unit_rows
from nearfar.losses.arguments import as_matrix, check_range, check_rows
from nearfar.scores.autograd import full_precision
from nearfar.scores.matmul import mm
from nearfar.scores.similarity import tile_scores

_TILE = 2048
FEW = 5
"""Rows. Fewer span so few directions that the effective rank would count the rows, not what was learned."""


def _rows(name: str, z: Tensor, least: int) -> Tensor:
    """Finite rows in a type that statistics can be trusted in."""
    z = as_matrix(name, z).detach()
    if len(z) < least or not z.shape[1]:
        raise ValueError(f"{name} has shape {tuple(z.shape)}: at least {least} rows and one feature were wanted")
    check_rows(name, z, True)
    return z if z.dtype == torch.float64 else z.float()


def classes_of(labels: Any, rows: int) -> Int64[Tensor, "n"]:
    """Class ids, one a row, in a tensor, an array or a list, or in a column ``(n, 1)``; negative: unknown.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If they are no integers, or not one for each row.
    """
    ids = ids_of("labels", labels)
    if ids.shape != (rows,) or not is_integer(ids):
        raise ValueError(
            f"labels are {ids.dtype} {tuple(ids.shape)}: integer class ids ({rows},), one for each row, were wanted"
        )
    return ids.long()


def alignment(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], alpha: float = 2.0, *, normalize: bool = True
) -> float:
    """How near partners lie: ``mean_i ‖z_i − z'_i‖^α``; 0 is perfect, 2 (α = 2) that of unrelated directions.

    Source: Wang & Isola 2020, arXiv:2005.10242, sec. 4.1 (ℓ_align).

    Args:
        first: ``(n, d)``.
        second: ``(n, d)``, its row i the partner of row i.
        alpha: The exponent; 2 is the paper's.
        normalize: Divide rows by their length first; the measure is one of directions.

    Raises:
        ValueError: If shapes differ or rows are not finite.

    Example:
        >>> alignment(torch.eye(2), torch.eye(2).flip(0))
        2.0
    """
    first, second = _rows("first", first, 1), _rows("second", second, 1)
    if first.shape != second.shape:
        raise ValueError(
            f"the sides are {tuple(first.shape)} and {tuple(second.shape)}: row i belongs to row i, so both alike"
        )
    check_range("alpha", alpha, 0.0)
    if normalize:
        first, second = unit_rows(first), unit_rows(second)
    square = (first.double() - second.double()).square().sum(1)
    return float((square if alpha == 2 else square.sqrt() ** alpha).mean())


def class_alignment(z: Float[Tensor, "n d"], labels: Int64[Tensor, "n"], *, normalize: bool = True) -> float | None:
    """:func:`alignment` with α = 2 over all pairs of one class, in O(n·d): ``Σ_{i≠j} ‖z_i − z_j‖² = 2·(c·Σ|z|² − |Σz|²)``.

    Args:
        z: ``(n, d)``.
        labels: Class ids; rows with a negative one are left out.
        normalize: As in :func:`alignment`.

    Returns:
        The mean over the pairs, or ``None`` where no class has two rows.

    Example:
        >>> class_alignment(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1]))
        2.0
    """
    z = _rows("z", z, 1)
    labels = classes_of(labels, len(z)).to(z.device)
    z = (unit_rows(z) if normalize else z)[labels >= 0].double()
    names, which = labels[labels >= 0].unique(return_inverse=True)
    counts = torch.bincount(which, minlength=len(names)).double()
    pairs = float((counts * (counts - 1)).sum())
    if not pairs:
        return None
    sums = z.new_zeros(len(names), z.shape[1]).index_add_(0, which, z)
    squares = z.new_zeros(len(names)).index_add_(0, which, z.square().sum(1))
    return max(0.0, float(2 * (counts * squares - sums.square().sum(1)).sum()) / pairs)


def uniformity(z: Float[Tensor, "n d"], t: float = 2.0, *, normalize: bool = True) -> float:
    """How evenly rows cover the sphere: ``log mean_{i<j} e^{−t‖z_i − z_j‖²}``; 0 is one point, −4 at t = 2 about the best.

    Source: Wang & Isola 2020, arXiv:2005.10242, sec. 4.1 (ℓ_uniform). All pairs are seen, in tiles of float32 (float64
    for float64 rows) with sums in float64.

    Args:
        z: ``(n, d)``, two rows at least.
        t: The kernel's width; 2 is the paper's.
        normalize: Divide rows by their length first.

    Raises:
        ValueError: With fewer than two rows, or rows that are not finite.

    Example:
        >>> round(uniformity(torch.eye(3)), 4)  # every distance is √2
        -4.0
    """
    z = _rows("z", z, 2)
    check_range("t", t, 0.0)
    z = unit_rows(z) if normalize else z
    if float(z.abs().max()) > safe_range(z.dtype, z.shape[1])[1]:
        z = z.double()  # float32 does not hold their squared distances
    # exponents relative to the largest of a first look keep far rows from vanishing: log of a sum, tile by tile
    largest, total = -math.inf, 0.0
    with full_precision(z), torch.no_grad():
        for i, j in _tiles(len(z)):
            exponents = tile_scores(z[i], z[j], "sqeuclidean").mul_(-t)
            if i == j:
                above = torch.ones_like(exponents, dtype=torch.bool).triu_(1)
                exponents = exponents.masked_fill_(~above, -torch.inf)
                if not bool(above.any()):
                    continue
            highest = float(exponents.max())
            here = float(exponents.sub_(highest).exp_().sum(dtype=torch.float64))
            new = max(largest, highest)
            total = total * math.exp(largest - new) + here * math.exp(highest - new)
            largest = new
    return min(0.0, math.log(total / (len(z) * (len(z) - 1) / 2)) + largest)


def _tiles(n: int) -> Iterator[tuple[slice, slice]]:
    """Every pair once: tiles on and above the diagonal."""
    for start in range(0, n, _TILE):
        for other in range(start, n, _TILE):
            yield slice(start, min(start + _TILE, n)), slice(other, min(other + _TILE, n))


def spectrum(z: Float[Tensor, "n d"], *, normalize: bool = True) -> Float64[Tensor, "k"]:
    """Eigenvalues of the covariance of the rows, descending: the variance along each principal direction.

    Args:
        z: ``(n, d)``, two rows at least.
        normalize: Divide rows by their length first, as the loss does.

    Returns:
        ``min(n, d)`` of them, as float64.

    Example:
        >>> spectrum(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor([2., 0.], dtype=torch.float64)
    """
    z = _rows("z", z, 2)
    z = (unit_rows(z) if normalize else z).double()
    z = z - z.mean(0)
    # the Gram matrix has the same ones, and may be the smaller
    values = torch.linalg.eigvalsh(z @ z.T if len(z) < z.shape[1] else z.T @ z)
    return values.flip(0).clamp_min(0.0) / (len(z) - 1)


def effective_rank(z: Float[Tensor, "n d"], *, normalize: bool = True) -> float:
    """In how many dimensions rows vary: ``exp(H(p))``, ``p_k = σ_k / Σσ``, σ the singular values of the centred rows.

    Between 1 and ``min(n − 1, d)``; 0 where all rows are the same. Source: Roy & Vetterli 2007, "The effective rank", eq. 4.

    Args:
        z: ``(n, d)``.
        normalize: As in :func:`spectrum`.

    Example:
        >>> round(effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 6)
        2.0
    """
    variances = spectrum(z, normalize=normalize)
    length = float((unit_rows(_rows("z", z, 2)) if normalize else z).double().square().sum(1).mean())
    return rank_of(variances, length)


def rank_of(variances: Float64[Tensor, "k"], length: float = 1.0) -> float:
    """:func:`effective_rank` from a spectrum, and the mean squared length of a row, below 10⁻¹² of which nothing counts:
    float32 rows are not told apart there.
    """
    singular = variances[variances > 1e-12 * length].sqrt()
    if not len(singular):
        return 0.0
    p = singular / singular.sum()
    return float(torch.exp(-(p * p.log()).sum()))


def feature_std(z: Float[Tensor, "n d"], *, normalize: bool = True) -> float:
    """The mean over features of their standard deviation over rows; 0 is collapse, ``1/√d`` a uniform sphere.

    Source: Chen & He 2021 (SimSiam), arXiv:2011.10566, sec. 4.1.

    Args:
        z: ``(n, d)``.
        normalize: Divide rows by their length first.

    Example:
        >>> feature_std(torch.ones(4, 2)), round(feature_std(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), 4)
        (0.0, 0.5)
    """
    z = _rows("z", z, 2)
    z = (unit_rows(z) if normalize else z).double()
    return float(z.std(0, correction=0).mean())


def mean_cosine(z: Float[Tensor, "n d"]) -> float:
    """The mean cosine of two different rows, over all pairs in O(n·d): ``(|Σz|² − n') / (n·(n − 1))``; 1 is one direction.

    Example:
        >>> mean_cosine(torch.eye(2)), mean_cosine(torch.ones(3, 2))
        (0.0, 1.0)
    """
    z = unit_rows(_rows("z", z, 2).double())
    n = len(z)
    return round(float((z.sum(0).square().sum() - z.square().sum()) / (n * (n - 1))), 12)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Cosines of pairs that belong together and of pairs that do not."""

    edges: Float64[Tensor, "bins_and_one"]
    positives: Int64[Tensor, "bins"]
    negatives: Int64[Tensor, "bins"]

    @property
    def overlap(self) -> float:
        """What the two distributions share: 0 apart, 1 the same."""
        if not int(self.positives.sum()) or not int(self.negatives.sum()):
            return math.nan
        shares = [counts.double() / counts.sum() for counts in (self.positives, self.negatives)]
        return float(torch.minimum(*shares).sum())


def similarity_histogram(
    z: Float[Tensor, "n d"],
    labels: Int64[Tensor, "n"] | None = None,
    partners: Float[Tensor, "n d"] | None = None,
    bins: int = 100,
) -> Histogram:
    """Counts of cosines, of positive and of negative pairs: every pair, in tiles.

    Args:
        z: ``(n, d)``.
        labels: Class ids: each unordered pair of rows of one class is positive, of two classes negative; a pair with a
            negative id is left out.
        partners: In place of labels: row i of both belongs together, every other (i, j) is negative.
        bins: Between −1 and 1.

    Raises:
        ValueError: If not exactly one of ``labels`` and ``partners`` is given.

    Example:
        >>> found = similarity_histogram(torch.eye(2), partners=torch.eye(2), bins=4)
        >>> found.positives.tolist(), found.negatives.tolist(), found.overlap
        ([0, 0, 0, 2], [0, 0, 2, 0], 0.0)
    """
    if (labels is None) == (partners is None):
        raise ValueError("pass labels, or partners, to say which rows belong together")
    z = unit_rows(_rows("z", z, 1))
    other = z if partners is None else unit_rows(_rows("partners", partners, 1)).to(z.dtype)
    labels = None if labels is None else classes_of(labels, len(z)).to(z.device)
    if other.shape != z.shape:
        raise ValueError(
            f"rows are {tuple(z.shape)} and {tuple(other.shape)} was given beside them: one for each row was wanted"
        )
    bins = at_least("bins", bins, 1)
    counts = torch.zeros(2, bins, dtype=torch.int64)
    with full_precision(z), torch.no_grad():
        starts = [(i, j) for i in range(0, len(z), _TILE) for j in range(0 if labels is None else i, len(z), _TILE)]
        for i, j in starts:
            cosines = mm(z[i : i + _TILE], other[j : j + _TILE].T)
            place = cosines.add_(1).mul_(bins / 2).to(torch.int64).clamp_(0, bins - 1)
            rows = torch.arange(i, i + place.shape[0], device=z.device)[:, None]
            columns = torch.arange(j, j + place.shape[1], device=z.device)
            if labels is None:
                same, seen = rows == columns, torch.ones_like(place, dtype=torch.bool)
            else:
                y, w = labels[rows], labels[columns]
                same, seen = y == w, (rows < columns) & (y >= 0) & (w >= 0)
            for row, where in enumerate((seen & same, seen & ~same)):
                counts[row] += torch.bincount(place[where], minlength=bins).cpu()
    return Histogram(torch.linspace(-1, 1, bins + 1, dtype=torch.float64), counts[0], counts[1])


def geometry(
    z: Float[Tensor, "n d"],
    labels: Int64[Tensor, "n"] | None = None,
    partners: Float[Tensor, "n d"] | None = None,
) -> dict[str, float]:
    """The figures of a look at the geometry: ``alignment`` (where partners or classes are known), ``uniformity``,
    ``effective_rank``, ``feature_std``, ``mean_cosine``.

    Args:
        z: ``(n, d)``, two rows at least.
        labels: Classes; pairs of one class are partners.
        partners: Row i belongs to row i.

    Example:
        >>> {name: round(value, 3) for name, value in geometry(torch.eye(3), partners=torch.eye(3)).items()}
        {'alignment': 0.0, 'uniformity': -4.0, 'effective_rank': 2.0, 'feature_std': 0.471, 'mean_cosine': 0.0}
    """
    figures: dict[str, float] = {}
    if partners is not None:
        figures["alignment"] = alignment(z, partners)
    elif labels is not None and (aligned := class_alignment(z, labels)) is not None:
        figures["alignment"] = aligned
    return figures | {
        "uniformity": uniformity(z),
        "effective_rank": effective_rank(z),
        "feature_std": feature_std(z),
        "mean_cosine": mean_cosine(z),
    }
