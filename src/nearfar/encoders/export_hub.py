"""An embedder to the Hugging Face Hub."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from nearfar.data.labelled import require
from nearfar.encoders.embedder import Embedder
from nearfar.encoders.reading import image_words
from nearfar.encoders.towers import ArrayTower
from nearfar.report.files import write_text

NAME = re.compile(r"[\w.-]+/[\w.-]+")


def push(embedder: Embedder, repository: str, *, private: bool = False) -> str:
    """Uploads what ``Embedder.save`` writes, and a model card, as one commit.

    The token is huggingface_hub's: from ``hf auth login`` or ``HF_TOKEN``.

    Args:
        embedder: What to upload.
        repository: ``"user/name"``; made if it is not there.
        private: A new one is not shown to others.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If the repository has no such name.
        PermissionError: If there is no token, or none that may write there; the message says the remedy.
    """
    if not NAME.fullmatch(repository):
        raise ValueError(f"{repository!r} is no repository on the Hub: wanted user/name")
    hub = require("huggingface_hub", "the Hub", "train")
    api = hub.HfApi()
    with tempfile.TemporaryDirectory() as folder:
        embedder.save(folder)
        write_text(Path(folder) / "README.md", model_card(embedder, repository))
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="An encoder trained with nearfar"
            )
        except hub.errors.HfHubHTTPError as error:
            if error.response.status_code not in (401, 403):
                raise
            raise PermissionError(
                f"the Hub does not let you write to {repository}: hf auth login, with a token that may, or set HF_TOKEN"
            ) from error
    return str(getattr(done, "commit_url", done))


def model_card(embedder: Embedder, repository: str) -> str:
    """The page of the repository, with the lines that read it.

    Example:
        >>> from nearfar.encoders.towers import build_tower
        >>> tower = build_tower("vector", {"name": "mlp", "shape": [5], "outputs": 8})
        >>> print(model_card(Embedder([tower]), "me/rows").splitlines()[6])
        # rows
    """
    tags = {"text": "sentence-similarity", "image": "image-feature-extraction"}
    pipeline = tags.get(embedder.kinds[0], "feature-extraction")
    towers = "\n".join(f"| {kind} | {embedder.tower(kind).spec['name']} |" for kind in embedder.kinds)
    image = embedder.towers["image"] if "image" in embedder.kinds else None
    reading = f"\n{image_words(image.shape)}\n" if isinstance(image, ArrayTower) else ""
    return f"""---
library_name: nearfar
pipeline_tag: {pipeline}
tags:
- contrastive-learning
---
# {repository.partition("/")[2]}

An encoder trained with nearfar: embeddings of {embedder.dim} numbers, compared by their cosine.

| reads | network |
|---|---|
{towers}
{reading}
```python
import nearfar as nf
from huggingface_hub import snapshot_download

embedder = nf.load(snapshot_download("{repository}"))
embeddings = embedder.embed(items)
```
"""
