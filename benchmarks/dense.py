"""Dense forms of the losses, as anyone would write them: the whole matrix, autograd, plain torch.

They are contenders in float32, what `torch.compile` is given, and, in float64, the reference of every error. None of them
imports the library.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TAU = 0.1  # of every softmax loss, but for
DEBIASED_TAU = 0.5  # which is those papers' own: at 0.1 every row sits at the bound of their estimate
K = 16  # noise samples a query of NCE


def own_scores(z: Tensor, tau: float) -> Tensor:
    """Cosines over the temperature, a row left out as its own partner."""
    z = F.normalize(z)
    return (z @ z.T / tau).fill_diagonal_(-torch.inf)


def same(labels: Tensor) -> Tensor:
    """Whether two different rows share a label."""
    return (labels[:, None] == labels).fill_diagonal_(False)


def other_view(n: int) -> Tensor:
    """The row of a sample's other view, where two views of n/2 samples are concatenated."""
    return torch.arange(n).roll(n // 2)


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)


# ---- softmax ---------------------------------------------------------------------------------------------------------


def nt_xent(z1: Tensor, z2: Tensor) -> Tensor:
    scores = own_scores(torch.cat([z1, z2]), TAU)
    return F.cross_entropy(scores, other_view(len(scores)))


def supcon(z: Tensor, labels: Tensor) -> Tensor:
    return -row_mean(own_scores(z, TAU).log_softmax(1), same(labels)).mean()


def info_nce(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(F.normalize(x) @ F.normalize(y).T / TAU, torch.arange(len(x)))


def clip(x: Tensor, y: Tensor) -> Tensor:
    scores, target = F.normalize(x) @ F.normalize(y).T / TAU, torch.arange(len(x))
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def supcon_sets(z: Tensor, labels: Tensor) -> Tensor:
    """Rows that share any class belong together; a row that shares none doesn't count."""
    sets = labels.to(z.dtype)
    positive = (sets @ sets.T > 0).fill_diagonal_(False)
    counts = positive.any(1)
    logs = own_scores(z, TAU).log_softmax(1).masked_fill(~positive, 0.0).sum(1)
    return -(logs[counts] / positive.sum(1)[counts]).mean()


def info_nce_soft(x: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.normalize(x) @ F.normalize(y).T / TAU, target / target.sum(1, keepdim=True))


def clip_twice(x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """Images and texts of one label belong together; those of unknown label, below 0, are left out."""
    scores, known = F.normalize(x) @ F.normalize(y).T / TAU, labels >= 0
    scores = scores.masked_fill(~(known[:, None] & known), torch.finfo(x.dtype).min)
    target = ((labels[:, None] == labels) & known).to(x.dtype)
    target = target[known] / target[known].sum(1, keepdim=True)
    return (F.cross_entropy(scores[known], target) + F.cross_entropy(scores.T[known], target)) / 2


def n_pairs(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x @ y.T, torch.arange(len(x)))


def nca(z: Tensor, labels: Tensor) -> Tensor:
    logs = (-torch.cdist(z, z).square()).fill_diagonal_(-torch.inf).log_softmax(1)
    return -logs.masked_fill(~same(labels), -torch.inf).logsumexp(1).mean()


def _views(z1: Tensor, z2: Tensor, tau: float = TAU) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, the positive of each row, and which pairs are negative."""
    scores = own_scores(torch.cat([z1, z2]), tau)
    rows, other = torch.arange(len(scores)), other_view(len(scores))
    negative = torch.ones_like(scores, dtype=torch.bool).fill_diagonal_(False)
    negative[rows, other] = False
    return scores, scores[rows, other], negative


def dcl(z1: Tensor, z2: Tensor) -> Tensor:
    scores, positive, negative = _views(z1, z2)
    return (scores.masked_fill(~negative, -torch.inf).logsumexp(1) - positive).mean()


def hard_negative(z1: Tensor, z2: Tensor, beta: float = 1.0, tau_plus: float = 0.1) -> Tensor:
    scores, positive, negative = _views(z1, z2, DEBIASED_TAU)
    count, exponential = len(scores) - 2, scores.exp().masked_fill(~negative, 0.0)
    weight = exponential.pow(beta) if beta else negative.to(scores.dtype)
    hard = count * (exponential * weight).sum(1) / weight.sum(1)
    estimate = (hard - tau_plus * count * positive.exp()) / (1 - tau_plus)
    return (estimate.clamp(min=count * math.exp(-1 / DEBIASED_TAU)) / positive.exp()).log1p().mean()


def debiased(z1: Tensor, z2: Tensor) -> Tensor:
    return hard_negative(z1, z2, beta=0.0)


def mutual_information(x: Tensor, y: Tensor) -> Tensor:
    return n_pairs(x, y) - math.log(len(x))


# ---- margins and sigmoids --------------------------------------------------------------------------------------------


def siglip(x: Tensor, y: Tensor) -> Tensor:
    scores = F.normalize(x) @ F.normalize(y).T * 10 - 10
    return -F.logsigmoid(scores * (2 * torch.eye(len(x), dtype=x.dtype) - 1)).sum() / len(x)


def multi_similarity(z: Tensor, labels: Tensor) -> Tensor:
    z = F.normalize(z)
    scores, positive = z @ z.T, same(labels)
    negative = (~positive).fill_diagonal_(False)
    with torch.no_grad():
        easiest = scores.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
        hardest = scores.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
        positive, negative = positive & (scores < hardest + 0.1), negative & (scores > easiest - 0.1)
    pull = (-2 * (scores - 0.5)).exp().masked_fill(~positive, 0.0).sum(1).log1p() / 2
    push = (50 * (scores - 0.5)).exp().masked_fill(~negative, 0.0).sum(1).log1p() / 50
    return (pull + push).mean()


def circle(z: Tensor, labels: Tensor) -> Tensor:
    z = F.normalize(z)
    scores, positive = z @ z.T, same(labels)
    negative, fixed = (~positive).fill_diagonal_(False), scores.detach()
    push = 256 * (fixed + 0.25).clamp(min=0) * (scores - 0.25)
    pull = -256 * (1.25 - fixed).clamp(min=0) * (scores - 0.75)
    push = push.masked_fill(~negative, -torch.inf).logsumexp(1)
    return F.softplus(push + pull.masked_fill(~positive, -torch.inf).logsumexp(1)).mean()


def contrastive(z: Tensor, labels: Tensor) -> Tensor:
    distance, positive = torch.cdist(z, z), same(labels)
    values = torch.where(positive, distance.square(), (1 - distance).clamp(min=0).square()).fill_diagonal_(0.0)
    return values.sum() / (len(z) * (len(z) - 1))


def lifted(z: Tensor, labels: Tensor) -> Tensor:
    distance = torch.cdist(z, z)
    repulsion = (1 - distance).masked_fill(labels[:, None] == labels, -torch.inf).logsumexp(1)
    a, p = same(labels).nonzero(as_tuple=True)
    return (torch.logaddexp(repulsion[a], repulsion[p]) + distance[a, p]).clamp(min=0).square().mean() / 2


def spectral(x: Tensor, y: Tensor) -> Tensor:
    scores, n = x @ y.T, len(x)
    return scores.square().fill_diagonal_(0.0).sum() / (n * (n - 1)) - 2 * scores.diagonal().mean()


# ---- triplets, margin 0.2, Euclidean ---------------------------------------------------------------------------------


def triplet_hard(z: Tensor, labels: Tensor) -> Tensor:
    distance = torch.cdist(z, z)
    positive = distance.masked_fill(~same(labels), -torch.inf).amax(1)
    negative = distance.masked_fill(labels[:, None] == labels, torch.inf).amin(1)
    return (positive - negative + 0.2).clamp(min=0).mean()


def _positives(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each (anchor, positive): its distance, the anchor's distances to all rows, and which of those are negative."""
    distance = torch.cdist(z, z)
    a, p = same(labels).nonzero(as_tuple=True)
    return distance[a, p][:, None], distance[a], (labels[:, None] != labels)[a]


def triplet_all(z: Tensor, labels: Tensor) -> Tensor:
    near, far, negative = _positives(z, labels)
    values = (near - far + 0.2).clamp(min=0).masked_fill(~negative, 0.0)
    return values.sum() / (values > 0).sum()


def triplet_semihard(z: Tensor, labels: Tensor) -> Tensor:
    near, far, negative = _positives(z, labels)
    beyond = far.masked_fill(~negative | (far <= near), torch.inf).amin(1)
    farthest = far.masked_fill(~negative, -torch.inf).amax(1)
    return (near[:, 0] - torch.where(beyond.isfinite(), beyond, farthest) + 0.2).clamp(min=0).mean()


# ---- classes and noise -----------------------------------------------------------------------------------------------


def arcface(z: Tensor, labels: Tensor, table: Tensor) -> Tensor:
    cosine, rows = F.normalize(z) @ F.normalize(table).T, torch.arange(len(z))
    angle = cosine[rows, labels].clamp(-1 + 1e-7, 1 - 1e-7).acos()
    return F.cross_entropy(64 * cosine.index_put((rows, labels), (angle + 0.5).cos()), labels)


def cosface(z: Tensor, labels: Tensor, table: Tensor) -> Tensor:
    cosine = F.normalize(z) @ F.normalize(table).T
    return F.cross_entropy(64 * (cosine - 0.35 * F.one_hot(labels, len(table)).to(z.dtype)), labels)


def proxy_anchor(z: Tensor, labels: Tensor, table: Tensor) -> Tensor:
    cosine, own = F.normalize(z) @ F.normalize(table).T, F.one_hot(labels, len(table)).bool()
    pull = F.softplus((-32 * (cosine - 0.1)).masked_fill(~own, -torch.inf).logsumexp(0))
    push = F.softplus((32 * (cosine + 0.1)).masked_fill(own, -torch.inf).logsumexp(0))
    return pull.mean() + push.mean()  # every class has rows here


def proxy_nca(z: Tensor, labels: Tensor, table: Tensor) -> Tensor:
    return F.cross_entropy(-torch.cdist(F.normalize(z), F.normalize(table)).square(), labels)


def center(z: Tensor, labels: Tensor, table: Tensor) -> Tensor:
    return (z - table[labels]).square().sum(1).mean() / 2


def nce(z: Tensor, targets: Tensor, table: Tensor, samples: Tensor) -> Tensor:
    noise = math.log(K / len(table))
    true = (z * table[targets]).sum(1) - noise
    false = (table[samples] @ z[:, :, None])[..., 0] - noise
    return (F.softplus(-true) + F.softplus(false).sum(1)).mean()


# ---- moments of two views --------------------------------------------------------------------------------------------


def barlow_twins(x: Tensor, y: Tensor) -> Tensor:
    x, y = ((z - z.mean(0)) / z.std(0, correction=0) for z in (x, y))
    correlation = x.T @ y / len(x)
    on = correlation.diagonal()
    return (1 - on).square().sum() + 0.005 * (correlation.square().sum() - on.square().sum())


def vicreg(x: Tensor, y: Tensor) -> Tensor:
    """As in the authors' code."""
    loss = 25 * F.mse_loss(x, y)
    for z in (x, y):
        covariance = (z - z.mean(0)).T @ (z - z.mean(0)) / (len(z) - 1)
        loss = loss + 12.5 * (1 - (z.var(0) + 1e-4).sqrt()).clamp(min=0).mean()
        loss = loss + covariance.square().fill_diagonal_(0.0).sum() / z.shape[1]
    return loss


def align_uniform(x: Tensor, y: Tensor) -> Tensor:
    x, y = F.normalize(x), F.normalize(y)
    uniform = sum(torch.pdist(z).square().mul(-2).exp().mean().log() for z in (x, y))
    return (x - y).square().sum(1).mean() + uniform / 2
