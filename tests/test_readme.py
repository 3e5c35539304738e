"""The README's code runs, in order, as it is written; and a reader meets it early."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_code_runs(name):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), names)


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_first_code_comes_by_line_25(name):
    lines = (ROOT / name).read_text().splitlines()
    assert lines.index("```python") < 25


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_links_and_pictures_are_there(name):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    assert all((ROOT / link).exists() for link in links if not link.startswith("http")), links


def test_commands_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^make ([a-z]+)", (ROOT / "README.md").read_text(), re.M)) <= targets
