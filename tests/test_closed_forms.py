"""What a pencil gives, asked of the functional forms; and of the oracles, so that a loop's slip is seen as its own."""

from __future__ import annotations

import pytest
import torch

import nearfar as nf
from closed_forms import CLOSED_FORMS, Closed
from harness import functional, tiles
from oracles import ORACLES

CASES = [(name, closed) for name, rows in CLOSED_FORMS.items() for closed in rows]
IDS = [f"{name}: {closed.fact}" for name, closed in CASES]


@pytest.mark.parametrize(("name", "closed"), CASES, ids=IDS)
def test_loss_gives_it(name: str, closed: Closed):
    keywords = dict(closed.keywords)
    if "pairs" in keywords:
        keywords["pairs"] = nf.Pairs.from_matrix(keywords["pairs"])
    if "noise" in keywords:
        keywords |= {"noise": nf.Noise(keywords["noise"]), "k": keywords["samples"].shape[1]}
    with tiles():
        value = functional(name)(*closed.tensors, **keywords)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(closed.value, rel=1e-10, abs=1e-11)


@pytest.mark.parametrize(("name", "closed"), CASES, ids=IDS)
def test_oracle_gives_it(name: str, closed: Closed):
    assert ORACLES[name](*closed.tensors, **closed.keywords).item() == pytest.approx(closed.value, rel=1e-10, abs=1e-11)
