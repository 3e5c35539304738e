"""Runs that start from weights that were trained before."""

from __future__ import annotations

import nearfar as nf
from nearfar.encoders.pretrained import PooledTransformer, read_transformer
from tiny_bert import tiny_bert
from train_cases import texts


def test_parameters_that_nothing_depends_on_keep_no_rank_waiting(tmp_path):
    """A transformer's pooler has no gradient, which ``DistributedDataParallel`` would wait for."""
    bert = f"hf:{tiny_bert(tmp_path / 'bert')}"
    options = {"steps": 3, "batch_size": 16, "strategy": "ddp", "device": "cpu", "show": False}
    assert nf.train(corpus=texts(columns=2), model=bert, out=str(tmp_path / "run"), **options).finished
    tower = read_transformer(bert)
    assert isinstance(tower.network, PooledTransformer)
    assert tower.network.unused == ["model.pooler.dense.weight", "model.pooler.dense.bias"]
