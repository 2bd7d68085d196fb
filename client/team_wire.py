"""What crosses between the processes of a site's devices: tasks over a pipe, weights and gradients in a group.

Images, features and labels go through the pipe that is a child's standard input, which nobody else can open. Weights
and sums of gradients go over a socket of this machine's files (no port, no network), which no other account can reach:
sums of gradients are from before privacy's noise, and one that is not ours would be. (torch.distributed's gloo, which
was here before, listens on a TCP port for as long as it lives and takes whoever connects.) Nothing is unpickled: a task
is JSON and safetensors, the group carries numbers alone.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from fed_diffmic.models.diffmic import Features
from fed_diffmic.training.parts import Part
from fed_diffmic.training.stages import Encoded, Pooled
from fed_diffmic.transport.meeting import meet

WAIT_S = 600.0
"""Longest wait for another device: longer than any step takes, shorter than anybody would look on."""

AT_A_TIME = 1 << 23
"""Numbers that are put together for one message of the group."""

_LENGTHS, _LENGTH = struct.Struct("<QQ"), struct.Struct("<Q")
_KINDS: dict[str, Callable[..., Any]] = {kind.__name__: kind for kind in (Features, Pooled, Encoded)}
_IMAGES = "images"


@dataclass(frozen=True)
class Task:
    """What a device is to do next.

    Attributes:
        kind: ``begin``, ``gradients``, ``units`` or ``sum``.
        facts: plain values.
        tensors: on the processor, by name.
    """

    kind: str
    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    def to_bytes(self) -> bytes:
        """As it goes through the pipe."""
        head = json.dumps({"kind": self.kind, **self.facts}).encode()
        body = save({name: value.detach().cpu().contiguous() for name, value in self.tensors.items()})
        return _LENGTHS.pack(len(head), len(body)) + head + body


def read_task(stream: IO[bytes]) -> Task | None:
    """The next task; none once nobody is there to give one."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    head, body = (stream.read(length) for length in _LENGTHS.unpack(lengths))
    facts = json.loads(head)
    return Task(facts.pop("kind"), facts, load(body))


def rows_task(kind: str, inputs: Any, tensors: dict[str, Tensor | None], draws: Sequence[Tensor], **facts: Any) -> Task:
    """A task over images or features of them.

    Args:
        inputs: images, or a named tuple of features.
        tensors: what else there is; what is none is left out.
        draws: what is random.
    """
    single = isinstance(inputs, Tensor)
    columns = [inputs] if single else list(inputs)
    named = {name: value for name, value in tensors.items() if value is not None}
    named |= {f"inputs/{n}": column for n, column in enumerate(columns)}
    named |= {f"draws/{n}": drawn for n, drawn in enumerate(draws)}
    return Task(kind, {**facts, "inputs": _IMAGES if single else type(inputs).__name__}, named)


def rows_of(task: Task, device: torch.device) -> tuple[Any, tuple[Tensor, ...], dict[str, Tensor]]:
    """Inputs, draws and the rest of a task's tensors, on a device: the inverse of :func:`rows_task`."""
    there = {name: value.to(device) for name, value in task.tensors.items()}

    def numbered(what: str) -> list[Tensor]:
        found = {name: there.pop(name) for name in list(there) if name.startswith(f"{what}/")}
        return [found[f"{what}/{n}"] for n in range(len(found))]

    columns, draws = numbered("inputs"), tuple(numbered("draws"))
    kind = _KINDS.get(task.facts["inputs"])
    return (columns[0] if kind is None else kind(*columns)), draws, there


def part_task(part: Part, precision: str) -> Task:
    """A part of a step."""
    tensors = {"labels": part.labels, "offset": part.offset}
    return rows_task("gradients", part.inputs, tensors, part.draws, whole=part.whole, precision=precision)


def part_of(task: Task, device: torch.device) -> Part:
    """Inverse of :func:`part_task`."""
    inputs, draws, rest = rows_of(task, device)
    return Part(inputs, rest["labels"], draws, rest.get("offset"), task.facts["whole"])


class Group:
    """All devices of a site, the leading one first.

    They meet at a socket in a folder that nobody else may enter, and the leading one asks the kernel which account
    connects; afterwards nothing listens. What is said is numbers whose count both ends know.

    Args:
        folder: where the processes find each other (0700).
        rank: of this process, 0 for the leading one.
        size: how many there are.
        wait_s: longest wait for another one.

    Raises:
        OSError: they do not find each other in that time.
    """

    def __init__(self, folder: Path, rank: int, size: int, wait_s: float = WAIT_S) -> None:
        self._leads = rank == 0
        self._peers = meet(folder, rank, size, wait_s)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the leading one's values, bit for bit.

        Raises:
            OSError: another process is lost.
        """
        for together in _lots(tensors):
            if self._leads:
                flat = torch.cat([_bytes_of(value.detach().cpu()) for value in together])
                for peer in self._peers:
                    _say(peer, flat)
            else:
                flat = torch.empty(sum(v.numel() * v.element_size() for v in together), dtype=torch.uint8)
                _hear(self._peers[0], flat)
                _put(flat, together)

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes into the leading one's tensors; of one type each call.

        The sum is taken in the order of the devices, whichever of them is done first.

        Raises:
            OSError: another process is lost.
        """
        for together in _lots(tensors):
            flat = torch.cat([value.detach().cpu().reshape(-1) for value in together])
            if not self._leads:
                _say(self._peers[0], _bytes_of(flat))
                continue
            other = torch.empty_like(flat)
            for peer in self._peers:
                _hear(peer, _bytes_of(other))
                flat += other
            _put(_bytes_of(flat), together)

    def close(self) -> None:
        """End the connections."""
        for peer in self._peers:
            peer.close()


def _say(peer: socket.socket, flat: Tensor) -> None:
    """Send bytes, preceded by how many there are."""
    peer.sendall(_LENGTH.pack(len(flat)))
    peer.sendall(flat.numpy().data)


def _hear(peer: socket.socket, flat: Tensor) -> None:
    """Receive as many bytes as there is room for.

    Raises:
        OSError: the other process is gone or silent, or sends another number of them.
    """
    length = bytearray(_LENGTH.size)
    _fill(peer, memoryview(length))
    if _LENGTH.unpack(length)[0] != len(flat):
        raise ConnectionError(f"{_LENGTH.unpack(length)[0]} bytes instead of {len(flat)}")
    _fill(peer, flat.numpy().data)


def _fill(peer: socket.socket, room: memoryview) -> None:
    while room:
        count = peer.recv_into(room)
        if not count:
            raise ConnectionError("the other process is gone")
        room = room[count:]


def _bytes_of(value: Tensor) -> Tensor:
    """A tensor's bytes, where they are."""
    return value.contiguous().reshape(-1).view(torch.uint8)


def _lots(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors that are put together, in order; a large one by itself."""
    found: list[Tensor] = []
    count = 0
    for value in tensors:
        if found and count + value.numel() > AT_A_TIME:
            yield found
            found, count = [], 0
        found.append(value)
        count += value.numel()
    if found:
        yield found


@torch.no_grad()
def _put(flat: Tensor, into: Sequence[Tensor]) -> None:
    """Bytes ``flat`` back into the tensors that they are of."""
    start = 0
    for value in into:
        size = value.numel() * value.element_size()
        part = flat[start : start + size].clone()  # a view of another type has to begin where memory is aligned
        value.copy_(part.view(value.dtype).view(value.shape))
        start += size
