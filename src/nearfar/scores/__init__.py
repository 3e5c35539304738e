"""Scores of queries with keys, reduced without ever holding the matrix."""

from nearfar.scores.engine import BACKENDS, Scores
from nearfar.scores.planned import tile_size
from nearfar.scores.reductions import Reduction, Stage, Tile, count_over, logsumexp_over, mean_over, sum_over
from nearfar.scores.similarity import normalize

__all__ = [
    "BACKENDS",
    "Reduction",
    "Scores",
    "Stage",
    "Tile",
    "count_over",
    "logsumexp_over",
    "mean_over",
    "normalize",
    "sum_over",
    "tile_size",
]
