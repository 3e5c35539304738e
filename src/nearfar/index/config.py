"""What the commands ``embed``, ``index``, ``search``, ``enroll`` and ``verify`` are told. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nearfar.marks import Positional, arg
from nearfar.names import given, refuse_unused


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """How data and model are read."""

    root: str | None = None
    """Where the files of a named data set are, if not in the usual places."""
    image: str | None = None
    """The column of images; by default the one with a usual name."""
    text: str | None = None
    """The column of texts; by default the one with a usual name."""
    positive: str | None = None
    """The column of what belongs to the text or image of its row; by default the one with a usual name."""
    similar: str | None = None
    """The column that says how alike the two sides of a row are; by default the one with a usual name; none: no column does."""
    scale: tuple[int | float, int | float] | None = None
    """Its grades for sides that are not alike at all and for sides that are the same; by default found."""
    label: str | None = None
    """The column of classes; by default the one with a usual name."""
    id: str | None = None
    """The column of identities; by default the one with a usual name."""
    skip_bad: bool = False
    """Leave out rows and images that cannot be read, and count them, instead of stopping at the first."""
    column: tuple[str, ...] = ()
    """Only these columns; by default every input that the model reads, negatives left out: one row an item and column."""
    split: Literal["all", "train", "test"] = "all"
    """Which rows."""
    batch_size: int = 256
    """Items embedded at a time."""
    device: str | None = None
    """Where to compute: cpu, cuda, cuda:1, mps; by default a GPU if there is one."""
    allow_code: bool = False
    """Import and run the module:factory that the run's encoder was made by."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: wanted 1 or more")


@dataclass(frozen=True)
class EmbedConfig(_Reading):
    """Embeds data with a trained encoder, batch by batch, into a file that is whole or not there."""

    run: Annotated[str, arg(metavar="RUN")]
    """A training run, or a model folder."""
    data: Annotated[str, arg(metavar="DATA")]
    """A data set by name, a folder, a .csv, .tsv, .jsonl or .parquet file, or tar shards. Columns as for the run's own data,
    if it is that."""
    out: Annotated[str, arg(aliases=("-o",))] = "embeddings.parquet"
    """The file: .parquet (names, labels, vectors), .safetensors (vectors, labels) or .npy (vectors alone)."""


@dataclass(frozen=True)
class IndexConfig(_Reading):
    """Puts embeddings where they can be searched: a folder, a .parquet file, or a Qdrant server."""

    source: Annotated[str, arg(metavar="RUN")]
    """A training run or model folder; or a .parquet file of nearfar embed."""
    data: Annotated[Positional[str | None], arg(metavar="[DATA]")] = None
    """What to embed; by default the data that the run was trained on."""
    store: str | None = None
    """A folder (LanceDB), a .parquet file, or the http(s) URL of a Qdrant server, whose key is read from
    QDRANT_API_KEY; by default the folder index in the run."""
    collection: str | None = None
    """The name in a Qdrant server; by default nearfar."""
    approximate: bool = False
    """Make an index that does not visit every row, and measure what it misses. Worth it from some 100,000 rows on."""
    method: Literal["hnsw", "ivf-pq"] = "hnsw"
    """Of the approximate index: a graph (high recall), or compressed lists (small; for tens of millions)."""
    partitions: int | None = None
    """Lists that rows are sorted into; by default the square root of the rows (ivf-pq), one a million rows (hnsw)."""
    probes: int = 20
    """Lists visited when its recall is measured."""
    refine: int = 10
    """Times k: how many candidates are compared by their full vectors when its recall is measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.approximate:
            asked = given(self, "method", "partitions", "probes", "refine")
            refuse_unused(asked, "every search is exact", "leave it out, or pass --approximate")
        if self.of_file:
            read = (
                "root",
                "image",
                "text",
                "positive",
                "label",
                "id",
                "skip_bad",
                "column",
                "split",
                "batch_size",
                "device",
            )
            why = f"{self.source} is embedded already"
            refuse_unused(given(self, *read, "allow_code"), why, "leave it out, or pass it to nearfar embed")

    @property
    def of_file(self) -> bool:
        """Whether the source is a file of embeddings."""
        return self.data is None and self.source.lower().endswith((".parquet", ".pq"))


@dataclass(frozen=True)
class SearchConfig:
    """Finds what is nearest to a text or an image."""

    run: Annotated[str, arg(metavar="RUN")]
    """A training run, or a model folder."""
    query: Annotated[str, arg(metavar="QUERY")]
    """A text, or the path of an image."""
    kind: Annotated[Literal["text", "image"] | None, arg(name="as")] = None
    """Take the query as this; by default as an image if it is a file that ends as images do."""
    store: str | None = None
    """Where the index is; by default the folder index in the run."""
    collection: str | None = None
    """The name in a Qdrant server; by default nearfar."""
    k: Annotated[int, arg(aliases=("-k",))] = 10
    """How many to find."""
    filter: tuple[str, ...] = ()
    """Only rows where this holds, such as label=cat split=test; of name, column, modality, label, id, split. Without
    modality=…, a search among images and texts finds images."""
    exact: bool = False
    """Visit every row, even if there is an approximate index."""
    probes: int = 20
    """Lists visited in an approximate index."""
    refine: int = 10
    """Times k: candidates of an approximate index that are compared by their full vectors."""
    json: bool = False
    """Print one JSON object instead of a table."""
    device: str | None = None
    """Where to embed the query; by default a GPU if there is one."""
    allow_code: bool = False
    """Import and run the module:factory that the run's encoder was made by."""

    def __post_init__(self) -> None:
        if self.exact:
            refuse_unused(given(self, "probes", "refine"), "--exact visits every row")


@dataclass(frozen=True)
class EnrollConfig:
    """Enrols known identities, a folder each, in a gallery to verify against."""

    run: Annotated[str, arg(metavar="RUN")]
    """A training run, or a model folder."""
    folder: Annotated[str, arg(metavar="FOLDER")]
    """FOLDER/<identity>/<image>.png"""
    out: Annotated[str | None, arg(aliases=("-o",))] = None
    """The gallery; by default gallery.parquet in the run."""
    skip_bad: bool = False
    """Leave out images that cannot be read."""
    device: str | None = None
    """Where to compute; by default a GPU if there is one."""
    allow_code: bool = False
    """Import and run the module:factory that the run's encoder was made by."""


@dataclass(frozen=True)
class VerifyConfig:
    """Says whether two images show the same, or who of a gallery is on one. The exit code is 1 for different or unknown."""

    run: Annotated[str, arg(metavar="RUN")]
    """A training run, or a model folder."""
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE [IMAGE]")]
    """Two images; or one, with a gallery."""
    gallery: str | None = None
    """A file of nearfar enroll; for one image by default gallery.parquet in the run."""
    identity: str | None = None
    """Who the image claims to show; by default the nearest of all in the gallery is named."""
    threshold: float | None = None
    """Score from which two are the same; by default the one calibrated on the run's held-out identities."""
    far: float | None = None
    """False acceptance rate to calibrate the threshold for, such as 0.01; by default as many false acceptances as false
    rejections (the equal error rate)."""
    json: bool = False
    """Print one JSON object."""
    device: str | None = None
    """Where to compute; by default a GPU if there is one."""
    allow_code: bool = False
    """Import and run the module:factory that the run's encoder was made by."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}: scores are cosines, between -1 and 1")
        if self.far is not None and not 0 < self.far < 1:
            raise ValueError(f"far is {self.far}: wanted a rate between 0 and 1, such as 0.01")
        if self.far is not None and self.threshold is not None:
            raise ValueError("threshold and far are both given: the threshold decides, so leave one out")


@dataclass(frozen=True)
class ReportConfig:
    """Writes one HTML page of training runs, laid over each other, or of a comparison; finished or not."""

    runs: Annotated[tuple[str, ...], arg(metavar="RUN [RUN ...]")]
    """The run folders; a comparison comes alone."""
    out: Annotated[str | None, arg(aliases=("-o",))] = None
    """Where to write the page; by default report.html in the run folder, of several runs in the current folder."""
    picture: str | None = None
    """Of a comparison: also draw the learning curves as an SVG picture, to this file."""
    rows: int = 1000
    """Held-out rows of a training run that are embedded for the page, at most; 0: none."""
    umap: bool = False
    """Draw the map of the embeddings by UMAP, which keeps neighbours and no distances, instead of PCA."""
    device: str | None = None
    """Where to embed them; by default a GPU if there is one."""
    allow_code: bool = False
    """Import and run the module:factory that a run's encoder was made by."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("no run was given: pass the folder of a run, or of several")
        if self.rows < 0:
            raise ValueError(f"rows is {self.rows}: wanted 0 or more")
