"""Things a user should know that are no errors: one line each, on stderr unless the program says otherwise."""

from __future__ import annotations

import functools
import logging

LOGGER = logging.getLogger("headwork")


@functools.cache
def notice(line: str) -> None:
    """Tell the user something, once per process however often it comes up: a warning of the logger `headwork`."""
    LOGGER.warning(line)
