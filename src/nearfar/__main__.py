"""``python -m nearfar``: the command, for a Python whose scripts are not on the path."""

import sys

from nearfar.cli import main

sys.exit(main())
