"""What the page of a training run is made of: its files, and held-out rows embedded anew."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from nearfar.data.corpus import Part
from nearfar.evaluation.evaluation import Evaluation
from nearfar.evaluation.knn import VOTERS
from nearfar.index.evaluated import protocol_of, read_figures
from nearfar.index.held_out import HeldOut, embed_held_out
from nearfar.index.measured import (
    KS,
    confusion,
    embedding_map,
    gallery,
    histogram,
    measure,
    page_evaluation,
    singular_values,
    verification,
    who_votes,
)
from nearfar.index.run import open_run, read_config
from nearfar.report import run_schema as page
from nearfar.report.files import read_json
from nearfar.report.run_schema import Events, RunFacts
from nearfar.training.events import LEFT_OUT, read_events

ROWS = 1_000
"""Held-out rows on the page: its pictures are then some 3 MB."""


def run_facts(
    path: str | Path,
    *,
    rows: int = ROWS,
    map: Literal["pca", "umap"] = "pca",
    device: str | None = None,
    allow_code: bool = False,
    seed: int = 0,
) -> RunFacts:
    """Gathers what is known of a training run, finished or not.

    Where the data or the model are gone, the page still has what the run wrote down, and says what is missing.

    Args:
        path: The run folder.
        rows: Held-out rows to embed at most; 0: none.
        map: How the map is made.
        device: Where to embed; None: a GPU if there is one.
        allow_code: Whether an encoder that was given as ``module:factory`` may be imported and called.
        seed: Of the draw of rows.

    Returns:
        Facts as ``report.run_schema`` has them: plain numbers, texts and lists.

    Raises:
        ValueError: If the folder holds no training run, or a file of it is damaged; the message names it.
    """
    path = Path(path).expanduser()
    if not (path / "config.yaml").is_file():
        raise ValueError(f"{path} holds no training run (no config.yaml): pass the folder that nearfar train made")
    if rows < 0:
        raise ValueError(f"rows is {rows}: wanted 0 or more")
    facts: RunFacts = {"name": path.resolve().name, "config": plain(read_config(path)), "events": read_diary(path)}
    if (path / "environment.json").is_file():
        facts["environment"] = plain(read_json(path / "environment.json"))
    weights = _evaluated(path, facts)
    if rows:
        try:
            run = open_run(path, device, allow_code=allow_code)
            for evaluation, made_with in weights:
                if made_with not in (None, run.weights):
                    old = "The model has been trained on since: run nearfar evaluate again."
                    evaluation["about"] = f"{evaluation.get('about', '')} {old}".strip()
            held = embed_held_out(run, rows, seed=seed)
            facts["events"]["warnings"] = [
                *facts["events"].get("warnings", ()),
                *({"message": note} for note in run.notes),
            ]
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            told = f"Held-out rows could not be embedded for this page, so it has no pictures of them: {error}"
            facts["events"]["warnings"] = [*facts["events"].get("warnings", ()), {"message": told}]
        else:
            _add(facts, held, map)
    return facts


def _add(facts: RunFacts, held: HeldOut, map: Literal["pca", "umap"]) -> None:
    corpus, gone = held.corpus, dict.fromkeys((*held.bad, *_left_out(facts)))
    rows = {"train": _readable(corpus.train, gone), "test": 0 if corpus.test is None else _readable(corpus.test, gone)}
    facts["data"] = {
        "name": corpus.name, "rows": rows,
        "inputs": {column.name: column.kind for column in corpus.columns}, "classes": len(corpus.class_names),
        "size": list(corpus.size) if corpus.size else None, "left out": len(gone),
    }  # fmt: skip
    known = facts.get("environment", {}).get("data")
    if gone and isinstance(known, dict):  # as it was opened; what cannot be read is met later
        known |= {"left_out": list(gone)} | rows
    if corpus.class_names:
        facts["class_names"] = list(corpus.class_names)
    if "evaluation" not in facts and (found := measure(held)) is not None:
        which = "held-out" if held.tested else "training"
        sides = [column.name for column in held.columns] if len(held.columns) > 1 else []
        facts["evaluation"] = page_evaluation(
            found, f"Measured for this page on {len(held.rows):,} {which} rows.", sides, who_votes(found.rows, 0)
        )
        facts["evaluation"]["data"] = corpus.name
        facts["evaluation"]["protocol"] = protocol_of(held, "cosine", VOTERS, KS)
    steps = facts.get("events", {}).get("steps", [])
    temperature = steps[-1].get("temperature") if steps else None
    if len(held.rows) > 1:
        facts["map"] = embedding_map(held, map)
        facts["gallery"] = gallery(held)
        facts["spectrum"] = singular_values(held.embeddings[0])
        for key, made in (
            ("histogram", histogram(held, temperature)), ("confusion", confusion(held)), ("roc", verification(held)),
        ):  # fmt: skip
            if made is not None:
                facts[key] = made


def _left_out(facts: RunFacts) -> list[str]:
    """Rows that could not be read while training, as the run told them."""
    told = (warned["message"] for warned in facts.get("events", {}).get("warnings", ()))
    return [message.removeprefix(LEFT_OUT) for message in told if message.startswith(LEFT_OUT)]


def _readable(part: object, gone: Iterable[str]) -> Any:
    """How many rows of a part could be read, as far as that is known; None: they are streamed."""
    if not isinstance(part, Part):
        return None
    names = {line.partition(": column ")[0] for line in gone}
    return len(part) - (sum(part.name(row) in names for row in range(len(part))) if names else 0)


def read_diary(path: Path) -> Events:
    """What a run wrote down while training, sorted by kind.

    Raises:
        ValueError: If a line cannot be read; the message names file and line.
    """
    lists: dict[str, list[Any]] = {"step": [], "look": [], "warning": []}
    end: dict[str, Any] = {}
    for line in read_events(path / "events.jsonl"):
        told = {name: plain(value) for name, value in line.items() if name != "event"}
        if line.get("event") in lists:
            lists[line["event"]].append(told)
        elif line.get("event") == "end":
            end = {"reason": "done"} | told
    events: Events = {"steps": lists["step"], "looks": lists["look"], "warnings": lists["warning"]}
    if end:
        events["end"] = str(end["reason"])
    if end.get("best") is not None:
        events["kept"] = int(end["best"])
    if "lost" in end:
        events["lost"] = str(end["lost"])
    looked = read_json(path / "environment.json").get("looked") if (path / "environment.json").is_file() else None
    if looked:
        events["looked"] = str(looked)
    return events


def plain(value: Any) -> Any:
    """The same as JSON has it: what is not finite is None, what is no number, text, list or mapping is its text.

    Example:
        >>> plain({"a": (1, float("nan")), 2: Path("x")})
        {'a': [1, None], '2': 'x'}
    """
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _evaluated(path: Path, facts: RunFacts) -> list[tuple[page.Evaluation, str | None]]:
    """Adds what ``nearfar evaluate`` wrote; and of which weights each is, if that is known."""
    mine, others = read_figures(path, facts["config"].get("data"))
    made = [_figures(told) for told in ([] if mine is None else [mine]) + others]
    if mine is not None:
        facts["evaluation"] = made[0][0]
    if others:
        facts["others"] = [evaluation for evaluation, _ in made[-len(others) :]]
    return made


def _figures(told: dict[str, Any]) -> tuple[page.Evaluation, str | None]:
    try:
        found, inputs = Evaluation.from_dict(told), [str(name) for name in told.get("inputs", ())]
        known = told.get("protocol", {name: told[name] for name in ("data", "metric") if name in told})
        protocol = {str(name): str(value) for name, value in known.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{told['file']} is damaged ({error!r}): make it again with nearfar evaluate") from error
    taught = protocol.get("rows to learn from", "").replace(",", "")
    voting = who_votes(found.rows, int(taught)) if taught.isdigit() else ""
    evaluation = page_evaluation(found, "Measured by nearfar evaluate.", inputs if len(inputs) == 2 else [], voting)
    evaluation["data"], evaluation["protocol"] = str(told.get("data", "other data")), protocol
    if told.get("source"):
        evaluation["source"] = str(told["source"])
    return evaluation, told.get("weights")
