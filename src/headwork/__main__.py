"""`python -m headwork` is the command `headwork`."""

from __future__ import annotations

import sys

from headwork.cli import main

sys.exit(main())
