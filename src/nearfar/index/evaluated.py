"""The figures that ``nearfar evaluate`` leaves in a run: a file a data set, and what they may be compared with."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from nearfar.data.corpus import TensorPart
from nearfar.index.held_out import HeldOut
from nearfar.report.files import read_json

OWN = "evaluation.json"
"""On the data that the run was trained on."""


def file_of(run: Path, name: str, source: str | None) -> Path:
    """The file for figures on a data set: ``evaluation.json`` for the run's own, else one with the data set's name in it.

    Args:
        run: The folder of the run.
        name: Of the data set.
        source: Where other data are, as a whole path; None: they are the run's own. Two data sets of one name have two files.
    """
    if source is None:
        return run / OWN
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:80] or "data"
    path = run / f"evaluation-{plain}.json"
    if path.is_file() and read_json(path).get("source") != source:
        path = run / f"evaluation-{plain}-{hashlib.sha256(source.encode()).hexdigest()[:6]}.json"
    return path


def read_figures(run: Path, own: Any) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """What the files of a run hold: figures on its own data, and on others, in order of their names.

    A file of an earlier version does not say whether its data were the run's own: then its name decides.
    """
    files = [path for path in (run / OWN, *sorted(run.glob("evaluation-*.json"))) if path.is_file()]
    mine, others = None, []
    for path in files:
        told = read_json(path)
        if not isinstance(told, dict):
            raise ValueError(f"{path} is damaged (no figures by name): make it again with nearfar evaluate")
        told["file"] = str(path)
        if path.name == OWN and _is_own(told, own):
            mine = told
        else:
            others.append(told)
    return mine, others


def _is_own(told: Mapping[str, Any], own: Any) -> bool:
    if "source" in told or own is None or told.get("data") is None:
        return told.get("source") is None
    return told["data"] in (str(own), PurePath(str(own)).name, PurePath(str(own)).stem)


def protocol_of(
    held: HeldOut,
    metric: str,
    k: int,
    ks: Sequence[int],
    taught: int = 0,
    sentences: Sequence[str] = (),
    contents: str | None = None,
) -> dict[str, str]:
    """How rows were measured: figures of runs are compared where all of this is the same.

    Args:
        held: The rows.
        metric: How they were compared.
        k: Neighbours that voted.
        ks: Cut-offs of retrieval.
        taught: Training rows that classifiers learned from.
        sentences: About a class, of zero-shot classification.
        contents: A name for what the data's files hold, if they are files.
    """
    told = {
        "data": held.corpus.name,
        "part of the data": "test" if held.tested else "train",
        "rows measured": _digest(held),
        "metric": metric,
        "number of neighbours": str(k),
        "cut-offs": ", ".join(map(str, ks)),
        "rows to learn from": f"{taught:,}",
    }
    told |= {"contents of the data": contents} if contents is not None else {}
    return told | ({"sentences about classes": " | ".join(sentences)} if sentences else {})


def _digest(held: HeldOut) -> str:
    """A short name for which rows were measured: their names and classes, or what they hold where they have no names."""
    names = held.corpus.class_names
    digest = hashlib.sha256()
    for at, row in enumerate(held.rows.tolist()):
        label = -1 if held.labels is None else int(held.labels[at])
        said = names[label] if 0 <= label < len(names) else str(label)
        digest.update(
            "\0".join((*PurePath(held.part.name(row)).parts[-2:], said, "")).encode("utf-8", "surrogateescape")
        )
    if isinstance(held.part, TensorPart) and not len(held.part.names):
        for raw in held.raw:
            digest.update(
                raw.numpy().tobytes() if isinstance(raw, Tensor) else "\0".join(raw).encode("utf-8", "replace")
            )
    return digest.hexdigest()[:12]
