"""A run that goes on: what was asked for when it was begun, and what may be asked for now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nearfar.training.config import EPOCHS, TrainConfig
from nearfar.training.options import read_yaml
from nearfar.training.run import Run

FREE = ("resume", "out", "config", "logger", "checkpoint_every", "checkpoint_seconds", "threads", "strategy")
"""Options that may change when a run is resumed: none of its numbers depends on them, but for strategy's rounding."""


def said(config: TrainConfig | str | Path | None) -> set[str]:
    """The options that a configuration or a file names; of a configuration, those that are no default."""
    if isinstance(config, TrainConfig):
        default = TrainConfig()
        return {name for name, value in vars(config).items() if value != getattr(default, name)}
    return set() if config is None else set(read_yaml(config))


def asked_besides(asked: TrainConfig, settled: TrainConfig) -> dict[str, Any]:
    """What was asked for where ``config.yaml`` has what came of it: epochs as steps, a batch of 256 rows of the 90 there are."""
    then, now = asked.saved(), settled.saved()
    if asked.epochs is None and asked.steps is None and not asked.quick:
        then["epochs"] = EPOCHS
    return {name: value for name, value in then.items() if value is not None and value != now[name]}


def resumed(asked: TrainConfig, run: Run, named: set[str]) -> TrainConfig:
    """The configuration that a run was begun with; what is asked for now may not differ from it.

    Args:
        asked: For now.
        run: The run.
        named: The options that were named.

    Raises:
        ValueError: If an option is another than it was, and numbers depend on it.
    """
    then = run.config
    if asked.out is not None and Path(asked.out).expanduser().resolve() != run.path.resolve():
        raise ValueError(
            f"out is {asked.out!r}, and a run goes on in its own folder, {run.path}: leave it out, or start a new run there, from "
            f"new weights or from these (--model {run.path})"
        )
    before = {name: tuple(value) if isinstance(value, list) else value for name, value in _asked(run, then).items()}
    changed = {}
    for name, now in vars(asked).items():
        if name not in named or now in (getattr(then, name), before.get(name, getattr(then, name))):
            continue
        if name == "data" and run.is_own(now, then.data):
            changed[name] = now  # the same in another place
            continue
        if name not in FREE:
            raise ValueError(
                f"{name} was {_told(name, then, before)} when {run.path} was begun and is {_words(now)} now: to go on leave it "
                f"out, or start a new run, from new weights or from these (--model {run.path})"
            )
        changed[name] = now
    return replace(then, **changed)


def _asked(run: Run, then: TrainConfig) -> dict[str, Any]:
    """What was asked for besides, with the epochs that the steps are, where rows are counted."""
    environment = run.environment
    rows = environment.get("data", {}).get("train")
    each = 0 if rows is None else rows // then.batch_size
    epochs = {} if not each or then.steps is None else {"epochs": then.steps / each}
    return epochs | environment.get("asked", {})


def _told(name: str, then: TrainConfig, before: dict[str, Any]) -> str:
    """What an option was: as it was asked for, and what came of it."""
    settled = getattr(then, name)
    if name not in before:
        return _words(settled)
    became = f"{then.steps:,} steps" if name in ("epochs", "quick") else f"{_words(settled)} with these data"
    return f"{_words(before[name])} ({became})"


def _words(value: Any) -> str:
    return "not given" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
