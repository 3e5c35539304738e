"""What importing costs, what it loads, and what names it offers."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest

import nearfar as nf

SOURCE = str(Path(nf.__file__).parents[1])
HEAVY = {
    "sklearn", "scipy", "pandas", "pyarrow", "plotly", "PIL", "matplotlib", "lightning", "lightning_fabric",
    "pytorch_lightning", "transformers", "tyro", "rich", "torchmetrics", "triton", "jax", "beartype", "pytest",
    "torch._dynamo", "torch._inductor", "torch.onnx", "sympy",
}  # fmt: skip


def fresh(code: str) -> str:
    """What the code prints, in an interpreter of its own."""
    prelude = f"import sys; sys.path.insert(0, {SOURCE!r})\n"
    done = subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded(code: str, beyond: str = "pass") -> set[str]:
    """The modules that the code loads beyond those of another piece of code."""
    return set(json.loads(fresh(f"{beyond}\nbefore = set(sys.modules)\n{code}\n"
                                "import json; print(json.dumps(sorted(set(sys.modules) - before)))")))  # fmt: skip


def test_it_adds_little_to_torch():
    """In an interpreter that has torch already; processor time, since other work on the machine is none of its cost."""
    use = "import nearfar; nearfar.SupConLoss, nearfar.Joint, nearfar.LOSSES, nearfar.functional"

    def added() -> float:
        return float(fresh(f"import torch, time; t = time.process_time(); {use}; print(time.process_time() - t)"))

    seconds = [added()]
    if seconds[0] > 0.3:
        seconds += [added() for _ in range(4)]
    assert median(seconds) <= 0.3, seconds


def test_it_loads_nothing_heavy():
    """Beyond what torch itself loads."""
    modules = loaded("import nearfar; nearfar.SupConLoss, nearfar.Joint, nearfar.LOSSES", beyond="import torch")
    assert "nearfar.losses.softmax" in modules
    assert not {name for name in modules if name in HEAVY or name.partition(".")[0] in HEAVY}


def test_a_bare_import_loads_no_part_of_the_package():
    assert {name for name in loaded("import nearfar") if name.startswith("nearfar")} == {"nearfar"}


def test_help_loads_no_torch():
    ran = "from nearfar.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    text = fresh(ran + "import json; print('\\n' + json.dumps(sorted(sys.modules)))")
    *shown, modules = text.splitlines()
    assert "compare" in "\n".join(shown)
    assert not {
        name
        for name in json.loads(modules)
        if name.partition(".")[0] in ("torch", "numpy", "sklearn", "plotly", "pandas")
    }


@pytest.mark.parametrize("command", [["--help"], ["compare", "--help"]], ids=" ".join)
def test_help_answers_within_a_second(command):
    code = f"import sys; sys.path.insert(0, {SOURCE!r}); from nearfar.cli import main; main({command!r})"

    def seconds() -> float:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "usage: nearfar" in done.stdout
        return time.perf_counter() - start

    taken = [seconds()]
    if taken[0] > 1.0:
        taken += [seconds() for _ in range(4)]
    assert median(taken) < 1.0, taken


class TestNames:
    @pytest.mark.parametrize("name", nf.__all__)
    def test_every_public_name_is_there(self, name):
        value = getattr(nf, name)
        assert value is getattr(nf, name)
        assert name in dir(nf)

    def test_they_are_what_a_star_import_gives(self):
        names: dict[str, object] = {}
        exec("from nearfar import *", names)
        assert set(nf.__all__) <= set(names)

    def test_none_is_named_twice(self):
        assert len(nf.__all__) == len(set(nf.__all__))

    def test_dir_shows_no_more_than_there_is(self):
        assert all(hasattr(nf, name) for name in dir(nf))

    def test_a_class_may_share_its_modules_name(self):
        """`nf.compare` is the function, though `nearfar.compare` is a package, whichever is imported first."""
        importlib.import_module("nearfar.compare.convergence")
        assert callable(nf.compare)
        assert fresh("import nearfar.compare.statistics, nearfar as nf; print(callable(nf.compare))") == "True"

    def test_an_unknown_name_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match=r"module 'nearfar' has no attribute 'SupConLos'"):
            nf.SupConLos
