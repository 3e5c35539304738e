"""``nearfar evaluate``: a run's held-out rows, or a file of embeddings, measured and written down."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.data.bad import left_out
from nearfar.data.config import READING, DataConfig
from nearfar.data.corpus import Corpus, Part
from nearfar.data.place import contents_of, whole_path
from nearfar.data.same import different_rows
from nearfar.data.similar import LIKENESS
from nearfar.diagnostics.collapse import collapse
from nearfar.diagnostics.geometry import FEW, alignment, geometry
from nearfar.evaluation.config import EvaluateConfig
from nearfar.evaluation.evaluate import evaluate
from nearfar.evaluation.evaluation import Evaluation
from nearfar.evaluation.zeroshot import prompt_prototypes
from nearfar.index.evaluated import file_of, protocol_of
from nearfar.index.held_out import CHUNK, HeldOut, embed_held_out
from nearfar.index.items import shown
from nearfar.index.measured import who_votes
from nearfar.index.run import Run, is_named, open_named, open_run
from nearfar.index.vectors import read_labels, read_vectors
from nearfar.names import given, refuse_unused
from nearfar.report.files import write_json
from nearfar.training.config import RUN_FILE


def run(config: EvaluateConfig) -> int:
    """Measures, prints the table, and writes the figures."""
    if config.run is None:
        found, told = _of_file(config)
        out = None if config.out is None else Path(config.out)
    else:
        found, told = _of_run(config)
        out = _place(config, told)
    failed = None if out is None else _write(out.expanduser(), found.to_dict() | told)
    for line in told.get("reading", ()):
        print(f"note: {shown(line)}", file=sys.stderr)
    for line in left_out(told.get("left_out", ())):
        print(shown(line), file=sys.stderr)
    print(found)
    if len(told.get("inputs", ())) > 1 and any("→" in measure.task for measure in found.measures):
        print("first: {}, second: {}".format(*told["inputs"]))
    print("geometry: " + ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in told["geometry"].items()))
    for finding in told["findings"]:
        print(f"warning: {finding}")
    if failed is not None:  # what was found has been printed
        raise failed
    if out is not None:
        print(out)
    return 0


def _write(out: Path, figures: dict[str, Any]) -> OSError | None:
    """Writes the figures, before anything is printed; what hindered it is returned, so that they can be printed all the same."""
    try:
        write_json(out, figures)
    except OSError as error:
        return error
    return None


def _of_run(config: EvaluateConfig) -> tuple[Evaluation, dict[str, Any]]:
    assert config.run is not None
    opened, corpus = _opened(config.run, config)
    held = embed_held_out(opened, config.rows, seed=config.seed, corpus=corpus)
    z, pairs = held.embeddings[0], held.embeddings[1] if len(held.columns) > 1 else None
    labels = held.labels if held.known else held.groups if pairs is None else None
    if labels is None:
        refuse_unused(given(config, "k"), f"{held.corpus.name} has no classes that neighbours could vote for")
    named = held.known and held.labels is not None
    taught = named and held.tested and any(_wanted(task, config) for task in ("knn", "probe"))
    train = _training_rows(opened, held, config) if taught else None
    nothing = "has neither classes, ids nor pairs" if labels is None else "holds one class in the rows looked at"
    alone = labels is not None and len(labels[labels >= 0].unique()) < 2 and train is None
    if pairs is None and (labels is None or alone):
        why = f"{held.corpus.name} {nothing}, so nothing says what belongs together: pass --data with labelled rows"
        if config.tasks:
            raise ValueError(why)
        notes = (*held.notes, f"{why} to measure more than geometry")
        found = Evaluation((), len(z), z.shape[1], config.metric, notes)
        return found, _geometry(z, None, None) | _facts(opened, held, config)
    prototypes = _prototypes(opened, held.corpus, config) if named and held.columns[0].kind == "image" else None
    if prototypes is None:
        refuse_unused(
            given(config, "templates"), "zero-shot wants images with classes, and a model that reads texts too"
        )
    found = evaluate(
        z,
        labels,
        pairs=pairs,
        scores=held.similar,
        ids=held.ids if held.similar is None else None,
        train=train,
        prototypes=prototypes,
        **_options(config),
    )
    voted = any(measure.task == "knn" for measure in found.measures)
    voting = (f"knn: by the vote of {who_votes(found.rows, 0 if train is None else len(train[1]))}",) if voted else ()
    found = replace(found, notes=(*held.notes, *voting, *found.notes))
    if held.similar is not None and pairs is not None:
        alike = held.similar >= LIKENESS  # only those are said to lie near
        told = _geometry(z, labels, None)
        told["geometry"] |= {"alignment": alignment(z[alike], pairs[alike])} if bool(alike.any()) else {}
        return found, told | _facts(opened, held, config)
    return found, _geometry(z, labels, pairs) | _facts(opened, held, config, train, prototypes)


def _opened(model: str, config: EvaluateConfig) -> tuple[Run, Corpus]:
    """The model, and the data as it reads them."""
    options = given(config, *READING)
    if not is_named(model):
        refuse_unused(given(config, "pretrained"), f"{model} has its own weights")
        opened = open_run(model, config.device, allow_code=config.allow_code)
        return opened, opened.open_data(config.data, streaming=False, **options)
    if config.data is None:
        raise ValueError(f"{model} was trained on no data that are known here: name what it is to embed (--data)")
    named = DataConfig(data=config.data, **options)
    return open_named(model, named, config.device, pretrained=config.pretrained, seed=config.seed)


def _place(config: EvaluateConfig, told: dict[str, Any]) -> Path | None:
    """Where the figures of a model go; None: it is none of a run, and no file was asked for."""
    assert config.run is not None
    if config.out is not None:
        return Path(config.out)
    run = Path(config.run).expanduser()
    return file_of(run, told["data"], told["source"]) if (run / RUN_FILE).is_file() else None


def _facts(
    opened: Run,
    held: HeldOut,
    config: EvaluateConfig,
    train: tuple[Tensor, Tensor] | None = None,
    prototypes: Tensor | None = None,
) -> dict[str, Any]:
    taught, sentences = 0 if train is None else len(train[1]), () if prototypes is None else config.templates
    name = held.corpus.name
    source = None if config.data is None or opened.is_own(config.data) else whole_path(config.data)
    place = opened.where() if config.data is None else config.data
    if source is None and (
        otherwise := opened.otherwise(given(config, *READING))
    ):  # its own data, but not as it knows them
        name += " ({})".format(", ".join(f"{option} {value}" for option, value in otherwise.items()))
        source = whole_path(place)
    return {
        "data": name,
        "source": source,
        "protocol": protocol_of(held, config.metric, config.k, config.ks, taught, sentences, contents_of(place)),
        "part": "test" if held.tested else "train",
        "inputs": [column.name for column in held.columns],
        "model": opened.model,
        "weights": opened.weights,
        "left_out": held.bad,
        "reading": [*_untested(held), *opened.notes, *held.corpus.notes],
    }


def _untested(held: HeldOut) -> tuple[str, ...]:
    """That no rows were held out, which makes figures look better than they are."""
    why = f"{held.corpus.name} holds out no rows: the figures are of its rows to train on"
    return () if held.tested else (f"{why}, which say little if the model was trained on them",)


def _of_file(config: EvaluateConfig) -> tuple[Evaluation, dict[str, Any]]:
    assert config.embeddings is not None
    names: dict[str, int] = {}  # of classes, the same in both files
    file = config.labels if config.labels is not None and Path(config.labels).expanduser().is_file() else None
    column = None if file else config.labels
    z, labels = read_vectors(config.embeddings, column, names)
    labels = read_labels(file, len(z), names) if file else labels
    pairs = None if config.pairs is None else read_vectors(config.pairs, None, {})[0]
    train = None
    if config.train is not None:
        rows, classes = read_vectors(config.train, column, names)
        if classes is None:
            raise ValueError(f"{config.train} holds no classes: a classifier cannot be learned from it")
        train = rows, classes
    if labels is None and pairs is None:
        raise ValueError(f"{config.embeddings} holds no classes: pass --labels, or --pairs")
    found = evaluate(z, labels, pairs=pairs, train=train, **_options(config))
    return found, _geometry(z, labels, pairs) | {"data": Path(config.embeddings).name}


def _options(config: EvaluateConfig) -> dict[str, Any]:
    return {
        "tasks": config.tasks or None, "k": config.k, "ks": config.ks, "metric": config.metric, "queries": config.rows,
        "seed": config.seed,
    }  # fmt: skip


def _wanted(task: str, config: EvaluateConfig) -> bool:
    return not config.tasks or task in config.tasks


def _geometry(z: Tensor, labels: Tensor | None, pairs: Tensor | None) -> dict[str, Any]:
    if len(z) < 2:
        return {"geometry": {}, "findings": []}
    findings, told = [str(finding) for finding in collapse(z, labels)], geometry(z, labels, pairs)
    if len(z) < FEW:
        del told["effective_rank"]
        findings.append(
            f"{len(z)} rows span so few directions that the effective rank would count them: it is left out"
        )
    return {"geometry": told, "findings": findings}


def _training_rows(
    opened: Run, held: HeldOut, config: EvaluateConfig
) -> tuple[Float[Tensor, "t d"], Int64[Tensor, "t"]] | None:
    """Rows to learn a classifier from; None, if their classes are others (held-out identities), or are not known."""
    part, column = held.corpus.train, held.columns[0]
    if not isinstance(part, Part) or part.labels is None or held.labels is None:
        return None
    if not bool(torch.isin(held.labels[held.labels >= 0], part.labels).any()):
        return None
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(config.seed))[: config.rows]
    rows, labels = [], []
    for chunk in torch.tensor(different_rows(part, [column], order.sort().values.tolist())).split(CHUNK):
        batch = part.fetch(chunk.tolist())
        held.bad.extend(batch.bad)
        if len(batch) and batch.labels is not None:
            rows.append(opened.embed(column.kind, batch.columns[column.name]))
            labels.append(batch.labels)
    return torch.cat(rows), torch.cat(labels)


def _prototypes(opened: Run, corpus: Corpus, config: EvaluateConfig) -> Float[Tensor, "classes d"] | None:
    """What the texts of the classes' names say, where the model reads texts too."""
    if "text" not in opened.embedder.kinds or not corpus.class_names or not _wanted("zero-shot", config):
        return None
    texts = [template.replace("{}", name) for name in corpus.class_names for template in config.templates]
    z = torch.cat([opened.embed("text", texts[at : at + CHUNK]) for at in range(0, len(texts), CHUNK)])
    return prompt_prototypes(z.view(len(corpus.class_names), len(config.templates), -1))
