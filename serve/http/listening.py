"""The socket that a server listens on: how it begins, and how it ends without resetting anybody."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress

_SO_ATTACH_FILTER = 26  # of Linux; Python has no name for it
_ACK_ONLY = (
    (0x30, 0, 0, 13),  # load the flags of the TCP header,
    (0x45, 0, 1, 0x10),  # and where ACK is among them
    (0x06, 0, 0, 0xFFFF),  # let the packet in;
    (0x06, 0, 0, 0),  # else, as the first of a connection, drop it
)
"""Classic BPF: code, jump if true, jump if false, operand."""


def listen(host: str, port: int) -> socket.socket:
    """Take the address before anything is loaded.

    Raises:
        ValueError: it cannot be had, or there is none such.
    """
    if not 0 <= port < 1 << 16:  # `getaddrinfo` would take what remains of it
        raise ValueError(f"--port is {port}; allowed: 0 to 65535, where 0 takes a free one")
    with ExitStack() as undone:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = undone.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except (OSError, OverflowError, UnicodeError) as error:
            raise ValueError(f"cannot listen at {host}:{port}: {getattr(error, 'strerror', error)}") from error
        undone.pop_all()
    return listener


def turn_away(listener: socket.socket) -> None:
    """Let no further connection begin, while those that are beginning come in.

    Between the last `accept` and closing, somebody might connect, and would be reset with a request on the way. On
    Linux the kernel drops what begins a connection from here on: whoever tries once more finds nobody listening.
    Elsewhere nothing is done, and that moment remains.
    """
    if sys.platform != "linux":
        return
    steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _ACK_ONLY))
    program = struct.pack("HP", len(_ACK_ONLY), ctypes.addressof(steps))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def accept_waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Accept whoever has connected already."""
    listener.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            yield listener.accept()[0]
