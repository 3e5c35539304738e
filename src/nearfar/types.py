"""Names that several layers share."""

from __future__ import annotations

from typing import Literal

Similarity = Literal["dot", "euclidean", "sqeuclidean"]
"""What a raw score is. Cosine similarity is the dot product of normalised rows."""

Backend = Literal["dense", "strip", "tiled", "cuda"]
"""How the scores are visited: the whole matrix, whole rows, tiles, or tiles on a GPU."""

Precision = Literal["bf16", "fp16"]
"""Rounding of the inputs of tile products; statistics always stay in float32 or better. ``"fp16"`` is that of float16 rows on
a GPU, and no option."""

Rule = Literal["candidates", "positives", "negatives"]
"""Which pairs a reduction runs over; ``candidates`` are positives and negatives together."""

Kind = Literal["image", "text", "vector", "series"]
"""What an input of an item is: a picture, a text, a row of numbers, a time series."""
