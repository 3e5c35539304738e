"""Where training runs: Lightning Fabric, which knows devices, precision, ranks, torchrun and SLURM."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nearfar.data.labelled import require
from nearfar.encoders.pretrained import PooledTransformer
from nearfar.training.config import TrainConfig
from nearfar.training.sharding import shard

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def make_fabric(config: TrainConfig) -> Any:
    """A launched ``Fabric``: with several devices, this process is one of the ranks when it returns.

    Args:
        config: Its device, devices, strategy, num_nodes and precision.

    Raises:
        ImportError: If Fabric is not installed.
        ValueError: If there is no such device here; the message says what there is. Or if SLURM's tasks lie unevenly.
    """
    require("lightning_fabric", "training", "train")
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # what it uses is in environment.json
    warnings.filterwarnings("ignore", "The `srun` command is available")  # see _started
    warnings.filterwarnings("ignore", "You passed `Fabric.*fp16 is not supported on CPU")  # it is refused below
    devices, nodes, plugins = _started(config)
    try:
        fabric = Fabric(
            accelerator=config.device,
            devices=devices,
            num_nodes=nodes,
            strategy=_strategy(config.strategy, devices * nodes),
            precision=PRECISIONS[config.precision],  # pyright: ignore[reportArgumentType]
            plugins=plugins,
        )
    except (RuntimeError, ValueError) as error:
        gist = str(error).partition("\n")[0]
        raise ValueError(f"device {config.device!r}, {devices} of them, cannot be used here: {gist}") from error
    except Exception as error:  # Fabric's own, for a device that is not there
        if type(error).__name__ != "MisconfigurationException":
            raise
        raise ValueError(f"device {config.device!r}, {devices} of them, cannot be used here: {error}") from error
    if config.precision == "16" and fabric.device.type == "cpu":
        raise ValueError("precision 16 needs a GPU: on a CPU pass bf16, or 32")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    fabric.launch()
    if fabric.world_size > 1:
        atexit.unregister(_part)
        atexit.register(_part)
    return fabric


def _part() -> None:
    """Leaves the other ranks before the interpreter ends: one that ends first may abort, and a finished run would have failed.

    Not after an error, whose frames still hold the network: freed later than its process group, it may wait for ever.
    """
    gc.collect()
    if torch.distributed.is_initialized() and getattr(sys, "last_value", None) is None:
        torch.distributed.destroy_process_group()


def _strategy(name: str, world: int) -> Any:
    """Fabric's strategy of a name; on one device there is nothing to divide."""
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    if name == "fsdp" and world > 1:
        # Fabric's FSDPStrategy is the first FSDP, which knows no CPU; this one leaves the sharding to a function, and
        # so to ``fully_shard``, which runs on gloo as on NCCL
        return ModelParallelStrategy(
            lambda network, mesh: shard(network, mesh["data_parallel"]),
            data_parallel_size=world,
            tensor_parallel_size=1,
        )
    if name == "ddp" or world > 1:
        return DDPStrategy(gradient_as_bucket_view=True)
    return "auto"


def _started(config: TrainConfig) -> tuple[int, int, list[Any]]:
    """Processes a machine, machines, and Fabric's word for who starts them: as asked for, or as torchrun or SLURM did.

    SLURM has started this process if it is one of several tasks of an srun. A lone task, and a job script without srun,
    start their own, however many tasks the job was given.
    """
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    known = os.environ
    if "TORCHELASTIC_RUN_ID" in known and "LOCAL_WORLD_SIZE" in known:
        here = int(known["LOCAL_WORLD_SIZE"])
        return here, max(1, int(known["WORLD_SIZE"]) // here), []
    if "SLURM_JOB_ID" not in known:
        return config.devices, config.num_nodes, []
    tasks, nodes = (int(known.get(f"SLURM_STEP_NUM_{what}", "1")) for what in ("TASKS", "NODES"))
    if tasks == 1:
        return config.devices, config.num_nodes, [LightningEnvironment()]
    if tasks % nodes:
        raise ValueError(f"srun started {tasks} tasks on {nodes} machines: wanted as many on each (--ntasks-per-node)")
    known["SLURM_NTASKS_PER_NODE"] = str(tasks // nodes)  # which Fabric wants, and a job of --ntasks lacks
    return tasks // nodes, nodes, [SLURMEnvironment()]


def pass_over_unused(network: nn.Module) -> None:
    """Tells ``DistributedDataParallel``, which waits for every gradient, which ones never come."""
    unused = [
        f"{name}.{own}"
        for name, part in network.named_modules()
        if isinstance(part, PooledTransformer)
        for own in part.unused
    ]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, unused)


def is_first() -> bool:
    """Whether this process is the one, or the first rank, that speaks."""
    distributed = torch.distributed
    return not distributed.is_available() or not distributed.is_initialized() or distributed.get_rank() == 0


def seed_step(seed: int, step: int, rank: int) -> None:
    """Sets every default generator by the step, so that what a step draws does not depend on what was drawn before.

    So a run that goes on from a step needs no random state of the run before, and a look in between changes nothing.
    """
    start = mixed(seed, step, rank)
    torch.manual_seed(start)
    random.seed(start)
    np.random.seed(start % 2**32)  # noqa: NPY002 (what models draw from)


def mixed(*numbers: int) -> int:
    """One seed of several numbers, as unlike its neighbours' as any.

    Example:
        >>> mixed(0, 1, 2) == mixed(0, 1, 2) != mixed(0, 2, 1)
        True
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def average_gradients(parameters: Sequence[Tensor], fabric: Any) -> None:
    """Over the ranks, what no wrapper averages."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if fabric.world_size == 1 or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    flat = fabric.all_reduce(flat, reduce_op="mean")
    assert isinstance(flat, Tensor)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))
