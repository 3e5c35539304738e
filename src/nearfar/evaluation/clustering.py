"""Whether clusters are classes: k-means on the rows, compared with labels. Needs scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.data.labelled import require
from nearfar.evaluation.inputs import as_ids, as_rows
from nearfar.evaluation.scoring import in_range, unit_of
from nearfar.given import at_least, whole
from nearfar.lengths import unit_rows

LARGE = 50_000  # rows from which mini-batches are used: the difference is then small, the time is not
MEASURES = ("nmi", "ari", "purity", "accuracy")


def kmeans(
    embeddings: Float[Tensor, "n d"], clusters: int, *, seed: int = 0, normalize: bool = True
) -> Int64[Tensor, "n"]:
    """Clusters by k-means: scikit-learn's, the best of ten starts; by mini-batches from 50,000 rows on.

    Args:
        embeddings: ``(n, d)``.
        clusters: How many.
        seed: Of the starts.
        normalize: Divide rows by their length first: clusters of directions.

    Raises:
        ValueError: If there are fewer rows than clusters.

    Example:
        >>> found = kmeans(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), 2)
        >>> bool(found[0] == found[1]), bool(found[0] == found[2])
        (True, False)
    """
    embeddings = as_rows("embeddings", embeddings)
    clusters, seed = whole("clusters", clusters), at_least("seed", seed, 0)
    if not 1 <= clusters <= len(embeddings):
        raise ValueError(f"{clusters} clusters of {len(embeddings)} rows: wanted 1 to {len(embeddings)}")
    cluster = require("sklearn.cluster", "clustering")
    rows = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    rows = unit_rows(rows) if normalize else in_range(rows, unit_of(rows))
    if len(rows) < LARGE:
        model = cluster.KMeans(clusters, n_init=10, random_state=seed)
    else:
        model = cluster.MiniBatchKMeans(clusters, n_init=10, batch_size=4096, random_state=seed)
    with warnings.catch_warnings():  # of fewer different rows than clusters, which the clusters say
        warnings.simplefilter("ignore", require("sklearn.exceptions", "clustering").ConvergenceWarning)
        return torch.from_numpy(model.fit_predict(rows.cpu().numpy())).to(torch.int64)


def cluster_agreement(labels: Int64[Tensor, "n"], clusters: Int64[Tensor, "n"]) -> dict[str, float]:
    """How far clusters and classes are the same.

    ``nmi``: mutual information over the mean of the entropies. ``ari``: pairs judged alike, corrected for chance.
    ``purity``: the share of rows in their cluster's largest class (grows with the number of clusters). ``accuracy``: with
    clusters given to classes one to one in the best way (Hungarian method).

    Args:
        labels: Classes; rows with a negative one are left out.
        clusters: Cluster ids.

    Raises:
        ValueError: If no row has a label.

    Example:
        >>> cluster_agreement(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]))
        {'nmi': 1.0, 'ari': 1.0, 'purity': 1.0, 'accuracy': 1.0}
    """
    labels = as_ids("labels", labels, len(labels)).cpu()
    clusters = as_ids("clusters", clusters, len(labels)).cpu()
    clusters, labels = clusters[labels >= 0], labels[labels >= 0]
    if not len(labels):
        raise ValueError("no row has a label (0 or more): nothing to compare with")
    metrics = require("sklearn.metrics", "clustering")
    assignment = require("scipy.optimize", "clustering").linear_sum_assignment
    _, rows = labels.unique(return_inverse=True)
    _, columns = clusters.unique(return_inverse=True)
    table = torch.zeros(int(rows.max()) + 1, int(columns.max()) + 1, dtype=torch.int64)
    table.index_put_((rows, columns), torch.ones_like(rows), accumulate=True)
    matched = assignment(-table.numpy())
    return {
        "nmi": float(metrics.normalized_mutual_info_score(labels.numpy(), clusters.numpy())),
        "ari": float(metrics.adjusted_rand_score(labels.numpy(), clusters.numpy())),
        "purity": float(table.amax(0).sum()) / len(labels),
        "accuracy": float(table.numpy()[matched].sum()) / len(labels),
    }


def clustering(
    embeddings: Float[Tensor, "n d"],
    labels: Int64[Tensor, "n"],
    *,
    clusters: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    normalize: bool = True,
) -> dict[str, tuple[float, float]]:
    """k-means against classes: mean and standard deviation over seeds of each measure of :func:`cluster_agreement`.

    Args:
        embeddings: ``(n, d)``.
        labels: Classes; rows with a negative one are left out.
        clusters: How many; by default as many as classes.
        seeds: Of k-means; one run each.
        normalize: As in :func:`kmeans`.

    Raises:
        ValueError: If no row has a label, or there are as many clusters as rows: those agree with any classes of one row.

    Example:
        >>> clustering(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1]))["nmi"]
        (1.0, 0.0)
    """
    embeddings = as_rows("embeddings", embeddings)
    labels = as_ids("labels", labels, len(embeddings)).to(embeddings.device)
    seeds = [at_least("seeds", seed, 0) for seed in seeds]
    if not seeds:
        raise ValueError("no seeds were given: one run at least was wanted")
    rows, labels = embeddings[labels >= 0], labels[labels >= 0]
    if not len(labels):
        raise ValueError("no row has a label (0 or more): nothing to compare with")
    count = len(labels.unique()) if clusters is None else clusters
    if count == len(rows):
        raise ValueError(
            f"{count} clusters of {count} rows: each row is a cluster of its own, whatever the embeddings are. Pass clusters=, or "
            "rows that share classes"
        )
    found = [cluster_agreement(labels, kmeans(rows, count, seed=seed, normalize=normalize)) for seed in seeds]
    values = {name: np.array([run[name] for run in found]) for name in MEASURES}
    return {name: (float(v.mean()), float(v.std(ddof=1)) if len(v) > 1 else 0.0) for name, v in values.items()}
