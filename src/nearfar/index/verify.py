"""``nearfar verify``: do two images show the same, and how often is that answer wrong?"""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jaxtyping import Float32, Int64
from torch import Tensor

from nearfar.data.classes import class_name
from nearfar.encoders.items import ranges_of
from nearfar.evaluation.verification import calibrate
from nearfar.index.config import VerifyConfig
from nearfar.index.gallery import read_gallery
from nearfar.index.held_out import embed_held_out
from nearfar.index.items import shown
from nearfar.index.run import Run, open_run
from nearfar.index.store import rescore
from nearfar.report.files import read_json, write_json

ROWS = 5_000
"""Held-out rows that a threshold is chosen and judged on, at most: some ten million pairs."""
FILE = "verification.json"


@dataclass(frozen=True)
class Threshold:
    """From which score two are taken for the same, and how often that is wrong. Kept in the run's ``verification.json``."""

    threshold: float
    """On the cosine: at or above it, the same."""
    wanted_far: float | None
    """The false acceptance rate that it was chosen for; None: equal errors."""
    far: float
    """False acceptance rate, on identities that it was not chosen on."""
    frr: float
    """False rejection rate, on the same."""
    calibrated_on: int
    """Identities that it was chosen on."""
    tested_on: int
    """Identities that the rates were measured on."""
    unseen: bool
    """Whether all those were held out of training."""
    weights: str
    """Of the model: a threshold says nothing of another's scores."""

    def __str__(self) -> str:
        how = "equal errors" if self.wanted_far is None else f"a false acceptance rate of {self.wanted_far:.3g}"
        seen = (
            "" if self.unseen else " The model was trained on other rows of theirs: expect more errors with new ones."
        )
        out = " held out" if self.unseen else ""
        return (
            f"Threshold {self.threshold:.3f}, chosen for {how} on {self.calibrated_on} identities{out}. On "
            f"{self.tested_on} others: {self.far:.2%} false acceptances, {self.frr:.2%} false rejections.{seen}"
        )


def held_out(run: Run, rows: int = ROWS) -> tuple[Float32[Tensor, "n d"], Int64[Tensor, "n"], bool]:
    """Embeddings of images that the run held out, and whose they are.

    Returns:
        Embeddings, identities (the id column, else the label), and whether none of these was trained on.

    Raises:
        ValueError: If the run held out no images, or does not know whose they are.
    """
    held = embed_held_out(run, rows, "image")
    ids = held.labels if held.groups is None else held.groups
    if not held.tested or ids is None:
        raise ValueError(
            f"{run.path} held out no image whose identity is known, so no threshold can be chosen: pass --threshold"
        )
    return held.embeddings[0], ids, held.unseen


def calibrated(run: Run, far: float | None = None) -> Threshold:
    """The run's threshold: as kept in ``verification.json``, or chosen now and kept.

    Half of the held-out identities choose it, the other half says how often it errs.

    Args:
        run: A training run.
        far: The false acceptance rate to keep; None: equal errors.

    Raises:
        ValueError: If too few identities were held out, or their scores allow no such rate.
    """
    file = run.path / FILE
    if file.is_file():
        kept = read_json(file)
        if isinstance(kept, dict) and kept.get("weights") == run.weights and kept.get("wanted_far") == far:
            return _read(kept, file)
    embeddings, ids, unseen = held_out(run)
    try:
        found = calibrate(embeddings, ids, far=far)
    except ValueError as error:
        raise ValueError(f"{run.path}: no threshold can be chosen ({error}): pass --threshold") from error
    if not math.isfinite(found.threshold):
        raise ValueError(
            f"no threshold keeps false acceptances at {far:.3g}: among the held-out identities the most alike two are "
            "different ones. Pass a larger --far, or --threshold"
        )
    threshold = Threshold(**asdict(found), unseen=unseen, weights=run.weights)
    write_json(file, asdict(threshold))
    return threshold


def verify(
    run: str | Path | Run, first: str | Path, second: str | Path, threshold: float | None = None
) -> tuple[bool, float]:
    """Whether two images show the same, and their score.

    Args:
        run: A training run, or a model folder.
        first: An image.
        second: Another.
        threshold: Cosine from which they are the same; by default the run's own, see ``calibrated``.

    Raises:
        ValueError: If an image cannot be read, or there is no threshold.
    """
    model = run if isinstance(run, Run) else open_run(run)
    score = pair_score(model, first, second)
    return score >= (calibrated(model).threshold if threshold is None else threshold), score


def pair_score(run: Run, first: str | Path, second: str | Path) -> float:
    """The cosine of two images' embeddings."""
    ranges = ranges_of([Path(first), Path(second)], run.embedder.tower("image"))
    a, b = (run.embed_image(path, ranges).numpy() for path in (first, second))
    return float(rescore(a[0], b)[0])


def run(config: VerifyConfig) -> int:
    """Compares two images, or one with a gallery; 0: the same, or known; 1: not."""
    if len(config.images) not in (1, 2):
        raise ValueError(f"{len(config.images)} images were given: wanted two, or one with a gallery")
    if len(config.images) == 2 and (config.gallery or config.identity):
        raise ValueError(
            "two images and a gallery were given: compare one image with a gallery, or two with each other"
        )
    model = open_run(config.run, config.device, allow_code=config.allow_code)
    told: dict[str, Any] = {}
    if len(config.images) == 2:
        told["score"] = pair_score(model, *config.images)
        subject = "same"
    else:
        place = Path(config.gallery).expanduser() if config.gallery else model.path / "gallery.parquet"
        gallery = read_gallery(place, model)
        scores = gallery.scores(model.embed_image(config.images[0])[0].numpy())
        claimed = class_name(config.identity)
        if claimed and claimed not in scores:
            near = difflib.get_close_matches(claimed, scores, n=1)
            hint = f"; did you mean {shown(near[0])!r}?" if near else ""
            raise ValueError(f"{place} has no identity {shown(claimed)!r} among its {len(scores)}{hint}")
        best = claimed or max(scores, key=lambda name: scores[name])
        told |= {"identity": best, "score": scores[best], "among": 1 if config.identity else len(scores)}
        subject = f"{shown(best)}"
    chosen = calibrated(model, config.far) if config.threshold is None else None
    limit = config.threshold if chosen is None else chosen.threshold
    assert limit is not None
    yes = told["score"] >= limit
    told = {"same": yes, **told, "threshold": limit}
    if chosen is not None:
        told |= {"far": chosen.far, "frr": chosen.frr}
    if config.json:
        print(json.dumps(told))
        return 0 if yes else 1
    if subject == "same" and "identity" not in told:
        verdict = "same" if yes else "different"
    elif config.identity:
        verdict = subject if yes else f"not {subject}"
    else:
        verdict = subject if yes else f"unknown (nearest: {subject})"
    score, at = apart(told["score"], limit)
    print(f"{verdict}: score {score}, {'at least' if yes else 'below'} the threshold {at}")
    if chosen is not None:
        print(chosen)
        if told.get("among", 1) > 1 and chosen.far > 0:
            several = 1 - (1 - chosen.far) ** told["among"]
            print(
                f"Against {told['among']} identities, a stranger is taken for one of them in about {several:.2%} of cases."
            )
    return 0 if yes else 1


def apart(score: float, limit: float) -> tuple[str, str]:
    """Two numbers with three digits, or as many as show which is the larger.

    Example:
        >>> apart(0.81234, 0.5), apart(0.99996, 1.0), apart(1.0, 1.0)
        (('0.812', '0.500'), ('0.99996', '1.00000'), ('1.000', '1.000'))
    """
    digits = 3
    while score != limit and digits < 15 and f"{score:.{digits}f}" == f"{limit:.{digits}f}":
        digits += 1
    return f"{score:.{digits}f}", f"{limit:.{digits}f}"


def _read(kept: dict[str, Any], file: Path) -> Threshold:
    try:
        values: dict[str, Any] = {field.name: kept[field.name] for field in fields(Threshold)}
        threshold = Threshold(**values)
        str(threshold)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): remove it, and it is made again") from error
    return threshold
