"""What the page of training runs is made of: plain dicts, as JSON holds them. Loads no torch.

A producer fills what a run has; every field but the name and the configuration may be left out, and its section of the page
is then left out too. Numbers are Python's, not tensors; a number that is not finite is ``None``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Required, TypedDict

Real = float | int
Value = float | int | None
"""None: not measured, or not finite (a loss that became NaN)."""


class Step(TypedDict, total=False):
    """One line of training: an optimiser step."""

    step: Required[int]
    seconds: float
    """Of training since the start of the run, evaluations left out if the run does so."""
    epoch: float
    loss: Required[Value]
    """The weighted sum that was minimised."""
    terms: dict[str, Value]
    """Its terms by name, before they are weighted."""
    rate: Value
    """Learning rate."""
    temperature: Value
    rows: int
    """Seen so far."""


class Look(TypedDict, total=False):
    """One look at the held-out rows while training; that of step 0 is before training."""

    step: Required[int]
    seconds: float
    metrics: dict[str, Value]
    """Such as ``knn``, ``recall@1``, ``mrr``."""
    geometry: dict[str, Value]
    """``alignment``, ``uniformity``, ``effective_rank``, ``feature_std``."""


class Warned(TypedDict, total=False):
    """Something the run warned of, such as collapse: in plain words, with a remedy."""

    step: int
    message: Required[str]


class Events(TypedDict, total=False):
    """What happened while training, each list in order of steps."""

    steps: Sequence[Step]
    looks: Sequence[Look]
    warnings: Sequence[Warned]
    end: str
    """Why training ended, in a few words: ``"all 2,000 steps done"``, ``"stopped early: …"``. Left out: it has not."""
    looked: str
    """Where looks find the neighbours of a row, such as ``"the others looked at"``: another place than an evaluation's."""
    kept: int
    """The step whose weights are kept."""
    lost: str
    """That the weights that are kept are worse than those that training began with, and what to do about it."""


class Metric(TypedDict, total=False):
    """One measured figure of the finished model. Fractions are between 0 and 1, never percent."""

    name: Required[str]
    value: Required[Value]
    low: Value
    """95% interval."""
    high: Value
    chance: Value
    """What guessing, or an untrained space, would score."""
    better: Literal["higher", "lower"]
    """By default ``"higher"``."""
    fraction: bool
    """Whether to show it in percent; by default if it, its ends and its chance lie in [0, 1]."""
    about: str
    """One sentence: what it is, over what."""


class Evaluation(TypedDict, total=False):
    """Figures of the finished model on some rows; the first metric is the one that the findings speak of."""

    metrics: Required[Sequence[Metric]]
    rows: int
    """How many were measured."""
    about: str
    """How: which rows, which settings."""
    data: str
    """Name of the data set."""
    source: str
    """Where other data are: of two data sets of one name, the page shows it."""
    protocol: dict[str, str]
    """What was done to which rows, a fact a name: runs are ranked where all that two of them say is the same."""


class Item(TypedDict, total=False):
    """A row of the data as a reader may recognise it."""

    name: Required[str]
    """Path, or file and line: ``Part.name(row)``."""
    label: int | None
    """Position in ``class_names``; None or negative: unknown."""
    thumbnail: str
    """``data:image/png;base64,…`` (or jpeg, webp, gif): nothing else is accepted, so that a page never fetches."""
    text: str


class EmbeddingMap(TypedDict, total=False):
    """The embeddings flattened to a plane. ``x``, ``y`` and ``items`` run side by side; more than
    ``report.thin.MAP_POINTS`` points are thinned evenly.
    """

    method: Required[Literal["pca", "umap"]]
    x: Required[Sequence[Real]]
    y: Required[Sequence[Real]]
    items: Required[Sequence[Item]]
    kept: float
    """PCA: the part of the variance that the plane keeps, 0 to 1."""
    total: int
    """Rows that the points were drawn from, if they are a sample."""


class Neighbour(TypedDict, total=False):
    """A row found near a query."""

    item: Required[Item]
    score: Required[Value]
    """Cosine similarity."""
    right: bool | None
    """Whether it belongs to the query; None: not known."""


class Query(TypedDict, total=False):
    """A held-out row, and what lies nearest to it, nearest first."""

    item: Required[Item]
    neighbours: Required[Sequence[Neighbour]]
    possible: int
    """How many of the neighbours could be right: no more than there are other rows that belong to the query."""


class Histogram(TypedDict, total=False):
    """Cosine similarities of pairs that belong together and of pairs that do not, counted in the same bins."""

    edges: Required[Sequence[Real]]
    """One more than there are bins."""
    positives: Required[Sequence[Real]]
    """Pairs in each bin (counts)."""
    negatives: Required[Sequence[Real]]
    temperature: Value
    """The temperature τ at the end of training."""


class Spectrum(TypedDict, total=False):
    """Singular values of the centred embeddings, largest first."""

    values: Required[Sequence[Real]]
    effective_rank: Value
    """exp of the entropy of the normalised values (Roy & Vetterli 2007), as ``diagnostics.geometry`` has it."""


class Confusion(TypedDict, total=False):
    """Rows are true classes, columns are those said: counts."""

    matrix: Required[Sequence[Sequence[int]]]
    classes: Sequence[str]
    """By default the run's ``class_names``."""
    by: str
    """Who said: ``"20 nearest neighbours"``."""


class Roc(TypedDict, total=False):
    """Verification: are these two the same? ``far``, ``tar`` and ``thresholds`` run side by side."""

    far: Required[Sequence[Real]]
    """False acceptance rate: different ones that are taken for the same."""
    tar: Required[Sequence[Real]]
    """True acceptance rate: same ones that are accepted."""
    thresholds: Required[Sequence[Value]]
    """On cosine similarity: at or above it, accepted."""
    eer: Value
    """Equal error rate: where far = 1 − tar."""
    threshold: Value
    """The calibrated threshold."""
    threshold_far: Value
    """What the calibrated threshold's rates are here, on rows it was not chosen on."""
    threshold_tar: Value
    about: str
    """How the threshold was chosen."""


class RunFacts(TypedDict, total=False):
    """A training run, as its page shows it."""

    name: Required[str]
    """Of the run folder."""
    config: Required[dict[str, Any]]
    """Resolved; nested dicts are allowed."""
    environment: dict[str, Any]
    data: dict[str, Any]
    """What was trained on, in a few facts: name, rows, classes, size, what was left out."""
    events: Events
    evaluation: Evaluation
    """On the data that the run was trained on."""
    others: Sequence[Evaluation]
    """On other data, each with its ``data``."""
    class_names: Sequence[str]
    map: EmbeddingMap
    gallery: Sequence[Query]
    histogram: Histogram
    spectrum: Spectrum
    confusion: Confusion
    roc: Roc
