"""What virtual sites of one process keep: what all of them were sent is held in memory once, not on disk for each.

A virtual site's bases and weights are the coordinator's, which has them in its checkpoints and sends them again to who
lacks them. So nothing of them is written, and a round of a thousand sites waits for no disk. Which site was sent what
is remembered for each, so a site has here what it would have on a disk of its own, and asks for what it would ask for.
Declared state, which nobody else has, is written as a real site writes it. A process that goes on with a killed run
holds nothing: its sites are sent bases and weights again, and end with the same bits.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

from client.state import SiteStore
from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.files import private_folder, tensors_digest

MOST_SETS = 4
"""Sets of tensors that a process holds: a stage's base, what it trains from, what it judges, and what comes next."""
MOST_SITES = 100_000

_held: OrderedDict[str, Tensors] = OrderedDict()
_sent: OrderedDict[tuple[str, str], list[str]] = OrderedDict()
_lock = threading.Lock()


class MemoryStore(SiteStore):
    """A virtual site's own folder, made when there is something to write.

    Args:
        folder: which site it is.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def are(self, weights: Tensors, named: str) -> bool:
        """As for every site; where another site was sent the same, the bytes are compared with those."""
        known = _held.get(named)
        return tensors_digest(weights) == named if known is None else _same(weights, known)

    def keep_site_state(
        self, key: tuple[str, str, str], round_index: int, tensors: Tensors, needed: Collection[str]
    ) -> str:
        """As for every site."""
        self._make("states")
        return super().keep_site_state(key, round_index, tensors, needed)

    def keep_update(self, key: tuple[str, str, str], request: str, reply: Payload) -> None:
        """As for every site."""
        self._make("updates")
        super().keep_update(key, request, reply)

    def _make(self, part: str) -> None:
        private_folder(self.folder)
        private_folder(self.folder / part)

    def _found(self, part: str, digest: str) -> Tensors | None:
        with _lock:
            sent = _sent.get((str(self.folder), part), [])
            if digest not in sent or digest not in _held:
                return None
            sent.remove(digest)
            sent.append(digest)
            _held.move_to_end(digest)
            return dict(_held[digest])

    def _keep(self, part: str, digest: str, tensors: Tensors, most: int) -> None:
        with _lock:
            _held.setdefault(digest, dict(tensors))
            _held.move_to_end(digest)
            while len(_held) > MOST_SETS:
                _held.popitem(last=False)
            sent = _sent.setdefault((str(self.folder), part), [])
            sent[:] = [*(kept for kept in sent if kept != digest), digest][-most:]
            _sent.move_to_end((str(self.folder), part))
            while len(_sent) > MOST_SITES:
                _sent.popitem(last=False)


def forget() -> None:
    """Hold nothing more of any run, as a new process."""
    with _lock:
        _held.clear()
        _sent.clear()


def _same(one: Tensors, other: Tensors) -> bool:
    """Whether two sets have the same names, dtypes, shapes and bytes."""
    return one.keys() == other.keys() and all(
        (value.dtype, value.shape) == (other[name].dtype, other[name].shape)
        and (value is other[name] or value.tobytes() == other[name].tobytes())
        for name, value in one.items()
    )
