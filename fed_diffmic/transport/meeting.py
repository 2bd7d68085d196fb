"""Where processes of one account meet: a socket of this machine's files, in a folder that nobody else may enter.

The one that listens asks the kernel which account connects, and listens no longer than until all have come.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

_LOOK_S = 0.02
_CREDENTIALS = struct.Struct("iII")  # process, user, group


def meet(folder: Path, rank: int, size: int, wait_s: float) -> list[socket.socket]:
    """Connections of the first process to the others, in their order; of another one its connection to the first.

    Args:
        folder: which they all know (0700), its path not much over 80 characters.
        rank: of this process, 0 for the first.
        size: how many there are.
        wait_s: longest wait for all of them, and afterwards for one.

    Raises:
        OSError: they do not come in that time.
    """
    place, until = str(folder / "group"), time.monotonic() + wait_s
    found = [_connected(place, rank, until)] if rank else _accepted(place, size, until)
    for peer in found:
        peer.settimeout(wait_s)
    return found


def _accepted(place: str, size: int, until: float) -> list[socket.socket]:
    """The leading process's connections to the others, in their order."""
    found: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(place)
        listener.listen(size)
        while len(found) < size - 1:
            listener.settimeout(_left(until))
            peer, _ = listener.accept()
            peer.settimeout(_left(until))
            said = peer.recv(1) if _is_ours(peer) else b""
            rank = said[0] if said else 0
            if not 0 < rank < size or rank in found:
                peer.close()
                continue
            found[rank] = peer
    os.unlink(place)
    return [found[rank] for rank in sorted(found)]


def _connected(place: str, rank: int, until: float) -> socket.socket:
    """A further device's connection to the leading process, which may not listen yet."""
    while True:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.settimeout(_left(until))
            peer.connect(place)
            peer.sendall(bytes([rank]))
            return peer
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):  # not yet, or too many wait to be let in
            peer.close()
            time.sleep(_LOOK_S)


def _left(until: float) -> float:
    """Seconds that are left. Asked before each wait: who connects again and again must not make it longer."""
    left = until - time.monotonic()
    if left <= 0.0:
        raise TimeoutError("the other processes did not come in time")
    return left


def _is_ours(peer: socket.socket) -> bool:
    """Whether a process of this account connected, where the kernel says; elsewhere the folder's mode has to do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    _, user, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.geteuid())
