"""``nf.evaluate``: everything that embeddings, with what is known of them, allow to be measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from nearfar.data.classes import Classes, number_classes
from nearfar.evaluation.clustering import cluster_agreement, kmeans
from nearfar.evaluation.evaluation import Evaluation, Measure
from nearfar.evaluation.inputs import as_ids, as_ks, as_rows, as_scores, as_tensors, lost_digits
from nearfar.evaluation.intervals import bootstrap_interval, share_interval
from nearfar.evaluation.knn import fitting_voters, knn_vote
from nearfar.evaluation.neighbours import METRICS, Metric
from nearfar.evaluation.probe import linear_probe
from nearfar.evaluation.retrieval import Relevant, Retrieval, Unknown, pair_retrieval, relevance_retrieval, retrieval
from nearfar.evaluation.similarity import correlation_interval, sts
from nearfar.evaluation.verification import Roc, calibrate, listed_scores, pair_scores, roc
from nearfar.evaluation.zeroshot import zero_shot
from nearfar.given import at_least, ids_of
from nearfar.losses.arguments import choice

FEW = 10
"""Rows. Of fewer, a figure says so."""
QUERIES = 10_000
"""Rows that query at most: the 95% interval of a share is then ±1 point at the widest."""
TASKS = ("knn", "probe", "retrieval", "verification", "clustering", "zero-shot", "similarity")
Given = Tensor | np.ndarray
FARS = (1e-1, 1e-2, 1e-3, 1e-4)
"""False acceptance rates at which true ones are told, as far down as there are impostors to measure them by."""


def evaluate(
    embeddings: Float[Given, "n d"],
    labels: Classes | None = None,
    *,
    pairs: Float[Given, "n d"] | None = None,
    scores: Float[Given, "n"] | None = None,
    ids: Integer[Given, "n"] | Integer[Given, "n k"] | None = None,
    gallery: tuple[Float[Given, "m d"], Classes] | Float[Given, "m d"] | None = None,
    relevant: Sequence[Relevant] | None = None,
    train: tuple[Float[Given, "t d"], Classes] | None = None,
    prototypes: Float[Given, "classes d"] | None = None,
    tasks: Sequence[str] | None = None,
    k: int = 20,
    ks: Sequence[int] = (1, 5, 10),
    metric: Metric = "cosine",
    queries: int | None = QUERIES,
    seed: int = 0,
    unknown: Unknown = "ignore",
) -> Evaluation:
    """Measures what the inputs allow.

    Rows without a label are left out of everything, and counted in the notes; ``unknown="negative"`` keeps them as keys of
    retrieval that are relevant to nobody. Where keys have the same score, a figure of retrieval is its mean over their orders.

    ========================================  =================================================================
    given                                     measured
    ========================================  =================================================================
    ``labels``                                kNN vote and retrieval among the other rows, verification, clusters
    ``labels``, ``train=(rows, labels)``      kNN vote and linear probe that learn from those
    ``labels``, ``gallery=(rows, labels)``    retrieval from the gallery
    ``labels``, ``prototypes``                zero-shot classification
    ``pairs``                                 retrieval of each row's partner, both ways
    ``pairs``, ``scores``                     Spearman's and Pearson's correlation of cosines with the scores (STS)
    ``pairs``, ``scores`` of 0 and 1          the same, and verification: similar pairs told from the others
    ``gallery=rows``, ``relevant``            retrieval by lists
    ========================================  =================================================================

    Args:
        embeddings: ``(n, d)``, of rows that were not trained on. Here and below, arrays of NumPy's do as well.
        labels: Their classes or identities: integers, where negative is unknown; or names, in a sequence, an array or a column
            of a data frame, where a missing one is unknown.
        pairs: Their partners ``(n, d)``: row i belongs to row i, such as captions of images.
        scores: How alike row i and its partner are judged to be; then ``pairs`` are not retrieved.
        ids: Rows of one id are the same thing: for ``pairs`` with several partners of one row. With several columns: rows that
            share an id in any of them; negative: none.
        gallery: Keys with their classes, or with ``relevant=`` alone, to retrieve from in place of the other rows.
        relevant: For each row, the gallery's rows that are relevant, or row to grade.
        train: Rows to learn classifiers from, and their classes.
        prototypes: An embedding a class, of its prompts (:func:`nearfar.evaluation.zeroshot.prompt_prototypes`).
        tasks: Only these of ``"knn"``, ``"probe"``, ``"retrieval"``, ``"verification"``, ``"clustering"``,
            ``"zero-shot"``, ``"similarity"``.
        k: Neighbours that vote, at most: no more than nine rows in ten have of their class.
        ks: Cut-offs of retrieval.
        metric: How rows are compared.
        queries: Rows that query, at most, drawn with the seed; ``None``: all.
        seed: Of draws.
        unknown: What becomes of rows without a label, as in :func:`nearfar.evaluation.retrieval.retrieval`.

    Returns:
        ``Evaluation``: ``print`` it, look up ``result["recall@1"]``, or take ``.to_dict()``.

    Raises:
        TypeError: If an input is neither a tensor nor an array.
        ValueError: If there is nothing to measure with, or an input is not as said.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> nf.evaluate(z, torch.tensor([0, 0, 1, 1]), ks=(1,))["recall@1"]
        1.0
    """
    tasks = () if tasks is None else tasks
    tasks = tuple(tasks) if isinstance(tasks, Iterable) and not isinstance(tasks, str) else (tasks,)
    for task in tasks:
        choice("tasks", task, TASKS)
    choice("metric", metric, METRICS)
    k, ks, seed = at_least("k", k, 1), as_ks("ks", ks), at_least("seed", seed, 0)
    queries = None if queries is None else at_least("queries", queries, 1)
    searched, taught = _with_classes("gallery", gallery), _with_classes("train", train)
    classes, theirs, learned_from = number_classes(labels, *(given and given[1] for given in (searched, taught)))
    rows, partners, prompts = (
        as_rows("embeddings", as_tensors(embeddings)),
        _rows("pairs", pairs),
        _rows("prototypes", prototypes),
    )
    keys = _rows("gallery", gallery) if searched is None else _classified("gallery", searched[0], theirs)
    learned = None if taught is None else _classified("train", taught[0], learned_from)
    judged = None if scores is None else as_scores("scores", scores)
    same = None if ids is None else ids_of("ids", ids)
    choice("unknown", unknown, ("ignore", "negative"))
    _fits(classes, partners, judged, same, keys, relevant, learned, prompts)
    work = _Work(frozenset(tasks or TASKS), ks, metric, queries, seed)
    work.note(*lost_digits(rows, metric))
    if classes is not None:
        classes = as_ids("labels", classes, len(rows)).to(rows.device)
        known = classes >= 0
        if not bool(known.any()):
            raise ValueError(f"none of {len(classes)} rows has a label (0 or more)")
        if not bool(known.all()):
            where = "" if unknown == "ignore" else " of all but retrieval"
            work.note(f"{int((~known).sum()):,} rows without a label were left out{where}")
        z, y = rows[known], classes[known]
        work.knn(z, y, learned, k)
        if learned is not None:
            work.probe(z, y, learned)
        work.label_retrieval(*((z, y) if unknown == "ignore" else (rows, classes)), keys, unknown)
        work.verification(z, y)
        work.clustering(z, y)
        if prompts is not None:
            work.zero_shot(z, y, prompts)
    if relevant is not None and "retrieval" in work.tasks:
        assert isinstance(keys, Tensor)
        found = relevance_retrieval(rows, keys, relevant, ks=ks, metric=metric)
        work.add_retrieval("retrieval", found, lists=True)
    if partners is not None and judged is not None:
        work.similarity(rows, partners, judged)
        work.judged(rows, partners, judged)
    elif partners is not None and "retrieval" in work.tasks:
        if rows.shape == partners.shape and (alike := int((rows == partners.to(rows)).all(1).sum())):
            which = (
                "all rows are"
                if alike == len(rows)
                else "1 row is"
                if alike == 1
                else f"{alike:,} of {len(rows):,} rows are"
            )
            work.note(f"{which} the same as their partner, which any embedding finds", task="retrieval")
        for task, found in zip(
            ("first→second", "second→first"), pair_retrieval(rows, partners, same, ks=ks, metric=metric)
        ):
            work.add_retrieval(task, found, lists=False)
    told = [*(measure.task for measure in work.measures), *work.notes]
    for task in tasks:
        if not any(_speaks_of(task, line) for line in told):
            work.note("what was given does not allow it", task=task)
    if len(rows) < FEW:
        count = "1 row is" if len(rows) == 1 else f"{len(rows)} rows are"
        work.note(f"{count} few: other rows of the same kind may give other figures by far")
    if not work.measures:
        raise ValueError(
            "nothing could be measured: " + "; ".join(work.notes or ["no task that was asked for fits what was given"])
        )
    return Evaluation(tuple(work.measures), len(rows), rows.shape[1], metric, tuple(work.notes))


def _with_classes(name: str, given: Any) -> tuple[Any, Any] | None:
    """Rows and their classes in a pair; None where a gallery comes alone, or nothing was given."""
    if isinstance(given, tuple | list) and len(given) == 2:
        return given[0], given[1]
    if isinstance(given, tuple | list) or (name == "train" and given is not None):
        shown = f"a {type(given).__name__}" + (f" of {len(given)}" if isinstance(given, tuple | list) else "")
        raise ValueError(f"{name} is {shown}: the pair (rows, labels) was wanted")
    return None


def _rows(name: str, given: Any) -> Tensor | None:
    return None if given is None else as_rows(name, as_tensors(given))


def _classified(name: str, rows: Any, ids: Any) -> tuple[Tensor, Tensor]:
    rows = as_rows(name, as_tensors(rows))
    return rows, as_ids(f"{name} labels", ids, len(rows))


def _fits(
    labels: Any, pairs: Any, scores: Any, ids: Any, gallery: Any, relevant: Any, train: Any, prototypes: Any
) -> None:
    """Refuse what could only be ignored."""
    if labels is None and pairs is None and relevant is None:
        raise ValueError("nothing is known of the rows: pass labels, pairs= with the partner of each row, or relevant=")
    needs = (
        ("scores", scores, "pairs", pairs), ("ids", ids, "pairs", pairs), ("relevant", relevant, "gallery", gallery),
        ("train", train, "labels", labels), ("prototypes", prototypes, "labels", labels),
    )  # fmt: skip
    for name, given, other, there in needs:
        if given is not None and there is None:
            raise ValueError(f"{name}= was given without {other}: it says something of {other} only")
    if gallery is not None:
        alone = isinstance(gallery, Tensor)
        if alone and relevant is None:
            raise ValueError(
                "gallery= has no classes: pass (rows, labels), or relevant= with the relevant rows of each query"
            )
        if not alone and (relevant is not None or labels is None):
            raise ValueError("gallery=(rows, labels) is searched by labels: pass labels, and no relevant=")


@dataclass
class _Work:
    """Collects measures and notes, a method a task."""

    tasks: frozenset[str]
    ks: tuple[int, ...]
    metric: Metric
    queries: int | None
    seed: int
    measures: list[Measure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self, task: str, name: str, value: float, chance: float | None = None,
        interval: tuple[float, float] | tuple[None, None] = (None, None),
    ) -> None:  # fmt: skip
        self.measures.append(Measure(task, name, value, chance, *interval))

    def share(self, task: str, name: str, right: Tensor, chance: float | None) -> None:
        """A share of rows."""
        interval = share_interval(float(right.sum()), len(right))
        self.add(task, name, float(right.double().mean()), chance, interval)

    def drawn(self, task: str, rows: Tensor) -> Tensor | None:
        """Which rows query, if not all."""
        if self.queries is None or len(rows) <= self.queries:
            return None
        self.notes.append(f"{task}: {self.queries:,} of {len(rows):,} rows, drawn with seed {self.seed}, query")
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(len(rows), generator=generator)[: self.queries].sort().values.to(rows.device)

    def note(self, *notes: str, task: str = "") -> None:
        """What a reader should know, once; of what rows are, without a task."""
        for note in notes:
            if note not in self.notes:
                self.notes.append(f"{task}: {note}" if task else note)

    def add_retrieval(self, task: str, found: Retrieval, *, lists: bool, unlabelled: int = 0) -> None:
        """By lists, the share found says something; where whole classes are relevant, it does not."""
        self.note(*found.notes, task=task)
        if found.left_out > unlabelled:
            self.note(f"{found.left_out - unlabelled:,} rows without a relevant key were left out", task=task)
        if found.depth < found.keys:
            self.notes.append(f"{task}: the first {found.depth:,} of {found.keys:,} places were looked at; no map")
        if found.chance.get("precision@r", 0.0) >= 1 - 1e-9:
            self.notes.append(f"{task}: every key is right for every row, so that any embedding would be right")
            return
        last = f"ndcg@{max(self.ks)}"
        for name, value in found.scores.items():
            if (name.startswith("found") and not lists) or (name.startswith("ndcg") and name != last):
                continue
            values = found.per_query[name]
            share = name.startswith("recall")
            interval = (
                share_interval(float(values.sum()), len(values)) if share else bootstrap_interval(values, self.seed)
            )
            self.add(task, name, value, found.chance.get(name), interval)

    def alone(self, task: str, y: Tensor, others: Tensor | None) -> bool:
        """Whether there is one class only, which any embedding finds. Rows without a label that are there are another."""
        there = y if others is None else torch.cat([y, others.to(y)])
        one = len(there.clamp_min(-1).unique()) < 2
        if one:
            self.notes.append(f"{task}: all rows are of one class, so that any embedding would be right")
        return one

    def knn(self, z: Tensor, y: Tensor, train: tuple[Tensor, Tensor] | None, k: int) -> None:
        if "knn" not in self.tasks or (train is None and len(z) < 2):
            return
        if self.alone("knn", y, None if train is None else train[1][train[1] >= 0]):
            return
        voters = fitting_voters(k, y if train is None else train[1], itself=train is None)
        if voters < k:
            who = "the nearest row decides" if voters == 1 else f"{voters} neighbours vote"
            self.notes.append(f"knn: {who}, not {k}: classes have no more rows to find")
        rows = self.drawn("knn", z)
        queries, truth = (z, y) if rows is None else (z[rows], y[rows])
        if train is None:
            everyone = torch.arange(len(z), device=z.device) if rows is None else rows
            predicted, tied = knn_vote(queries, z, y, voters, everyone, metric=self.metric)
        else:
            predicted, tied = knn_vote(queries, *train, voters, metric=self.metric)
        if 100 * tied >= len(queries):
            self.note(
                f"for {tied:,} of {len(queries):,} rows, more keys are as near as the last that votes: the first of them vote",
                task="knn",
            )
        self.share("knn", "accuracy", predicted == truth, _majority(truth))

    def probe(self, z: Tensor, y: Tensor, train: tuple[Tensor, Tensor]) -> None:
        if "probe" in self.tasks:
            found = linear_probe(*train, z, y, seed=self.seed)
            self.share("probe", "accuracy", found.predicted == y, _majority(y))
            self.add(
                "probe", "class mean", sum(found.per_class.values()) / len(found.per_class), 1 / len(found.per_class)
            )

    def label_retrieval(self, z: Tensor, y: Tensor, gallery: Any, unknown: Unknown) -> None:
        if "retrieval" not in self.tasks or isinstance(gallery, Tensor):
            return
        if gallery is None and int(y[y >= 0].unique(return_counts=True)[1].max()) < 2:
            self.notes.append("retrieval: no two rows share a class")
            return
        there = None if gallery is None else gallery[1]
        if self.alone("retrieval", y, there if there is None or unknown == "negative" else there[there >= 0]):
            return
        rows = self.drawn("retrieval", z)
        found = retrieval(z, y, *(gallery or (None, None)), ks=self.ks, metric=self.metric, rows=rows, unknown=unknown)
        unlabelled = int(((y if rows is None else y[rows]) < 0).sum())
        self.add_retrieval("retrieval", found, lists=False, unlabelled=unlabelled)

    def verification(self, z: Tensor, y: Tensor) -> None:
        counts = y.unique(return_counts=True)[1]
        if "verification" not in self.tasks:
            return
        if len(counts) < 2 or int(counts.max()) < 2:
            self.notes.append("verification: it needs two classes, and two rows of one")
            return
        pairs = pair_scores(z, y, metric=self.metric, seed=self.seed)
        if pairs.drawn:
            self.notes.append(
                f"verification: {len(pairs.genuine):,} of {pairs.genuine_pairs:,} genuine and {len(pairs.impostor):,} of "
                f"{pairs.impostor_pairs:,} impostor pairs"
            )
        self.curve(roc(pairs.genuine, pairs.impostor))
        if int((counts > 1).sum()) >= 4:
            found = calibrate(z, y, metric=self.metric, seed=self.seed)
            self.notes.append(
                f"verification: threshold {found.threshold:.4f}, chosen at equal errors on {found.calibrated_on:,} classes, makes "
                f"FAR {found.far:.2%} and FRR {found.frr:.2%} on the {found.tested_on:,} others"
            )

    def curve(self, curve: Roc) -> None:
        self.add("verification", "auc", curve.auc, 0.5)
        self.add("verification", "eer", curve.eer, 0.5)
        for far in FARS:
            if far * curve.impostor >= 10:  # of fewer, the rate would rest on single pairs
                self.add("verification", f"tar@far={far:g}", curve.tar_at(far), far)

    def judged(self, first: Tensor, second: Tensor, scores: Tensor) -> None:
        """Pairs that are similar or not."""
        if "verification" not in self.tasks or not bool(((scores == 0) | (scores == 1)).all()):
            return
        if len(scores.unique()) < 2:
            self.notes.append("verification: it needs pairs that are similar, and pairs that are not")
            return
        pairs = listed_scores(first, second, scores == 1, metric=self.metric)
        curve = roc(pairs.genuine, pairs.impostor)
        self.add("verification", "average precision", curve.average_precision, len(pairs.genuine) / len(scores))
        self.curve(curve)

    def clustering(self, z: Tensor, y: Tensor) -> None:
        if "clustering" not in self.tasks or len(y.unique()) < 2:
            return
        classes = len(y.unique())
        if 2 * classes > len(y):
            self.note(
                f"{len(y):,} rows in {classes:,} classes are left out: with fewer than two rows a cluster, any clusters agree "
                "with the classes",
                task="clustering",
            )
            return
        try:
            found = kmeans(z, classes, seed=self.seed, normalize=self.metric == "cosine")
        except ImportError as error:
            self.notes.append(f"clustering was left out: {error}")
            return
        if (distinct := len(found.unique())) < classes:
            self.note(f"k-means finds {distinct:,} of {classes:,} clusters: no more rows differ", task="clustering")
        shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(self.seed)).to(y.device)]
        chance = cluster_agreement(shuffled, found) | {"ari": 0.0}
        for name, value in cluster_agreement(y, found).items():
            self.add("clustering", name, value, chance[name])

    def zero_shot(self, z: Tensor, y: Tensor, prototypes: Tensor) -> None:
        if "zero-shot" in self.tasks:
            found = zero_shot(z, y, prototypes)
            self.note(*found.notes, task="zero-shot")
            for k, value in found.accuracy.items():
                interval = share_interval(value * found.rows, found.rows)
                self.add("zero-shot", f"top-{k}", value, k / len(prototypes), interval)

    def similarity(self, first: Tensor, second: Tensor, scores: Tensor) -> None:
        if "similarity" in self.tasks and len(scores.unique()) < 2:
            self.notes.append("similarity: all scores are the same")
        elif "similarity" in self.tasks:
            found = sts(first, second, scores)
            if set(found.values()) == {0.0}:
                self.note("all cosines are the same, which says nothing of the scores", task="similarity")
            for name, value in found.items():
                self.add("similarity", name, value, 0.0, correlation_interval(value, len(scores)))


def _majority(labels: Tensor) -> float:
    """What always naming the largest class would reach."""
    return float(labels.unique(return_counts=True)[1].max()) / len(labels)


def _speaks_of(task: str, line: str) -> bool:
    """Whether a measure or a note belongs to a task. Retrieval of partners goes by two names, one each way."""
    return line.startswith(task) or (task == "retrieval" and "→" in line.partition(":")[0])
