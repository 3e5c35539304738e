"""Joint supervision: a task loss and contrastive terms on the same model, in one line of a training loop."""

from nearfar.joint.objective import Joint
from nearfar.joint.schedules import Constant, Cosine, Linear, Schedule, Warmup

__all__ = ["Constant", "Cosine", "Joint", "Linear", "Schedule", "Warmup"]
