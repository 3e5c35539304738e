"""Networks of others by name: transformers' text encoders and timm's image networks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearfar.data.labelled import require
from nearfar.encoders.tokenizer import read_tokenizer
from nearfar.encoders.towers import TextTower
from nearfar.encoders.transformer import masked_mean
from nearfar.names import unknown

# What a configuration may not bring: code to import or to fetch, and choices of this machine's.
CODE = ("auto_map", "quantization_config", "attn_implementation", "experts_implementation", "kernel_config")
TIMM_OPTIONS = ("drop_rate", "drop_path_rate", "global_pool", "img_size")
# Tokens of a text where neither the caller nor the model says: attention over more costs more than it gives in a batch.
LONGEST = 512


class PooledTransformer(nn.Module):
    """An encoder of transformers', and the mean over its tokens, or its first token.

    Args:
        model: Gives ``last_hidden_state`` for ``input_ids`` and ``attention_mask``.
        pooling: ``"mean"`` or ``"cls"``.
    """

    def __init__(self, model: nn.Module, pooling: str = "mean") -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling={pooling!r} is not known: wanted 'mean' or 'cls'")
        self.model = model
        self.pooling = pooling

    @property
    def unused(self) -> list[str]:
        """Names of parameters that no feature depends on: of the model's own pooler, whose output is not asked for."""
        return [name for name, _ in self.named_parameters() if name.startswith("model.pooler.")]

    def forward(self, inputs: dict[str, Tensor]) -> Float[Tensor, "n d"]:
        """Features of each text."""
        mask = inputs["mask"]
        tokens = self.model(input_ids=inputs["ids"], attention_mask=mask.long()).last_hidden_state
        return tokens[:, 0] if self.pooling == "cls" else masked_mean(tokens, mask)


def read_transformer(name: str, max_length: int | None = None) -> TextTower:
    """A text tower from a pretrained encoder.

    Args:
        name: ``"hf:"`` and a folder, or a name on the Hub; what the Hub's cache holds is read without the network if
            ``HF_HUB_OFFLINE=1``. A folder of sentence-transformers' brings its pooling and its longest text.
        max_length: Tokens of a text at most.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If it cannot be read, has no fast tokenizer, or is no encoder.
    """
    transformers = require("transformers", f"the encoder {name}", "text")
    path = name.partition(":")[2]
    if path.startswith("~"):
        path = str(Path(path).expanduser())
    if path.startswith((".", os.sep)) and not Path(path).is_dir():
        raise ValueError(f"{name} cannot be read: there is no folder {path}")
    try:
        model = transformers.AutoModel.from_pretrained(path, trust_remote_code=False, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder with a decoder ({model.config.model_type}): wanted an encoder alone")
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise ValueError(f"{name} has no fast tokenizer: wanted a model with a tokenizer.json")
    pooling, known = _sentence_settings(Path(path))
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", LONGEST) or LONGEST)
    config = plain_config(model.config.to_dict())
    spec = {
        "name": "hf:" + model.config.model_type,
        "from": path if not Path(path).exists() else Path(path).name,
        "max_length": max_length or known or min(longest, LONGEST),
        "pad": tokenizer.pad_token_id or 0,
        "pooling": pooling,
        "config": config,
    }
    # A copy: truncation and padding are set on it.
    tower = TextTower(spec, PooledTransformer(model, pooling), read_tokenizer(fast.to_str(), name))
    tower.pretrained = True
    return tower.train()


def transformer(spec: dict[str, Any], pretrained: bool = False) -> PooledTransformer:
    """The network of a saved ``hf:`` tower, from its configuration, without weights.

    Raises:
        ValueError: If transformers does not know the model, or the configuration asks for code.
    """
    transformers = require("transformers", f"the encoder {spec['name']}", "text")
    config = spec["config"]
    if not isinstance(config, dict) or config != plain_config(config):
        raise ValueError(f"the configuration of {spec['name']} asks for code ({', '.join(CODE)}): this is never run")
    rest = {key: value for key, value in config.items() if key != "model_type"}
    try:
        made = transformers.AutoConfig.for_model(config["model_type"], **rest)
        model = transformers.AutoModel.from_config(made, trust_remote_code=False)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"transformers {transformers.__version__} cannot build {spec['name']}: {error}") from error
    return PooledTransformer(model.float(), spec.get("pooling", "mean"))


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without whatever could import or fetch code, as JSON has it.

    Example:
        >>> plain_config({"model_type": "bert", "auto_map": {"AutoModel": "x--y.Z"}, "_attn_implementation": "org/kernel"})
        {'model_type': 'bert'}
    """
    plain = json.loads(json.dumps(config, default=str))

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if k not in CODE and not k.startswith("_")}
        return [clean(item) for item in value] if isinstance(value, list) else value

    return clean(plain)


def timm_factory(name: str, pretrained: bool = False) -> Callable[..., nn.Module]:
    """What makes a network of timm's that gives pooled features.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If it does not know the name, or the name points to a place to fetch from; and when it is built, if it
            cannot be had for the size of the images.
    """
    timm = require("timm", f"the network timm:{name}", "vision")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:5]
        raise ValueError(f"timm knows no network {name!r}" + (f"; there are {', '.join(near)}" if near else ""))

    def build(shape: tuple[int, ...], outputs: int | None = None, **options: Any) -> nn.Module:
        for option in options:  # others would let a configuration name files to read
            if option not in TIMM_OPTIONS:
                raise ValueError(unknown(f"option of timm:{name}", option, TIMM_OPTIONS))
        if timm.get_pretrained_cfg(name).fixed_input_size:  # a transformer, whose patches are counted
            options.setdefault("img_size", tuple(shape[1:]))
        try:
            return timm.create_model(
                name, pretrained=pretrained, in_chans=shape[0], num_classes=outputs or 0, **options
            )
        except (TypeError, AssertionError) as error:
            size = "×".join(map(str, shape[1:]))
            raise ValueError(f"timm:{name} cannot be made for images of {size} pixels: {error}") from error

    return build


def _sentence_settings(folder: Path) -> tuple[str, int | None]:
    """Pooling and longest text of a sentence-transformers folder, if it is one."""
    modes, longest = folder / "1_Pooling" / "config.json", folder / "sentence_bert_config.json"
    pooling, known = "mean", None
    if modes.is_file():
        given = json.loads(modes.read_text(encoding="utf-8"))
        on = [given["pooling_mode"]] if "pooling_mode" in given else [
            key.removeprefix("pooling_mode_") for key, value in given.items() if key.startswith("pooling_mode_") and value
        ]  # fmt: skip
        pooling = {("mean_tokens",): "mean", ("mean",): "mean", ("cls_token",): "cls", ("cls",): "cls"}.get(
            tuple(on), ""
        )
        if not pooling:
            raise ValueError(f"{modes} wants the pooling {', '.join(on)}: mean and cls are known")
    if longest.is_file():
        known = json.loads(longest.read_text(encoding="utf-8")).get("max_seq_length")
    return pooling, known
