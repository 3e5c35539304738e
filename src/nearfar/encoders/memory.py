"""A memory bank: embeddings of past batches, met by new ones as further keys. Cross-batch memory and MoCo's queue in one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from nearfar.given import at_least, ids_of
from nearfar.pairs import Pairs


class MemoryBank(nn.Module):
    """The last ``size`` embeddings, with labels and sample ids, in buffers: a state dict goes on exactly where it was saved.

    Two uses. **Cross-batch memory** (Wang et al. 2020, arXiv:1912.06798): ``bank.loss(criterion, z, labels=y)`` lets a
    batch meet itself and the memory. **MoCo's queue** (He et al. 2020, arXiv:1911.05722): ``InfoNCELoss()(q, k,
    bank.rows)``, then ``bank.add(k)``.

    Rows leave in the order in which they came. They carry no gradient.

    Args:
        size: How many rows it holds.
        dim: Their width.
        start_after: Calls of ``add`` (training calls of ``loss``) before anything is remembered: early embeddings move too
            fast to be of use (Wang et al., section 3.1).
        frozen: In ``loss`` the batch's own keys carry no gradient either, as in the paper: the batch learns as queries
            alone, and a matrix product is spared. By default it learns from both sides, as without a memory.
        gather: Under ``torch.distributed`` every rank remembers the rows of all, in order of rank, so that all banks are
            equal; ``loss`` is then that of all ranks' rows, exact under ``DistributedDataParallel``'s averaging.
        dtype: Of the rows kept: ``torch.float16`` or ``torch.bfloat16`` take half the memory.

    Raises:
        ValueError: If ``size`` or ``dim`` is below 1, or ``start_after`` below 0.
        TypeError: If ``dtype`` is no float type.

    Example:
        >>> import nearfar as nf
        >>> bank = nf.MemoryBank(size=4, dim=2)
        >>> bank.add(torch.eye(2), labels=torch.tensor([0, 1]))
        >>> bank.add(-torch.ones(3, 2), labels=torch.tensor([2, 2, 0]))
        >>> bank.labels  # oldest first
        tensor([1, 2, 2, 0])
        >>> z = torch.randn(3, 2, requires_grad=True)
        >>> bank.loss(nf.SupConLoss(), z, labels=torch.tensor([0, 1, 2])).backward()
        >>> bank.labels, z.grad.shape
        (tensor([0, 0, 1, 2]), torch.Size([3, 2]))
    """

    slots: Tensor
    slot_labels: Tensor
    slot_ids: Tensor
    pointer: Tensor
    count: Tensor
    calls: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        start_after: int = 0,
        frozen: bool = False,
        gather: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        size, dim, start_after = (
            at_least("size", size, 1),
            at_least("dim", dim, 1),
            at_least("start_after", start_after, 0),
        )
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype is {dtype}: wanted a float type, such as torch.float32 or torch.bfloat16")
        self.size, self.dim, self.start_after, self.frozen, self.gather = size, dim, start_after, frozen, gather
        self.register_buffer("slots", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("slot_labels", torch.full((size,), -1))
        self.register_buffer("slot_ids", torch.full((size,), -1))
        for name in ("pointer", "count", "calls"):  # where the next row goes, rows held, calls of add
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    # ---- what it holds ----------------------------------------------------------------------------------------------

    @property
    def rows(self) -> Float[Tensor, "count dim"]:
        """The rows it holds, oldest first: a copy, which later additions do not change."""
        return self.slots[self._order()]

    @property
    def labels(self) -> Int[Tensor, " count"]:
        """Their labels; −1 where none was given."""
        return self.slot_labels[self._order()]

    @property
    def ids(self) -> Int[Tensor, " count"]:
        """Their sample ids; −1 where none was given."""
        return self.slot_ids[self._order()]

    def _order(self) -> Int[Tensor, " count"]:
        count = int(self.count)
        return (self.pointer + torch.arange(-count, 0, device=self.slots.device)) % self.size

    # ---- what goes in -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def add(
        self,
        rows: Float[Tensor, "n dim"],
        labels: Int[Tensor, " n"] | None = None,
        ids: Int[Tensor, " n"] | None = None,
    ) -> None:
        """Remembers rows, in place of the oldest; of more than ``size`` rows, the last.

        Args:
            rows: ``(n, dim)``; what graph they hang on is left behind.
            labels: Integers, negative for unknown; left out: unknown.
            ids: Sample ids, 0 or more, by which ``loss`` knows a sample again; left out or negative: unknown.

        Raises:
            ValueError: If shapes do not fit, or (on the CPU, where looking costs nothing) rows are not finite, or beyond
                what a bank of float16 holds.
            TypeError: If rows are no floats, or labels or ids no integers.
        """
        self._store(*self._everyones(*self._checked(rows, labels, ids)))

    def _store(self, rows: Tensor, labels: Tensor, ids: Tensor) -> None:
        self.calls += 1
        if self.start_after and int(self.calls) <= self.start_after:
            return
        n = len(rows)
        first = max(n - self.size, 0)
        places = (self.pointer + torch.arange(first, n, device=self.slots.device)) % self.size
        self.slots[places] = rows[first:].detach().to(self.slots.dtype)
        self.slot_labels[places] = labels[first:]
        self.slot_ids[places] = ids[first:]
        self.pointer.add_(n).remainder_(self.size)
        self.count.add_(n).clamp_(max=self.size)

    # ---- what is done with it ---------------------------------------------------------------------------------------

    def loss(
        self,
        criterion: Callable[..., Tensor],
        z: Float[Tensor, "n dim"],
        labels: Int[Tensor, " n"],
        ids: Int[Tensor, " n"] | None = None,
        **keywords: Any,
    ) -> Float[Tensor, ""]:
        """The loss of a batch that meets itself and the memory; then the batch is remembered.

        It is remembered in training mode with gradients enabled only: a validation loss leaves the bank alone.

        Args:
            criterion: Called as ``criterion(queries, keys, pairs=…, **keywords)``, see :meth:`sides`.
            z: Embeddings ``(n, dim)``.
            labels: Who belongs together; pairs with an unknown (negative) label are ignored.
            ids: Sample ids. A remembered row of a sample that is in the batch is left out: the batch has its newer self.
            **keywords: For the criterion.

        Raises:
            ValueError: As :meth:`add`; or if both the bank and the criterion gather.
            TypeError: As :meth:`add`.
        """
        if not callable(criterion):
            raise TypeError(f"the criterion is a {type(criterion).__name__}: wanted a loss such as nf.SupConLoss()")
        if self.gather and getattr(criterion, "options", {}).get("gather"):
            raise ValueError("both the bank and the loss gather all ranks' rows: leave gather=True to the bank")
        batch = self._known(z, labels, ids)
        queries, keys, pairs = self._sides(*batch)
        value = criterion(queries, keys, pairs=pairs, **keywords)
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self._store(*batch)
        return value

    def sides(
        self, z: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], ids: Int[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, "a dim"], Float[Tensor, "b dim"], Pairs]:
        """Queries, keys, and who belongs with whom, for any loss that takes ``loss(queries, keys, pairs=…)``.

        Queries are the batch, keys the batch and then the memory, oldest first. A row is not its own partner. Nothing is
        remembered. With ``gather=True`` the batch is that of all ranks.
        """
        return self._sides(*self._known(z, labels, ids))

    def _sides(self, z: Tensor, labels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Pairs]:
        order = self._order()
        again = torch.isin(self.slot_ids[order], ids[ids >= 0])
        order = order[~again]
        keys = torch.cat([z.detach() if self.frozen else z, self.slots[order].to(z.dtype)])
        pairs = Pairs.by_label(labels, torch.cat([labels, self.slot_labels[order]]))
        return z, keys, replace(pairs, own=0)  # the first keys are the queries

    # ---- what is given ----------------------------------------------------------------------------------------------

    def _known(self, z: Tensor, labels: Tensor | None, ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The same of a batch that is to be compared: without labels nothing would belong together."""
        if labels is None:
            raise TypeError(
                "labels are None, so that nothing belongs together: pass one integer a row, negative for unknown"
            )
        return self._everyones(*self._checked(z, labels, ids))

    def _checked(self, rows: Tensor, labels: Tensor | None, ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if not isinstance(rows, Tensor) or rows.layout != torch.strided or rows.device.type == "meta":
            kind = f"{rows.layout} on {rows.device}" if isinstance(rows, Tensor) else f"a {type(rows).__name__}"
            raise TypeError(f"rows are {kind}: a dense tensor of embeddings (n, {self.dim}) was wanted")
        if not rows.is_floating_point():
            raise TypeError(f"rows are {rows.dtype}: embeddings in floats were wanted")
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"rows have shape {tuple(rows.shape)}; (n, {self.dim}) was wanted, as the bank was built")
        if rows.device.type == "cpu" and not bool(rows.detach().isfinite().all()):
            raise ValueError(
                "rows have NaN or infinity, which would stay in the memory: look at the learning rate, and add nothing in a "
                "step that a GradScaler skips"
            )
        if rows.device.type == "cpu" and self.slots.dtype == torch.float16:
            kept = rows.detach().half()
            lost = ~kept.isfinite().all(1) | ((kept == 0).all(1) & (rows.detach() != 0).any(1))
            if bool(lost.any()):
                raise ValueError(
                    f"row {int(lost.nonzero()[0])} has numbers beyond what float16 holds, 6e-8 to 65504: add rows of length "
                    "one, or make the bank with dtype=torch.bfloat16 or torch.float32"
                )
        columns = []
        for name, column in (("labels", labels), ("ids", ids)):
            column = torch.full((len(rows),), -1, device=rows.device) if column is None else column
            column = ids_of(name, column, rows.device)
            if column.is_floating_point() or column.is_complex():
                raise TypeError(f"{name} are {column.dtype}, integers were wanted: pass {name}.long()")
            if column.shape != (len(rows),):
                raise ValueError(
                    f"{name} have shape {tuple(column.shape)} for {len(rows)} rows: one integer a row was wanted"
                )
            columns.append(column.long())
        return rows, columns[0], columns[1]

    def _everyones(self, rows: Tensor, labels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of all ranks, in order of rank. Own rows keep their gradient, times the number of ranks, see below."""
        if not self.gather or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return rows, labels, ids
        world, rank = dist.get_world_size(), dist.get_rank()
        counts = torch.zeros(world, dtype=torch.int64, device=rows.device)
        counts[rank] = len(rows)
        dist.all_reduce(counts)
        sizes = counts.tolist()

        def everyones(own: Tensor) -> list[Tensor]:
            padded = own.new_zeros(max(sizes), *own.shape[1:])
            padded[: len(own)] = own.detach()
            parts = [torch.empty_like(padded) for _ in sizes]
            dist.all_gather(parts, padded)
            return [part[:size] for part, size in zip(parts, sizes)]

        parts = everyones(rows)
        if rows.requires_grad and torch.is_grad_enabled():
            parts[rank] = rows.view_as(rows)
            parts[rank].register_hook(
                lambda gradient: gradient * world
            )  # DistributedDataParallel averages what should be summed
        return torch.cat(parts), torch.cat(everyones(labels)), torch.cat(everyones(ids))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"size={self.size}, dim={self.dim}, start_after={self.start_after}, dtype={self.slots.dtype}"
