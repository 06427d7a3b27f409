"""Who is at the other end of a Unix socket, by the kernel's word. Standard library only."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

_CREDENTIALS = struct.Struct("3i")  # struct ucred


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, or that began to listen, and its user."""

    pid: int
    uid: int


def peer(connection: socket.socket) -> Peer:
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid, uid)
