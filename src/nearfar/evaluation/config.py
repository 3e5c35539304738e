"""What ``nearfar evaluate`` is told. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nearfar.marks import Positional, arg
from nearfar.names import given, refuse_unused


@dataclass(frozen=True)
class EvaluateConfig:
    """Measures how good embeddings are: those of a run's held-out rows, or those in a file."""

    run: Annotated[Positional[str | None], arg(metavar="[RUN]")] = None
    """A training run, or a model folder (then with --data). The figures go to evaluation.json in it, those on other data to
    evaluation-NAME.json, by the name of the data."""
    data: str | None = None
    """Other data to embed; by default those that the run was trained on."""
    similar: str | None = None
    """The column of those data that says how alike the two sides of a row are; none: no column does."""
    scale: tuple[int | float, int | float] | None = None
    """Its grades for sides that are not alike at all and for sides that are the same; by default as for the run's own data."""
    skip_bad: bool = False
    """Leave out rows and images that cannot be read, and name them, instead of stopping at the first."""
    embeddings: str | None = None
    """In place of a run, a file: .parquet of nearfar embed, or with a column of vectors; .npy; .safetensors."""
    labels: str | None = None
    """Classes of the embeddings: a column of the .parquet file, or a file, .npy or text with one a line. By default what the
    file holds (label, or id)."""
    pairs: str | None = None
    """A file of embeddings whose row i belongs to row i."""
    train: str | None = None
    """A file of embeddings, with classes, to learn the classifiers from."""
    out: Annotated[str | None, arg(aliases=("-o",))] = None
    """Where to write the figures as JSON; by default a file in the run, for a file of embeddings nowhere."""
    tasks: tuple[str, ...] = ()
    """Only these of knn, probe, retrieval, verification, clustering, zero-shot, similarity; by default what fits."""
    k: Annotated[int, arg(aliases=("-k",))] = 20
    """Neighbours that vote."""
    ks: tuple[int, ...] = (1, 5, 10)
    """Cut-offs of recall and nDCG."""
    metric: Literal["cosine", "euclidean", "dot"] = "cosine"
    """How rows are compared."""
    rows: int = 10_000
    """Held-out rows at most, drawn with the seed, and as many training rows for the probe."""
    templates: tuple[str, ...] = ("{}", "a photo of a {}")
    """Sentences about a class, for zero-shot classification by a model that reads texts and images."""
    seed: int = 0
    """Of draws."""
    device: str | None = None
    """Where to compute; by default a GPU if there is one."""
    allow_code: bool = False
    """Import and run the module:factory that the run's encoder was made by."""

    def __post_init__(self) -> None:
        if (self.run is None) == (self.embeddings is None):
            raise ValueError("pass a run, or --embeddings with a file: one of the two is measured")
        for name in ("labels", "pairs", "train"):
            if self.run is not None and getattr(self, name) is not None:
                raise ValueError(f"--{name} goes with --embeddings; a run knows its own")
        if self.data is not None and self.run is None:
            raise ValueError("--data is embedded by a run: pass the run, or leave --data out")
        if self.data is None and (self.similar is not None or self.scale is not None):
            raise ValueError("--similar and --scale say how --data are read; a run knows its own")
        if self.skip_bad and self.run is None:
            raise ValueError("--skip-bad leaves out rows of a run's data; a file of embeddings has to be whole")
        if self.embeddings is not None:
            why = "a file of embeddings is measured without a model"
            refuse_unused(given(self, "device", "allow_code", "templates"), why, "leave it out, or pass a run")
        for option, task in (("k", "knn"), ("ks", "retrieval"), ("templates", "zero-shot")):
            if self.tasks and task not in self.tasks:
                refuse_unused(given(self, option), f"{task} is not among --tasks", f"leave it out, or add {task}")
        if self.rows < 2:
            raise ValueError(f"rows is {self.rows}: two at least were wanted")
        if any("{}" not in template for template in self.templates):
            raise ValueError(f"templates are {self.templates}: each wants {{}} where the class goes")
