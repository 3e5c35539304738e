"""``nearfar compare``: prepares a study, runs it, and says what came out."""

from __future__ import annotations

import shlex
import sys

from rich.console import Console

from nearfar.compare.config import CompareConfig
from nearfar.compare.convergence import prepare
from nearfar.compare.study import Interrupted
from nearfar.data.bad import left_out
from nearfar.training.environment import usable_cores


def run(config: CompareConfig) -> int:
    """Runs or resumes a comparison; the exit code is 130 if it was interrupted and can be resumed."""
    study, folder = prepare(config, cores=usable_cores())
    console = Console()
    for line in study.trainer.task.notes:
        print(f"note: {line}", file=sys.stderr)
    for line in left_out(study.trainer.task.bad):
        print(line, file=sys.stderr)
    console.print(study.outline(), highlight=False)
    try:
        result = study.run(folder)
    except Interrupted as stopped:
        console.print(stopped.comparison)
        print(f"Interrupted. Go on with: nearfar compare --resume {shlex.quote(str(folder.path))}", file=sys.stderr)
        return 130
    console.print(result)
    console.print(f"Page with curves: {folder.path / 'report.html'}", highlight=False, soft_wrap=True)
    return 0
