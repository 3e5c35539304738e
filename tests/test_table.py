"""The table of losses and what must go with each row: an oracle, a closed form, its line in the docs, its function."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import nearfar as nf
from closed_forms import CLOSED_FORMS
from oracles import ORACLES

DOCS = (Path(__file__).parent.parent / "docs" / "losses.md").read_text(encoding="utf-8")
KINDS = {"self", "one-sided", "two-sided", "pairs", "classes", "moments", "noise", "information"}


def test_every_row_has_an_oracle_and_a_closed_form():
    assert set(nf.LOSSES) == set(ORACLES) == set(CLOSED_FORMS)
    assert all(CLOSED_FORMS.values())


def test_every_public_loss_is_a_row():
    assert {name for name in nf.__all__ if name.endswith("Loss")} == set(nf.LOSSES)


@pytest.mark.parametrize("row", nf.LOSSES.values(), ids=nf.LOSSES)
def test_row_agrees_with_the_package(row):
    assert nf.LOSSES[row.name] is row
    assert getattr(nf, row.name) is row.loss
    assert row.loss.__name__ == row.name
    assert getattr(nf.functional, row.function.__name__) is row.function
    assert row.kind in KINDS


def documented(name: str) -> dict[str, object]:
    """The defaults that the docs give in `Name(option=value, …)`."""
    if name == "MutualInformationLoss":
        return {"estimator": "infonce"}
    call = re.search(rf"`{name}\(([^`]*)\)", DOCS)
    assert call, f"docs/losses.md does not name {name}"
    parsed = ast.parse(f"f({call.group(1).split(')(')[0]})", mode="eval").body
    assert isinstance(parsed, ast.Call)
    return {str(k.arg): ast.literal_eval(k.value) for k in parsed.keywords}


@pytest.mark.parametrize("name", nf.LOSSES)
def test_documented_defaults_are_the_codes(name):
    """Of the module, or of its function where the module passes the option on."""
    row = nf.LOSSES[name]
    module, function = (inspect.signature(x).parameters for x in (row.loss, row.function))
    for option, default in documented(name).items():
        own = module[option].default if option in module else None
        assert (function[option].default if own is None and option in function else own) == default, option


@pytest.mark.parametrize("row", nf.LOSSES.values(), ids=nf.LOSSES)
def test_the_functions_docstring_cites_a_paper(row):
    text = inspect.getdoc(row.function) or ""
    assert re.search(r"Source: .*(19|20)\d\d", text, re.S), "no source, or no year"
