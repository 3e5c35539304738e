"""The peers: one row a (loss, contender), each built to compute the very loss of `workloads.py`.

What a peer cannot be made to agree with is said in its row's `note`, and then no errors are shown for it. Peers' packages
are imported when their row is built; a missing one is an ImportError, and is shown as not installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dense import TAU
from workloads import IDENTITIES, WORKLOADS, Call, Workload

BF16_ROWS = 512  # below, bfloat16 products gain nothing


@dataclass(frozen=True)
class Contender:
    """Who computes a loss.

    Attributes:
        loss: A name of `WORKLOADS`.
        name: As the tables say it.
        build: Makes the function of the loss's inputs.
        power: Its time grows with this power of the rows.
        memory: Its memory does.
        note: How it differs from ours, where it does.
        same: Whether its value is ours.
        compiled: Whether its first call compiles for these very shapes.
    """

    loss: str
    name: str
    build: Callable[[], Call]
    power: int = 2
    memory: int = 2
    note: str = ""
    same: bool = True
    compiled: bool = False


# ---- importing -------------------------------------------------------------------------------------------------------


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """torchvision, as far as importing a peer's losses needs it: any name is an empty class."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        ours = name.split(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: Any) -> Any:
        class Module(types.ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return type(name, (), {"__init__": lambda self, *args, **kwargs: None})

        return Module(spec.name)

    def exec_module(self, module: Any) -> None:
        module.__version__ = "0.0"


@contextlib.contextmanager
def _torchvision() -> Iterator[None]:
    """For as long as an import takes: others ask whether torchvision is there, and should hear the truth."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        finder = _StandIn()
        sys.meta_path.append(finder)
        try:
            yield
        finally:
            sys.meta_path.remove(finder)
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    else:
        yield


def _bare(package: str) -> None:
    """Lets `package.x` be imported without the package's own start, which asks for tokenizers and image models."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        module = types.ModuleType(package)
        module.__path__ = list(spec.submodule_search_locations)
        sys.modules[package] = module


def lightly(module: str, name: str, **options: Any) -> Any:
    with _torchvision():
        return getattr(importlib.import_module(f"lightly.loss.{module}"), name)(**options)


def open_clip(name: str) -> Any:
    _bare("open_clip")
    return getattr(importlib.import_module("open_clip.loss"), name)()


def pml(name: str, *, miner: str | None = None, **options: Any) -> Call:
    """A loss of pytorch-metric-learning as a function of rows and labels."""
    package = importlib.import_module("pytorch_metric_learning")
    importlib.import_module("pytorch_metric_learning.losses")
    importlib.import_module("pytorch_metric_learning.miners")
    loss = getattr(package.losses, name)(**options)
    if miner is None:
        return loss
    mine = getattr(package.miners, miner)(**({"distance": loss.distance} if miner == "BatchHardMiner" else {}))
    return lambda z, labels: loss(z, labels, mine(z, labels))


def raw(power: int = 1) -> Any:
    """pytorch-metric-learning's Euclidean distance of rows as they are."""
    distances = importlib.import_module("pytorch_metric_learning.distances")
    return distances.LpDistance(normalize_embeddings=False, power=power)


def dot() -> Any:
    """pytorch-metric-learning's dot product of rows as they are."""
    distances = importlib.import_module("pytorch_metric_learning.distances")
    return distances.DotProductSimilarity(normalize_embeddings=False)


def mean() -> Any:
    """pytorch-metric-learning's plain mean."""
    return importlib.import_module("pytorch_metric_learning.reducers").MeanReducer()


def sbert(name: str, **options: Any) -> Any:
    losses = importlib.import_module("sentence_transformers.sentence_transformer.losses")
    return getattr(losses, name)(**options)


# ---- calls: from our inputs to the peer's ----------------------------------------------------------------------------


def stacked(loss: Call) -> Call:
    """Two views as labelled rows."""
    return lambda x, y: loss(torch.cat([x, y]), torch.arange(len(x)).repeat(2))


def embedded(loss: Any) -> Call:
    """sentence-transformers' losses after their encoder: rows, or both sides."""

    def call(x: Tensor, y: Tensor) -> Tensor:
        both = y.is_floating_point()
        return loss.compute_loss_from_embeddings([x, y] if both else [x], torch.empty(0) if both else y)

    return call


def ranking(**options: Any) -> Call:
    return embedded(sbert("MultipleNegativesRankingLoss", model=None, scale=1 / TAU, **options))


def cached_ranking(size: int = 512) -> Call:
    """The loss's own stage: chunks of queries, each with its backward."""
    first = torch.nn.Sequential(torch.nn.Identity())
    loss = sbert("CachedMultipleNegativesRankingLoss", model=first, scale=1 / TAU, mini_batch_size=size)
    return lambda x, y: loss.calculate_loss([[x], [y]], with_backward=True)


def scaled(loss: Any, *scale_and_bias: float) -> Call:
    """open_clip's losses, which take unit rows and the multiplier."""
    return lambda x, y: loss(F.normalize(x), F.normalize(y), *scale_and_bias)


def with_table(name: str, attribute: str, **options: Any) -> Callable[[], Call]:
    """pytorch-metric-learning's class losses, on our class table in place of their own."""

    def build() -> Call:
        importlib.import_module("pytorch_metric_learning")

        made: dict[int, Any] = {}  # by the number of classes

        def call(z: Tensor, labels: Tensor, table: Tensor) -> Tensor:
            count, width = table.shape
            if count not in made:
                made[count] = pml(name, num_classes=count, embedding_size=width, **options)
                delattr(made[count], attribute)
            setattr(made[count], attribute, table.T if attribute == "W" else table)
            return made[count](z, labels)

        return call

    return build


def linear_cross_entropy(options: Callable[[], Any] = lambda: None, unit: bool = True) -> Callable[[], Call]:
    def build() -> Call:
        chosen = options()

        def call(x: Tensor, y: Tensor) -> Tensor:
            x, y = (F.normalize(x) / TAU, F.normalize(y)) if unit else (x, y)
            return F.linear_cross_entropy(x, y, torch.arange(len(x)), options=chosen)

        return call

    return build


def chunks() -> Any:
    return torch.nn.LinearCrossEntropyOptions()


# ---- the table -------------------------------------------------------------------------------------------------------

PML, ST, LCE = "pytorch-metric-learning", "sentence-transformers", "linear_cross_entropy"
CUBED = "every positive pair with every negative pair: O(n³)"
BOTH_WAYS = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}

PEERS = (
    Contender("NT-Xent", "lightly", lambda: lightly("ntx_ent_loss", "NTXentLoss", temperature=TAU)),
    Contender("NT-Xent", PML, lambda: stacked(pml("NTXentLoss", temperature=TAU)), 3, 3, CUBED),
    Contender("SupCon", PML, lambda: pml("SupConLoss", temperature=TAU)),
    Contender("InfoNCE", "info-nce-pytorch", lambda: importlib.import_module("info_nce").InfoNCE(temperature=TAU)),
    Contender("InfoNCE", ST, ranking),
    Contender("InfoNCE", f"{ST}, cached", cached_ranking, memory=1, note="chunks of 512 queries"),
    Contender("InfoNCE", LCE, linear_cross_entropy()),
    Contender("InfoNCE", f"{LCE}, chunked", linear_cross_entropy(chunks), memory=1),
    Contender("InfoNCE, frozen keys", "info-nce-pytorch", lambda: importlib.import_module("info_nce").InfoNCE(TAU)),
    Contender("InfoNCE, frozen keys", LCE, linear_cross_entropy()),
    Contender("InfoNCE, frozen keys", f"{LCE}, chunked", linear_cross_entropy(chunks), memory=1),
    Contender("CLIP", "open_clip", lambda: scaled(open_clip("ClipLoss"), 1 / TAU)),
    Contender("CLIP", ST, lambda: ranking(**BOTH_WAYS)),
    Contender("SigLIP", "open_clip", lambda: scaled(open_clip("SigLipLoss"), 10.0, -10.0)),
    Contender("Triplet, hard", ST, lambda: embedded(sbert("BatchHardTripletLoss", model=None, margin=0.2))),
    Contender(
        "Triplet, hard", PML,
        lambda: pml("TripletMarginLoss", margin=0.2, distance=raw(), reducer=mean(), miner="BatchHardMiner"),
    ),
    Contender("Triplet, all", ST, lambda: embedded(sbert("BatchAllTripletLoss", model=None, margin=0.2))),
    Contender("Triplet, all", PML, lambda: pml("TripletMarginLoss", margin=0.2, distance=raw())),
    Contender("Triplet, semi-hard", ST, lambda: embedded(sbert("BatchSemiHardTripletLoss", model=None, margin=0.2))),
    Contender("DCL", "lightly", lambda: lightly("dcl_loss", "DCLLoss", temperature=TAU)),
    Contender("N-pairs", LCE, linear_cross_entropy(unit=False)),
    Contender("N-pairs", PML, lambda: stacked(pml("NPairsLoss", distance=dot()))),
    Contender("NCA", PML, lambda: pml("NCALoss", distance=raw(2))),
    Contender("Multi-similarity", PML, lambda: pml("MultiSimilarityLoss", miner="MultiSimilarityMiner")),
    Contender("Circle", PML, lambda: pml("CircleLoss", m=0.25, gamma=256)),
    Contender("Lifted structure", PML, lambda: pml("LiftedStructureLoss", distance=raw()), 3, 3, CUBED),
    Contender(
        "Contrastive", PML, lambda: pml("ContrastiveLoss", distance=raw()), same=False,
        note="distances unsquared, positives and negatives averaged apart, over those above 0",
    ),
    Contender(
        "Align, uniform", "lightly", lambda: lightly("hypersphere_loss", "HypersphereLoss", t=2.0, lam=1.0, alpha=2.0)
    ),
    Contender("Barlow Twins", "lightly", lambda: lightly("barlow_twins_loss", "BarlowTwinsLoss"), 1, 1),
    Contender("VICReg", "lightly", lambda: lightly("vicreg_loss", "VICRegLoss"), 1, 1),
    Contender("VICReg", PML, lambda: (lambda loss: lambda x, y: loss(x, ref_emb=y))(pml("VICRegLoss")), 1, 1),
    Contender("Proxy-anchor", PML, with_table("ProxyAnchorLoss", "proxies")),
    *(Contender(f"{name}{many}", PML, with_table(f"{loss}Loss", table, **options), 1, 1)
      for many in ("", f", {IDENTITIES:,} classes") for name, loss, table, options in (
          ("Proxy-NCA", "ProxyNCA", "proxies", {}), ("CosFace", "CosFace", "W", {}),
          ("ArcFace", "ArcFace", "W", {"margin": 28.64788975654116}),  # degrees
      )),
)  # fmt: skip


def contenders(workload: Workload, n: int, *, compiled: bool) -> list[Contender]:
    """All who compute a loss at n rows: ours first."""
    name = workload.name
    ours = [Contender(name, "nearfar", workload.ours, memory=1)]
    if n >= BF16_ROWS and workload.kind not in ("classes", "identities", "noise") and workload.across == "rows":
        ours.append(Contender(name, "nearfar bf16", lambda: workload.ours(precision="bf16"), memory=1))
    plain = [Contender(name, "dense", lambda: workload.dense)]
    if compiled:
        forms = [("dense, compiled", lambda: workload.dense)]
        if workload.traced(n):
            forms.append(("nearfar, compiled", workload.ours))
        plain += [
            Contender(name, form, lambda build=build: torch.compile(build(), dynamic=False), compiled=True)
            for form, build in forms
        ]
    return ours + plain + [peer for peer in PEERS if peer.loss == name]


assert all(peer.loss in WORKLOADS for peer in PEERS)
