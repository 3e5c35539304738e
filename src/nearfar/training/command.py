"""``nearfar train``: trains, and says what came out."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from nearfar.training.config import TrainConfig
from nearfar.training.devices import is_first
from nearfar.training.loop import Diverged
from nearfar.training.run import Run
from nearfar.training.train import Interrupted, train


def _asked(config: TrainConfig) -> dict[str, Any]:
    """What to pass on: to resume, all that differs from what the run was told."""
    if config.resume is None:
        return {"config": config}
    told = Run.open(config.resume).config
    return {name: value for name, value in vars(config).items() if value != getattr(told, name)}


def run(config: TrainConfig) -> int:
    """Trains or resumes; the exit code is 130 if it was interrupted and can be resumed, 1 if it diverged."""
    try:
        done = train(**_asked(config))
    except Interrupted as stopped:
        if is_first():
            again = f"nearfar train --resume {shlex.quote(str(stopped.run.path))}"
            print(f"Interrupted. Go on with: {again}", file=sys.stderr)
        return 130
    except Diverged as error:
        print(f"nearfar: {error}", file=sys.stderr)
        return 1
    if not is_first():
        return 0
    if "lost" in done.end:
        print(done.end["lost"])
    for name, told in done.changes().items():
        print(f"{name} {told}")
    if looked := done.environment.get("looked"):
        print(f"knn and recall@1 are {looked}; nearfar evaluate says who votes there")
    print(f"Encoder: {done.path / 'model'}")
    return 0
