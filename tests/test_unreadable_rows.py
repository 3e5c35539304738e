"""Rows that cannot be read are told and counted wherever a run speaks of its data."""

from __future__ import annotations

import pytest

import nearfar as nf
from nearfar.index.facts import run_facts
from photos import photos


@pytest.mark.parametrize("part", ["train", "test"])
def test_rows_that_turn_out_unreadable_are_counted_in_every_table(part, tmp_path):
    """A cut PNG whose header is whole is found when it is read, in training or by a look."""
    data = tmp_path / "d"
    for where in ("train", "test"):
        photos(data / where, "ab", 9, seed=500 * (where == "test"))
    torn = data / part / "a" / "3.png"
    torn.write_bytes(torn.read_bytes()[:-60])
    run = nf.train(data=str(data), skip_bad=True, steps=2, batch_size=18, out=str(tmp_path / "run"), show=False)
    facts = run_facts(run.path)
    wanted = {"train": 18, "test": 18} | {part: 17}
    assert (facts["data"]["left out"], facts["data"]["rows"]) == (1, wanted)
    told = facts["environment"]["data"]
    assert {name: told[name] for name in wanted} == wanted
    assert str(torn) in told["left_out"][0]
    assert run.environment["data"]["left_out"] == []  # what was known when it was opened
