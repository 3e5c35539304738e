"""Rows that a run held out, embedded: what its page and its verification measure."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from nearfar.data.corpus import Column, Corpus, Part, Raw, joined, same_things
from nearfar.data.same import different_rows, repeated_note
from nearfar.index.run import Run
from nearfar.types import Kind

CHUNK = 256
"""Rows read and embedded at a time."""


@dataclass(frozen=True)
class HeldOut:
    """Some rows, embedded input by input.

    Attributes:
        corpus: Whose rows they are.
        part: Those held out, or the training rows where none were.
        tested: Whether they were held out.
        rows: Positions in the part.
        columns: The inputs that were embedded: the anchor, and its positive if there is one that the model reads.
        embeddings: A matrix an input, rows of length 1.
        raw: A column an input, as it was read.
        labels: Class ids; negative: unknown.
        groups: Ids.
        bad: Rows that could not be read and were left out.
        similar: How alike the two sides of a row are; None: every row's belong together.
        ids: As ``nf.evaluate`` takes them: rows of one id, or with the same text, are the same thing.
        repeated: Rows that repeat another one, and are left out.
    """

    corpus: Corpus
    part: Part
    tested: bool
    rows: Int64[Tensor, "n"]
    columns: list[Column]
    embeddings: list[Float32[Tensor, "n d"]]
    raw: list[Raw]
    labels: Int64[Tensor, "n"] | None
    groups: Int64[Tensor, "n"] | None
    bad: list[str] = field(default_factory=list)
    similar: Float32[Tensor, "n"] | None = None
    ids: Int64[Tensor, "n k"] | None = None
    repeated: int = 0

    @property
    def known(self) -> bool:
        """Whether some row has a class."""
        return self.labels is not None and bool((self.labels >= 0).any())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, in words."""
        return (repeated_note(self.repeated, self.columns),) if self.repeated else ()

    @property
    def unseen(self) -> bool:
        """Whether no identity (or class, where there are no ids) among the rows is one that was trained on."""
        train = self.corpus.train
        if not self.tested or not isinstance(train, Part):
            return self.tested
        mine, theirs = (self.labels, train.labels) if self.groups is None else (self.groups, train.groups)
        return mine is None or theirs is None or not bool(torch.isin(mine[mine >= 0], theirs).any())


def embed_held_out(
    run: Run, most: int, kind: Kind | None = None, seed: int = 0, corpus: Corpus | None = None
) -> HeldOut:
    """Embeds held-out rows of data, or all where none are held out.

    Args:
        run: The run.
        most: How many, drawn with the seed where there are more.
        kind: Only the first input of this kind; by default the first two inputs that the model reads.
        seed: Of the draw.
        corpus: The data; by default those that the run was trained on.

    Raises:
        ValueError: If the data cannot be opened, or have no rows that are counted.
    """
    corpus = run.open_data(streaming=False) if corpus is None else corpus
    tested = corpus.test is not None and len(corpus.test) > 0
    part = corpus.test if tested else corpus.train
    if not isinstance(part, Part) or not len(part):
        raise ValueError(f"{run.path} held out no rows, and its training rows are streamed: nothing can be looked at")
    used = [column for column in run.columns(corpus) if kind in (None, column.kind)][: 2 if kind is None else 1]
    if not used:
        raise ValueError(f"{run.path} was trained on {corpus.name}, which holds no {kind}")
    drawn = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:most].sort().values.tolist()
    kept = different_rows(part, used, drawn)
    order = torch.tensor(kept)
    found: list[list[Tensor]] = [[] for _ in used]
    raw: list[list[Raw]] = [[] for _ in used]
    read, bad = [], [*corpus.bad]
    for chunk in order.split(CHUNK):
        batch = part.fetch(chunk.tolist())
        bad += batch.bad
        if not len(batch):
            continue
        read.append(batch)
        for at, column in enumerate(used):
            held = batch.columns[column.name]
            found[at].append(run.embed(column.kind, held))
            raw[at].append(held)
    if not read:
        raise ValueError(f"none of the {len(order)} rows of {corpus.name} to look at could be read")
    all_rows = joined(read)
    return HeldOut(
        corpus, part, tested, all_rows.rows, used, [torch.cat(z) for z in found], [_join(r) for r in raw],
        all_rows.labels, all_rows.groups, bad, all_rows.similar if len(used) > 1 else None,
        same_things(all_rows.groups, all_rows.same, used) if len(used) > 1 else None, len(drawn) - len(kept),
    )  # fmt: skip


def _join(parts: list[Raw]) -> Raw:
    texts: list[str] = []
    tensors: list[Tensor] = []
    for part in parts:
        tensors.append(part) if isinstance(part, Tensor) else texts.extend(part)
    return torch.cat(tensors) if tensors else texts
