"""What backends of real servers share: an address or a start, and a stop if it fails before the session is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from claimbench.serving.client import get_text
from claimbench.serving.process import Launch, Server
from claimbench.serving.session import ServerOptions, url_of
from claimbench.system.processes import free_port


class Connection(NamedTuple):
    address: str
    server: Server | None
    """None where it runs at an address, started by somebody else."""


@contextmanager
def start_or_connect(options: ServerOptions, variable: str, start: Callable[[int], Launch]) -> Iterator[Connection]:
    """The server at the address that is given, else the one that `start` describes for a free port.

    A server that was started is stopped again if the body raises; otherwise its session stops it.
    """
    address = url_of(options, variable)
    if address:
        get_text(address, "/health")
        yield Connection(address, None)
        return
    server = Server(start(free_port()))
    try:
        yield Connection(server.address, server)
    except BaseException:
        server.stop()
        raise
