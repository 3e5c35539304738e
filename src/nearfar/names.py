"""Unknown names, answered with the nearest known one; lives in ``nearfar.names``, below every layer."""

from nearfar.names import unknown as unknown
