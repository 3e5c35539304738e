"""The main job: the same network under several arms, equally tuned, and how much sooner each one gets there."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nearfar.compare.arms import ARMS
from nearfar.compare.config import CompareConfig
from nearfar.compare.inputs import make_task
from nearfar.compare.learner import outputs_of
from nearfar.compare.progress import Progress
from nearfar.compare.record import RunFolder
from nearfar.compare.result import Comparison
from nearfar.compare.study import Interrupted, Study
from nearfar.compare.trainer import Trainer
from nearfar.encoders.factory import Factory, find_factory
from nearfar.losses.softmax import SupConLoss
from nearfar.names import given, passing_over, refuse_unused

__all__ = ["Interrupted", "compare", "prepare"]


def compare(
    data: Any = "digits",
    model: str | nn.Module | Factory | None = None,
    contrastive: nn.Module | None = None,
    task: nn.Module | None = None,
    *,
    show: bool = True,
    **options: Any,
) -> Comparison:
    """Trains the same network under several arms and measures how much sooner each reaches a target.

    Every arm gets the same number of trials to choose its learning rate by, on validation rows; then each is trained
    with fresh seeds, the same initial weights and batches in all arms for a seed, and watched on the test rows. See
    docs/compare.md for what is measured and how.

    Args:
        data: A data set by name, a folder of images by class, a CSV or Parquet table, ``LabelledData``, tensors
            ``(inputs, labels)`` or ``(train inputs, train labels, test inputs, test labels)``, or one or two
            map-style datasets. Labels are whole numbers or names; classes are counted through from 0 in their order.
        model: ``"module:factory"`` or a factory, called with the shape of one input and the number of classes; or a
            module, of which every run gets a copy; it has an output a class, or one for each whole number that a label
            may be. By default a small network that fits the shape of the data.
        contrastive: Called as ``contrastive(z, labels=y)``; ``nf.SupConLoss(temperature)`` by default. Every run gets
            a copy.
        task: The task loss, called as ``task(outputs, labels)``; ``nn.CrossEntropyLoss()`` by default.
        show: Progress and the table, on the terminal.
        **options: The fields of ``CompareConfig``: ``steps=``, ``seeds=``, ``rates=``, ``out=``, ``resume=`` …

    Returns:
        The comparison: printable, with ``.verdict`` in words and ``.save(folder)``.

    Raises:
        ValueError: If data, network or options cannot be used; the message says the remedy.
        TypeError: If there is no such option; the message suggests the nearest.
        Interrupted: If stopped by Ctrl-C, a ``KeyboardInterrupt`` that holds the table so far.

    Example:
        >>> import nearfar as nf, tempfile
        >>> result = nf.compare(
        ...     "digits", arms=("task", "joint"), rates=(1e-2,), budget=1, sweep_seeds=1, seeds=2, steps=12,
        ...     show=False, out=tempfile.mkdtemp(),
        ... )
        >>> [arm.name for arm in result.arms], result.complete
        (['task', 'joint'], True)
    """
    given = options | ({"data": str(data)} if isinstance(data, str | Path) else {})
    given |= {"model": model} if isinstance(model, str) else {}
    study, folder = prepare(CompareConfig.of(**given), data, model, contrastive, task, show)
    result = study.run(folder)
    if show:
        print(result)
    return result


def prepare(
    config: CompareConfig,
    data: Any = None,
    model: str | nn.Module | Factory | None = None,
    contrastive: nn.Module | None = None,
    task: nn.Module | None = None,
    show: bool = True,
    cores: int = 1,
) -> tuple[Study, RunFolder]:
    """Everything before the first run: whatever is wrong with what was asked is said here.

    Args:
        config: What was asked; data and network that it cannot name are given beside it.
        data: As in ``compare``; None: what the configuration names.
        model: Likewise.
        contrastive: Likewise.
        task: Likewise.
        show: Likewise.
        cores: How many processes may be started where the configuration does not say.

    Returns:
        The comparison, and the run folder it goes to: ``study.run(folder)`` does it.
    """
    in_memory = {
        "data": data is not None and not isinstance(data, str | Path),
        "model": model is not None and not isinstance(model, str),
    }
    if contrastive is not None:
        refuse_unused(given(config, "temperature"), "contrastive= is a loss with its own")
    if config.resume is None:
        stored = None
        rows = make_task(data if in_memory["data"] else config.data, config)
    else:
        stored = RunFolder.open(config.resume).config
        config = _resumed(config, stored["config"])
        for name, before in stored["in_memory"].items():
            if before and not in_memory[name]:
                raise ValueError(f"{config.resume} was begun with a {name} in memory: pass the same again, {name}=…")
        source = data if in_memory["data"] else config.data
        rows = passing_over(lambda config: make_task(source, config), config)
    config = config.resolved(len(rows.train), rows.train.inputs[0].numel(), cores)
    if stored is None and all(ARMS[name].kind != "contrast" for name in config.arms):
        refuse_unused(given(config, "temperature", "features"), "no arm with contrast takes part")
    if in_memory["data"]:
        config = replace(config, data=rows.name)
    factory, name = find_factory(model if in_memory["model"] else config.model, rows.in_shape)
    if isinstance(model, nn.Module):  # comes with its outputs; a factory is told how many there are
        outputs = outputs_of(copy.deepcopy(model), rows.train.inputs[:2])
        if isinstance(outputs, Tensor) and outputs.ndim == 2:
            rows = rows.with_outputs(outputs.shape[1])
    trainer = Trainer(
        config=config,
        task=rows,
        factory=factory,
        contrastive=contrastive if contrastive is not None else SupConLoss(temperature=config.temperature),
        loss=task if task is not None else nn.CrossEntropyLoss(),
    )
    study = Study(trainer, name, Progress(show))
    about = study.describe() | {"in_memory": in_memory}
    if stored is None:
        folder = RunFolder.create(config.out, config.data)
        folder.config = about
        return study, folder
    for part in ("data", "model", "losses"):
        if stored[part] != about[part]:
            raise ValueError(
                f"{config.resume} was begun with another {part} ({_difference(stored[part], about[part])}): its runs "
                "cannot be continued; pass the same again, or start a new comparison"
            )
    return study, RunFolder.open(str(config.resume))


def _resumed(config: CompareConfig, stored: dict[str, Any]) -> CompareConfig:
    """The configuration that a comparison was begun with; what is asked for now may not differ from it."""
    begun = CompareConfig.of(**stored)
    if (
        config.out is not None
        and Path(config.out).expanduser().resolve() != Path(str(config.resume)).expanduser().resolve()
    ):
        raise ValueError(
            f"out is {str(config.out)!r}, and a comparison goes on in its own folder, {config.resume}: leave it out, or start a "
            "new comparison there"
        )
    for field in fields(CompareConfig):
        now, then = getattr(config, field.name), getattr(begun, field.name)
        if field.name not in ("resume", "out", "workers") and now not in (field.default, then):
            raise ValueError(
                f"{field.name} was {then} when {config.resume} was begun and is {now} now: to go on leave it out, or "
                "start a new comparison"
            )
    return replace(begun, resume=config.resume, workers=config.workers)


def _difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {then[name]}, now {now.get(name)}" for name in then if then[name] != now.get(name))
