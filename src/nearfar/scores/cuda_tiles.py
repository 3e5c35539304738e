"""How a call is done on a GPU: which products, how tiles are cut, and kernels started on them."""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import Ids, Matrix
from nearfar.scores.softmax import SoftmaxPlan
from nearfar.types import Precision, Rule

HALVES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Blocks(NamedTuple):
    """How a kernel cuts a tile: pairs of a block, features at a time, warps, and loads in flight."""

    rows: int
    columns: int
    features: int
    warps: int
    stages: int


BLOCKS: dict[str, Blocks] = {
    "half": Blocks(128, 128, 64, 8, 3),
    "tf32": Blocks(128, 128, 32, 8, 3),
    "ieee": Blocks(64, 64, 32, 4, 2),
    "library": Blocks(32, 128, 16, 4, 1),
    "interpreter": Blocks(32, 32, 64, 1, 1),
}
"""None spills registers (compute capability 9.0). Not tuned on a GPU yet: ``benchmarks/gpu.py --tune`` tries others."""


# ---- whether there is a GPU to use -------------------------------------------------------------------------------------


@functools.cache
def has_triton() -> bool:
    """Whether triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run on the CPU, by Triton's interpreter (tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def at_hand(device: torch.device) -> bool:
    """Whether rows on this device can be served."""
    return device.type == "cuda" and has_triton()


def require(device: torch.device) -> None:
    """Refuse rows that the kernels cannot reach.

    Raises:
        RuntimeError: For rows elsewhere than on a GPU, or without triton.
    """
    if not has_triton():
        raise RuntimeError("backend='cuda' needs triton: pip install 'nearfar[cuda]', or leave backend= out")
    if device.type != "cuda" and not interpreted():
        raise RuntimeError(
            f"backend='cuda' was asked for, but the rows are on {device}: move them to a GPU (z.cuda()), or leave backend= out"
        )


# ---- how a call is done ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class How:
    """The products of one call."""

    dtype: torch.dtype
    """Of the rows in products."""
    fused: bool
    """Whether scores stay in registers."""

    @property
    def blocks(self) -> Blocks:
        """How tiles are cut."""
        if interpreted():
            return BLOCKS["interpreter"]
        if not self.fused:
            return BLOCKS["library"]
        return BLOCKS["half" if self.dtype.itemsize == 2 else "tf32" if _tf32() else "ieee"]

    @property
    def multiply(self) -> str:
        """What the kernels do with float32."""
        if interpreted():
            return "float64"
        return "tf32" if _tf32() else "ieee"


def _tf32() -> bool:
    return torch.get_float32_matmul_precision() != "highest"


def choose(x: Tensor, plan: SoftmaxPlan, precision: Precision | None, fused: bool | None = None) -> How:
    """Fused where the kernels' own products are as fast as the library's, and the relation is one of places and ids."""
    dtype = x.dtype if precision is None else HALVES[precision]
    if fused is None:
        fused = dtype.itemsize == 2 or (dtype is torch.float32 and _tf32())
    return How(dtype, fused and dtype is not torch.float64 and by_rule(plan.pairs, plan.over))


def by_rule(pairs: Pairs, over: Rule) -> bool:
    """Whether places and one pair of ids say which pairs count."""
    if pairs.missing is not None:
        return False
    if over != "candidates":
        return len(pairs.parts) == 1 and isinstance(pairs.parts[0], Ids)
    return not any(_ignores(part) for part in pairs.parts) or (
        len(pairs.parts) == 1 and isinstance(pairs.parts[0], Ids)
    )


def _ignores(part: Any) -> bool:
    """Whether a rule may leave a pair out of both positives and negatives."""
    return part.unknown if isinstance(part, Ids) else isinstance(part, Matrix) and part.values.is_floating_point()


# ---- tiles -------------------------------------------------------------------------------------------------------------


class Visit:
    """The rows of one call as they are multiplied, and kernels started on tiles of them."""

    def __init__(self, x: Tensor, y: Tensor | None, offsets: Tensor | None, plan: SoftmaxPlan, how: How) -> None:
        self.plan, self.how, self.offsets, self.wide = plan, how, offsets, x.dtype
        self.x = x.detach().to(how.dtype).contiguous()
        self.y = self.x if y is None else y.detach().to(how.dtype).contiguous()
        pairs = plan.pairs
        self.ruled = by_rule(pairs, plan.over)
        part = pairs.parts[0]
        self.ids = (
            part if isinstance(part, Ids) and self.ruled and (part.unknown or plan.over != "candidates") else None
        )
        self.own = pairs.own if self.ruled else None
        self.row_ids = pairs.rows if self.ruled else None

    def scores(self, i: slice, j: slice) -> Tensor | None:
        """A tile in memory by a library product, −∞ where no kernel can tell that a pair doesn't count; ``None`` if fused."""
        if self.how.fused:
            return None
        tile = multiply(self.x[i], self.y[j].T, self.wide)
        dropped = None if self.ruled else self.plan.dropped(i, j)
        return tile if dropped is None else tile.masked_fill_(dropped, -torch.inf)

    def run(self, kernel: Any, i: slice, j: slice, tile: Tensor | None, *rest: Tensor, **fixed: bool) -> None:
        """Start a kernel on a tile; ``rest``: what it reads and writes beside the scores."""
        from nearfar.scores import kernels

        x, blocks, ids, rows = self.x, self.how.blocks, self.ids, self.row_ids
        n, m, d = i.stop - i.start, j.stop - j.start, x.shape[1]
        if not n or not m:
            return
        kernels.launch(
            kernel, (n, m), (blocks.rows, blocks.columns),
            x[i], self.y[j], x if tile is None else tile, x if self.offsets is None else self.offsets[j],
            x if ids is None else ids.query[i], x if ids is None else ids.key[j],
            x if rows is None else rows[0][i], x if rows is None else rows[1][j],
            *rest, n, m, d, i.start - j.start + (self.own or 0),
            RULE=kernels.RULES[self.plan.over], IDS=ids is not None, UNKNOWN=ids is not None and ids.unknown,
            ITSELF=self.own is not None, ROWS=rows is not None, OFFSETS=self.offsets is not None, FUSED=self.how.fused,
            EVEN=d % blocks.features == 0, HOW=self.how.multiply, BI=blocks.rows, BJ=blocks.columns, BK=blocks.features,
            num_warps=blocks.warps, num_stages=blocks.stages, **fixed,
        )  # fmt: skip

    def parts(self, i: slice, j: slice, tile: Tensor | None, columns: bool, upper: bool) -> tuple[Tensor, Tensor]:
        """Log-sum-exp in float64 of a tile's rows and, if wanted, of its columns."""
        from nearfar.scores import kernels

        n, m, blocks = i.stop - i.start, j.stop - j.start, self.how.blocks
        rows = self.x.new_empty(2, -(-m // blocks.columns), n, dtype=self.wide)
        lines = self.x.new_empty(2, -(-n // blocks.rows) if columns else 0, m, dtype=self.wide)
        self.run(kernels.statistics, i, j, tile, rows, lines, UPPER=upper, COLUMNS=columns)
        return _together(rows), _together(lines)

    def slopes(self, i: slice, j: slice, tile: Tensor | None, terms: Terms) -> Tensor:
        """The gradient of a tile's scores; in place of the scores, or in the precision of the rows."""
        from nearfar.scores import kernels

        if tile is None:  # the interpreter rounds to bfloat16 towards zero
            store = self.wide if interpreted() else self.how.dtype
            tile = self.x.new_empty(i.stop - i.start, j.stop - j.start, dtype=store)
        row_terms, column_terms = (terms.rows[0][i], terms.rows[1][i]), (terms.columns[0][j], terms.columns[1][j])
        self.run(kernels.slopes, i, j, tile, *row_terms, *column_terms, tile, UPPER=False, COLUMNS=terms.both)
        return tile.to(self.how.dtype)


def _together(parts: Float[Tensor, "2 blocks n"]) -> Float[Tensor, " n"]:
    """The log-sum-exp of blocks' maxima and sums, in float64."""
    high, total = parts.double()
    return (high + total.log()).logsumexp(0)


class Terms(NamedTuple):
    """What weighs the exponentials of a tile: of each row, its log-sum-exp (∞ where nothing counts) and its gradient."""

    rows: tuple[Tensor, Tensor]
    columns: tuple[Tensor, Tensor]
    both: bool


def term(lse: Float[Tensor, " n"], rest: Float[Tensor, " n"], gradient: Float[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """``g·e^{s − lse − rest}`` as a kernel wants it; ``rest``: what rounding took from the log-sum-exp.

    Cold softmaxes need it: at a score of 150 the last place of float32 is 1.5e-5, which an exponential shows in full.
    """
    return lse.masked_fill(lse == -torch.inf, torch.inf), gradient * (-rest).exp()


def split(lse: Float[Tensor, " n"], wide: torch.dtype) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """A float64 number as a narrower one and the rest."""
    short = lse.to(wide)
    return short, (lse - short).nan_to_num_(0.0).to(wide)


def multiply(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"], wide: torch.dtype) -> Float[Tensor, "n m"]:
    """A library product whose sums and result are in float32 (or better), whatever the factors are."""
    if a.dtype == wide:
        return torch.mm(a, b)
    if a.is_cuda and "dtype" in torch.ops.aten.mm.overloads():
        return torch.mm(a, b, out_dtype=wide)  # pyright: ignore[reportCallIssue]
    return torch.mm(a.to(wide), b.to(wide))
