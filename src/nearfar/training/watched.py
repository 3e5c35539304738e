"""Which rows a run looks at while it trains, what can be measured of them, and why that was decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from nearfar.data.corpus import Column, Corpus, Part, same_things, similar_of
from nearfar.data.same import different_rows, repeated_note, sides_alike
from nearfar.data.similar import is_binary
from nearfar.diagnostics.geometry import FEW
from nearfar.evaluation.knn import VOTERS, fitting_voters

VOTE = 3
"""Neighbours that make a vote. Fewer say no more than the nearest one, which is recall@1."""
NOTHING = (
    "all rows that are looked at are of one class: kNN and recall would be 1 whatever was learned, and are left out"
)


@dataclass(frozen=True)
class Watched:
    """Rows that are looked at, and what is measured of them."""

    part: Part
    rows: list[int]
    """Positions in the part; none where they are too few for any figure."""
    columns: tuple[Column, ...]
    """The inputs that are embedded: one, or the two sides of a pair."""
    metrics: tuple[str, ...] = ()
    """The first says which look is best, if nobody says otherwise."""
    gallery: tuple[Part, list[int]] | None = None
    """Training rows in which neighbours are looked for; None: among the others that are looked at."""
    voters: int = VOTERS
    """Neighbours that vote in kNN."""
    notes: tuple[str, ...] = ()
    """What was decided, and why."""
    warnings: tuple[str, ...] = ()
    """What is missing, and why."""

    @property
    def looked(self) -> str | None:
        """Where the neighbours of a row are looked for, in words; None: by no classes."""
        if "knn" not in self.metrics:
            return None
        return "among the others looked at" if self.gallery is None else "among rows that are trained on"


def watched_rows(corpus: Corpus, columns: Sequence[Column], most: int, seed: int) -> Watched | None:
    """Rows held out, or else training rows, which show a collapse as well; None: rows are streamed, and none are held out.

    Args:
        corpus: Whose rows.
        columns: Those that are trained on.
        most: Rows at most; as many training rows, where neighbours are looked for among them.
        seed: Random seed for the draw.
    """
    held_out = corpus.test is not None and len(corpus.test) > 1
    part = corpus.test if held_out else corpus.train
    if not isinstance(part, Part):
        return None
    used = tuple(column for column in columns if column.role != "negative")[:2]
    rows = _drawn(len(part), most, seed)
    none = "no rows are" if corpus.test is None or not len(corpus.test) else "one row is"
    few = "" if none == "no rows are" else ", which is too few to look at"
    notes = () if held_out else (f"{none} held out{few}: looks are at rows that are trained on",)
    kept = different_rows(part, used, rows)
    if len(used) == 1 and len(kept) < FEW <= len(rows):  # whether they collapse can be seen
        few = f"only {len(kept)} of {len(rows):,} rows that are looked at differ: nothing but their spread is measured"
        return Watched(part, rows, used, notes=(*notes, few))
    if len(kept) < len(rows):
        notes = (*notes, repeated_note(len(rows) - len(kept), used, " that are looked at"))
        rows = kept
    if len(used) > 1:
        found = _pairs(part, used, rows, notes)
    else:
        found = _classes(part, used, rows, notes, corpus.train if held_out else None, most, seed)
    if len(found.rows) >= FEW:
        return found
    few = (
        f"{len(found.rows)} different rows are there to look at, and {FEW} are the least that a figure says anything of: "
        "nothing is measured while training, and the last weights are kept"
    )
    return Watched(part, [], used, notes=found.notes, warnings=(few,))


def _drawn(count: int, most: int, seed: int) -> list[int]:
    return sorted(torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].tolist())


def _pairs(part: Part, used: tuple[Column, ...], kept: list[int], notes: tuple[str, ...]) -> Watched:
    """Where nearly every partner is a right one, finding one is no merit."""
    same: Mapping[str, Int64[Tensor, "n"]] = getattr(part, "same", {})
    at, similar = torch.tensor(kept), similar_of(part)
    if similar is not None:
        metrics, why = judged_metrics(similar[at])
        return Watched(part, kept, used, metrics, notes=notes, warnings=why)
    if len(kept) >= FEW and sides_alike(part, used, kept) == len(kept):
        why = (
            "both sides of every pair that is looked at are the same: each finds the other whatever was learned, and MRR and "
            "recall are left out"
        )
        return Watched(part, kept, used, notes=notes, warnings=(why,))
    groups = None if part.groups is None else part.groups[at]
    ids = same_things(groups, {name: values[at] for name, values in same.items()}, used)
    chance = 1 / len(kept) if ids is None else _right_at_random(ids)
    if chance <= 0.5:
        return Watched(part, kept, used, ("mrr", "recall@1"), notes=notes)
    why = (
        f"a row that is looked at belongs with {chance:.0%} of the others (the same text or id), so that any order would find "
        "one: MRR and recall are left out"
    )
    return Watched(part, kept, used, notes=notes, warnings=(why,) if len(kept) >= FEW else ())


def judged_metrics(similar: Float32[Tensor, "n"]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What judgements of pairs allow to be measured, and why it is nothing.

    Example:
        >>> judged_metrics(torch.tensor([0.0, 1.0])), judged_metrics(torch.tensor([0.0, 0.4]))[0]
        ((('average_precision',), ()), ('spearman',))
    """
    if len(similar.unique()) < 2:
        alike = "all pairs that are looked at are judged alike: whether they are told from others is not measured"
        return (), (alike,)
    return ("average_precision",) if is_binary(similar) else ("spearman",), ()


def _right_at_random(ids: Int64[Tensor, "n k"]) -> float:
    """The share of keys that are right for a query, on average: what recall@1 of a random order is expected to be."""
    right = 0
    for mine in ids.split(256):
        right += int(((mine[:, None] == ids) & (mine[:, None] >= 0)).any(2).sum())
    return right / len(ids) ** 2


def _classes(
    part: Part,
    used: tuple[Column, ...],
    rows: list[int],
    notes: tuple[str, ...],
    train: object,
    most: int,
    seed: int,
) -> Watched:
    """Neighbours of a class are looked for among the rows looked at, or among training rows, where most find none there."""
    labels = part.labels
    known = torch.tensor([]) if labels is None else labels[torch.tensor(rows)]
    known = known[known >= 0]
    if labels is None or not len(known):
        return Watched(part, rows, used, notes=notes)
    if bool((known == known[0]).all()):
        return Watched(part, rows, used, notes=notes, warnings=(NOTHING,))
    _, of_row, sizes = known.unique(return_inverse=True, return_counts=True)
    alone = int((sizes[of_row] == 1).sum())
    theirs = train.labels if isinstance(train, Part) else None
    taught = None if theirs is None else theirs[theirs >= 0]
    if alone > len(known) / 2 and taught is not None and bool(torch.isin(known, taught).any()):
        assert isinstance(train, Part)
        assert theirs is not None
        gallery = different_rows(train, used, _gallery(theirs, torch.isin(theirs, known), most, seed))
        voters = fitting_voters(VOTERS, theirs[torch.tensor(gallery)])
        found = "kNN and recall@1 of held-out rows are looked for among rows that are trained on: most are alone of their class"
        return Watched(part, rows, used, _vote_first(voters), (train, gallery), voters, (*notes, found))
    if alone == len(known):
        why = "no two rows that are looked at share a class: kNN and recall would be 0 whatever was learned, and are left out"
        return Watched(part, rows, used, notes=notes, warnings=(why,))
    if alone:
        notes = (
            *notes,
            f"{alone:,} of {len(known):,} rows that are looked at are alone of their class, and ask nothing",
        )
    voters = fitting_voters(VOTERS, known, itself=True)
    return Watched(part, rows, used, _vote_first(voters), voters=voters, notes=notes)


def _vote_first(voters: int) -> tuple[str, ...]:
    return ("knn", "recall@1") if voters >= VOTE else ("recall@1", "knn")


def _gallery(labels: Int64[Tensor, "n"], wanted: Bool[Tensor, "n"], most: int, seed: int) -> list[int]:
    """Training rows, a row at least of each class that is looked for, as long as there is room."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    first: dict[int, int] = {}
    for row, label in zip(order[wanted[order]].tolist(), labels[order[wanted[order]]].tolist()):
        first.setdefault(label, row)
    chosen = [*first.values()]
    rest = order[(labels[order] >= 0) & ~torch.isin(order, torch.tensor(chosen))].tolist()
    return sorted((chosen + rest)[:most])
