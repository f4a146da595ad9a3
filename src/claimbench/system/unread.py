"""Figures that only inform: what cannot be read is absent, with the reason, and never ends a measurement.

Hardened containers hide files of /proc and /sys or fill them with nothing, and libraries raise whatever they like then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

LONGEST = 200
logger = logging.getLogger(__name__)


class Readings:
    """Reads figures one by one; `unread` says of those that could not be read why."""

    def __init__(self) -> None:
        self.unread: dict[str, str] = {}

    def read(self, name: str, look: Callable[[], Value]) -> Value | None:
        """What `look` returns, or None where it raises."""
        try:
            return look()
        except Exception as error:  # psutil, NVML and the kernel's files each have their own kinds
            said = (str(error).strip().splitlines() or [""])[0][:LONGEST]
            self.unread[name] = f"{type(error).__name__}: {said}" if said else type(error).__name__
            logger.info("%s cannot be read: %s", name, self.unread[name])
            return None
