"""``nf.load``: an embedder from its folder, or from a training run's."""

from __future__ import annotations

from pathlib import Path

import torch

from nearfar.encoders.embedder import Embedder


def load(path: str | Path, device: torch.device | str = "cpu", *, allow_code: bool = False) -> Embedder:
    """Reads an embedder, in evaluation mode, without running any code from its folder.

    Args:
        path: A folder that ``Embedder.save`` or ``nearfar export`` wrote, or a training run's.
        device: Where to put it.
        allow_code: Whether an encoder that was given as ``module:factory`` may be imported and called.

    Raises:
        ValueError: If there is no embedder, half of one, or one that needs code.

    Example:
        >>> import tempfile
        >>> from nearfar.encoders.towers import build_tower
        >>> embedder = Embedder([build_tower("vector", {"name": "mlp", "shape": [5], "outputs": 8})]).eval()
        >>> rows = torch.randn(3, 5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     embedder.save(folder)
        ...     bool((load(folder).embed(rows) == embedder.embed(rows)).all())
        True
    """
    return Embedder.load(path, device, allow_code=allow_code)
