"""Towers: a network with what its inputs need before it, for one kind of input."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearfar.data.corpus import Raw
from nearfar.data.depth import Range
from nearfar.encoders.backbones import ENCODERS
from nearfar.encoders.factory import import_factory
from nearfar.encoders.precision import dtype_of
from nearfar.encoders.tokenizer import encode
from nearfar.names import unknown
from nearfar.types import Kind

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Inputs = Tensor | dict[str, Tensor]
"""What a tower takes: images, vectors or series ``(b, ...)``; of texts token ``ids`` and a ``mask`` ``(b, tokens)``."""


class Tower(nn.Module):
    """What turns one kind of input into features.

    Attributes:
        kind: What it reads.
        spec: How it is built again, as JSON has it: the network's name and options.
        width: Features ``w`` that come out.
        pretrained: Whether its weights come from an earlier training.
    """

    network: nn.Module
    pretrained: bool = False

    def __init__(self, kind: Kind, spec: dict[str, Any], width: int) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.spec = spec
        self.width = width

    @property
    def attends(self) -> bool:
        """Whether its network is a transformer, which wants a lower learning rate than others."""
        return self.kind == "text" or any("Attention" in type(part).__name__ for part in self.network.modules())

    def prepare(self, raw: Raw) -> Inputs:
        """What the data hold, made ready for the device; on the CPU, in a worker. Images stay ``uint8``."""
        if not isinstance(raw, Tensor):
            raise TypeError(f"the {self.kind} tower was given {type(raw).__name__}: wanted a tensor")
        return raw

    def forward(self, inputs: Inputs) -> Float[Tensor, "b w"]:
        """Features of prepared inputs."""
        raise NotImplementedError


class ArrayTower(Tower):
    """Images, vectors or series through a network from ``ENCODERS``, from timm, or the user's own.

    Images that come as bytes are standardised, ``(x/255 − mean) / std`` by channel; float images are taken as viewed and
    normalised already. Vectors and series are always standardised, by column and by channel.

    Args:
        kind: What it reads.
        spec: ``{"name": …, "shape": of one input, "outputs": how many or null, "options": {…}}``.
        build: Makes the network from the shape, the outputs and the options.
        mean: Of each channel or column, images in [0, 1]; by default 0.5 for images and 0 for all else.
        std: The same for the standard deviation; by default 0.25 for images and 1 for all else.

    Attributes:
        ranges: Which numbers are black and white in image files of more than bytes, by depth; as in training. What is not
            among them is found by the images at hand.

    Raises:
        ValueError: If the network does not give one row of features for an input.
    """

    mean: Tensor
    std: Tensor
    AXES: ClassVar[dict[str, int]] = {"image": 3, "series": 2, "vector": 1}

    def __init__(
        self,
        kind: Kind,
        spec: dict[str, Any],
        build: Callable[..., nn.Module],
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        shape = tuple(spec["shape"])
        if len(shape) != self.AXES[kind] or not all(isinstance(size, int) and size > 0 for size in shape):
            raise ValueError(f"the shape of one {kind} is {shape}: wanted {self.AXES[kind]} sizes above 0")
        network = build(shape, spec.get("outputs"), **spec.get("options", {}))
        if not isinstance(network, nn.Module):
            raise TypeError(f"{spec['name']} returned a {type(network).__name__}: wanted a torch.nn.Module")
        dtype = dtype_of(network)
        super().__init__(kind, spec, output_width(network, torch.zeros(2, *shape, dtype=dtype), spec["name"]))
        self.network = network
        self.shape = shape
        self.ranges: dict[str, Range] = {}
        image = kind == "image"
        across = (shape[0], *(1 for _ in shape[1:]))
        self.register_buffer("mean", _statistic(mean, 0.5 if image else 0.0, across, dtype))
        self.register_buffer("std", _statistic(std, 0.25 if image else 1.0, across, dtype).clamp(min=1e-30))

    def standardise(self, values: Tensor) -> Float[Tensor, "b ..."]:
        """``(x − mean) / std`` by channel or column; images: floats in [0, 1]."""
        return (values.to(self.mean.dtype) - self.mean) / self.std

    def normalise(self, inputs: Tensor) -> Float[Tensor, "b ..."]:
        """Standardised floats of raw inputs. Float images are returned as they are: they were viewed and normalised."""
        if self.kind != "image":
            return self.standardise(inputs)
        values = inputs.to(self.mean.dtype)
        return self.standardise(values / 255) if inputs.dtype == torch.uint8 else values

    def forward(self, inputs: Inputs) -> Float[Tensor, "b w"]:
        """Features ``(b, width)`` of images ``(b, c, h, w)``, vectors ``(b, d)`` or series ``(b, c, t)``."""
        assert isinstance(inputs, Tensor)
        if inputs.ndim != len(self.shape) + 1 or inputs.shape[1] != self.shape[0]:
            raise ValueError(
                f"the {self.kind} tower was given {tuple(inputs.shape)}: wanted (rows, {_sizes(self.shape)})"
            )
        try:
            return self.network(self.normalise(inputs)).flatten(1)
        except RuntimeError as error:
            if tuple(inputs.shape[1:]) == self.shape:
                raise
            raise ValueError(
                f"the {self.kind} tower was given {tuple(inputs.shape)}, and its network takes no other size than (rows, "
                f"{_sizes(self.shape)}): {error}"
            ) from error


class TextTower(Tower):
    """Texts through a tokenizer and a network that takes its ids and mask.

    Args:
        spec: ``{"name": …, "max_length": tokens of a text at most, "options": {…}}``.
        network: Takes ``{"ids", "mask"}`` and gives features.
        tokenizer: Of the network.
    """

    def __init__(self, spec: dict[str, Any], network: nn.Module, tokenizer: Tokenizer) -> None:
        ids = torch.zeros(2, 2, dtype=torch.int64)
        width = output_width(network, {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}, spec["name"])
        super().__init__("text", spec, width)
        self.network = network
        self.tokenizer = tokenizer
        self.pad: int = spec.get("pad", 0)
        tokenizer.no_padding()  # done here, to the longest of a batch
        tokenizer.enable_truncation(spec["max_length"])

    def prepare(self, raw: Raw) -> Inputs:
        """Token ids and mask of texts, padded to the longest of them."""
        if isinstance(raw, Tensor):
            raise TypeError("the text tower was given a tensor: wanted a list of texts")
        return encode(self.tokenizer, raw, self.pad)

    def forward(self, inputs: Inputs) -> Float[Tensor, "b w"]:
        """Features ``(b, width)`` of prepared texts."""
        return self.network(inputs)


def build_tower(
    kind: Kind,
    spec: dict[str, Any],
    *,
    tokenizer: Tokenizer | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    pretrained: bool = False,
    allow_code: bool = False,
) -> Tower:
    """A tower as its spec says.

    Args:
        kind: What it reads.
        spec: See ``ArrayTower`` and ``TextTower``; ``name`` decides what is built.
        tokenizer: Of a text tower.
        mean: Of a channel or column, see ``ArrayTower``.
        std: Of a channel or column.
        pretrained: With weights that were trained elsewhere, where the name has some.
        allow_code: Whether ``module:factory`` may be imported and run.

    Raises:
        ValueError: If there is no such network, it does not read this kind, or it is code that is not allowed.
    """
    name = spec["name"]
    prefix, _, rest = name.partition(":")
    if prefix in ("hf", "timm") and rest:
        from nearfar.encoders import pretrained as others

        if prefix == "hf":
            _suits(name, kind, ("text",))
            return TextTower(spec, others.transformer(spec, pretrained), _wanted(tokenizer, name))
        _suits(name, kind, ("image",))
        return ArrayTower(kind, spec, others.timm_factory(rest, pretrained), mean, std)
    if name in ENCODERS:
        row = ENCODERS[name]
        _suits(name, kind, row.kinds)
        if kind != "text":
            return ArrayTower(kind, spec, row.build, mean, std)
        tokenizer = _wanted(tokenizer, name)
        network = row.build((spec["max_length"],), spec.get("outputs"), **spec.get("options", {}))
        return TextTower(spec, network, tokenizer)
    if ":" in name and not allow_code:
        raise ValueError(
            f"the {kind} encoder {name!r} is code that is not part of nearfar: if you trust it, load with allow_code=True, "
            "which imports that module and calls the function"
        )
    if ":" in name and kind == "text":
        raise ValueError(f"{name!r} cannot read texts, which need a tokenizer: name text-small or hf:PATH_OR_NAME")
    if ":" not in name:
        raise ValueError(unknown("network", name, [*ENCODERS, "timm:NAME", "hf:NAME", "module:factory"]))
    return ArrayTower(kind, spec, import_factory(name), mean, std)


def output_width(network: nn.Module, inputs: Inputs, name: str) -> int:
    """How many features a network gives for an input.

    Raises:
        ValueError: If it does not give one row of features an input.
    """
    training = network.training
    with torch.no_grad():
        outputs = network.eval()(inputs)
    network.train(training)
    flat = isinstance(outputs, Tensor) and outputs.ndim >= 2 and math.prod(outputs.shape[2:]) == 1
    if not flat or len(outputs) != 2 or not outputs.is_floating_point():
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise ValueError(f"{name} maps two inputs to {given}: wanted (2, features)")
    return outputs.shape[1]


def fingerprint(text: str) -> str:
    """A short name for a text's content: SHA-256's first 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _statistic(given: Tensor | None, default: float, across: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if given is None:
        return torch.full(across, default, dtype=dtype)
    return given.detach().to(dtype, copy=True).reshape(across)


def _suits(name: str, kind: Kind, kinds: tuple[Kind, ...]) -> None:
    if kind not in kinds:
        raise ValueError(f"{name} reads {' or '.join(kinds)} inputs, not {kind}: name another network for {kind}")


def _wanted(tokenizer: Tokenizer | None, name: str) -> Tokenizer:
    if tokenizer is None:
        raise ValueError(f"{name} was given no tokenizer: make it with make_embedder, or pass tokenizer=")
    return tokenizer


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
