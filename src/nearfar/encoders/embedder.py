"""The embedder: one tower a kind of input, and one space for them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearfar.data.corpus import Raw
from nearfar.encoders.items import as_items, kind_of, ranges_of, read_items
from nearfar.encoders.towers import Inputs, Tower
from nearfar.lengths import unit_rows
from nearfar.names import unknown
from nearfar.types import Kind


class Embedder(nn.Module):
    """Turns images, texts, vectors or series into embeddings; with several towers, into one space.

    Args:
        towers: One a kind.
        dim: Width of the shared space; a linear projection without bias follows each tower (as in CLIP, Radford et al.
            2021, arXiv:2103.00020). None: embeddings are the tower's features.

    Attributes:
        towers: By kind.
        projections: By kind; empty without ``dim``.
        dim: Width of an embedding.
        pretrained: Its parts whose weights come from an earlier training, such as ``"towers.text"``.

    Raises:
        ValueError: If there is no tower, or several of different widths and no ``dim``.

    Example:
        >>> from nearfar.encoders.towers import build_tower
        >>> tower = build_tower("image", {"name": "small-cnn", "shape": [1, 8, 8], "outputs": 64})
        >>> embedder = Embedder([tower])
        >>> embedder.embed(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape
        torch.Size([3, 64])
    """

    def __init__(self, towers: Sequence[Tower], dim: int | None = None) -> None:
        super().__init__()
        kinds = [tower.kind for tower in towers]
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError(f"towers are for {kinds}: wanted one or more, one a kind")
        widths = {tower.kind: tower.width for tower in towers}
        if dim is None and len(set(widths.values())) > 1:
            raise ValueError(f"towers give {widths} features: pass dim, the width of the space they are to share")
        if dim is not None and dim < 1:
            raise ValueError(f"dim is {dim}: wanted 1 or more")
        self.towers = nn.ModuleDict({tower.kind: tower for tower in towers})
        self.projections = nn.ModuleDict()
        if dim is not None:
            for kind, width in widths.items():
                self.projections[kind] = projection = nn.Linear(width, dim, bias=False)
                nn.init.normal_(projection.weight, std=width**-0.5)
        self.dim: int = dim or towers[0].width
        self.pretrained: frozenset[str] = frozenset(f"towers.{tower.kind}" for tower in towers if tower.pretrained)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What it reads."""
        return tuple(self.towers)  # pyright: ignore[reportReturnType]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    def tower(self, kind: str) -> Tower:
        """The tower of a kind.

        Raises:
            ValueError: If there is none.
        """
        if kind not in self.towers:
            raise ValueError(unknown("tower for", kind, self.towers))
        tower = self.towers[kind]
        assert isinstance(tower, Tower)
        return tower

    def prepare(self, kind: str, raw: Raw) -> Inputs:
        """What the data hold, made ready for the device: see ``Tower.prepare``."""
        return self.tower(kind).prepare(raw)

    def forward(self, kind: str, inputs: Inputs) -> Float[Tensor, "b dim"]:
        """Embeddings of prepared inputs, not normalised."""
        features = self.tower(kind)(inputs)
        return self.projections[kind](features) if kind in self.projections else features

    def embed(
        self,
        items: Any,
        kind: Kind | None = None,
        batch_size: int = 256,
        device: torch.device | str | None = None,
        normalize: bool = True,
    ) -> Float[Tensor, "n dim"]:
        """Embeddings of anything that there is a tower for, in evaluation mode and without gradients.

        Args:
            items: Texts; paths of images; Pillow images; or a tensor or array of images (bytes, or floats in [0, 1]),
                vectors or series. One text, path or Pillow image counts as a list of one. Images of another size are scaled,
                arrays as files are; their channels may come last.
            kind: What they are; by default what they look like. Strings are paths where there is no text tower, or
                where all of them end as images do and are there.
            batch_size: Items at a time. 256 small images take some 100 MB.
            device: Where to compute; the embedder is moved there and stays. By default where it is.
            normalize: Rows of length 1, so that a dot product is the cosine.

        Returns:
            Embeddings on the CPU, float32, in the order of the items.

        Raises:
            ValueError: If an item cannot be read, or there is no tower for it.
        """
        items = as_items(items)
        kind = kind or kind_of(items, self.kinds)
        tower = self.tower(kind)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: wanted 1 or more")
        if device is not None:
            self.to(device)
        # Texts of like length together: less padding. The order is mended below.
        order = sorted(range(len(items)), key=lambda i: len(str(items[i]))) if kind == "text" else range(len(items))
        embeddings = torch.empty(len(items), self.dim, dtype=torch.float32)
        ranges = {} if isinstance(items, Tensor) else ranges_of(items, tower)
        with torch.no_grad(), evaluating(self):
            for start in range(0, len(items), batch_size):
                rows = list(order[start : start + batch_size])
                chosen = items[start : start + batch_size] if isinstance(items, Tensor) else [items[i] for i in rows]
                inputs = to_device(tower.prepare(read_items(chosen, tower, ranges)), self.device)
                embeddings[rows] = self(kind, inputs).float().cpu()
        return unit_rows(embeddings) if normalize else embeddings

    def save(self, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Writes ``config.json``, ``model.safetensors`` and, with a text tower, ``tokenizer.json``.

        Each file is whole or not there. ``Embedder.load`` reads the folder.

        Args:
            folder: Made if it is not there.
            weights: Its ``state_dict``, where that was gathered from several ranks; by default its own.

        Raises:
            ImportError: If safetensors is not installed.
        """
        from nearfar.encoders.saved import save

        save(self, Path(folder), self.state_dict() if weights is None else weights)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu", *, allow_code: bool = False) -> Embedder:
        """Reads what ``save`` wrote, in evaluation mode, without running any code from the folder.

        Args:
            folder: The embedder's, or a training run's, whose ``model`` folder it is.
            device: Where to put it.
            allow_code: Whether an encoder that was given as ``module:factory`` may be imported and called.

        Raises:
            ValueError: If the folder holds no embedder, half of one, or one that needs code.
        """
        from nearfar.encoders.saved import load

        return load(Path(folder), device, allow_code=allow_code)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every part of the module is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def to_device(inputs: Inputs, device: torch.device | str) -> Inputs:
    """Prepared inputs on a device; from pinned memory without waiting."""
    if isinstance(inputs, Tensor):
        return inputs.to(device, non_blocking=True)
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
