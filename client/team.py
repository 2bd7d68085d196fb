"""Several devices of a site that share each step of its local update (``site.device: [cuda:0, cuda:1]``).

The worker's own process leads: it computes on the first device, and has a child for each further one
(:mod:`client.team_member`). It draws everything that is random, cuts the batch, and alone clips, adds noise, asks the
algorithm and steps the optimizer; every step begins with its weights. With privacy whole units go to one device or
another, each clips those that it has, and the sum of all is what noise is added to, once.

Children are started with the first local update and kept for the next. Whatever goes wrong in the middle of a step
ends them all, because none of them can know then where the others stand; the next local update starts new ones.
"""

from __future__ import annotations

import os
import select
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.team_wire import WAIT_S, Group, Task, part_task, rows_task
from fed_diffmic.errors import ConfigError, MachineError
from fed_diffmic.files import private_folder
from fed_diffmic.models.normalisation import live_batch_norms
from fed_diffmic.privacy.ghost.sum import add_clipped, nothing
from fed_diffmic.privacy.per_sample import Units, trained
from fed_diffmic.training.parts import Part, part_loss
from fed_diffmic.training.precision import casts
from fed_diffmic.training.stage import StageModule
from fed_diffmic.transport.processes import Child, start_child

MODULE = "client.team_member"
START_S = 300.0
LONGEST = 60  # of a folder's path: a socket's has 100 bytes
_GONE_S = 2.0
_LOOK_S = 0.05
_KEPT: dict[tuple[str, ...], Team] = {}


def team_of(devices: Sequence[str], folder: Path) -> Team | None:
    """The process's own team of these devices; none for a single one.

    Args:
        devices: names; the first leads.
        folder: the site's own, for the children's logs.
    """
    if len(devices) < 2:
        return None
    return _KEPT.setdefault(tuple(devices), Team(devices, folder))


class _LostError(Exception):
    """A device did not do its part."""


class Team:
    """The leading process's hold on all devices (:class:`fed_diffmic.training.parts.Team`).

    Args:
        devices: names, two or more; the first one is this process's.
        folder: the site's own.
        start_s: longest wait for a child to load what it needs.
        wait_s: longest wait for a child in a step.
    """

    def __init__(self, devices: Sequence[str], folder: Path, start_s: float = START_S, wait_s: float = WAIT_S) -> None:
        self.devices = tuple(devices)
        self._folder, self._start_s, self._wait_s = folder, start_s, wait_s
        self._children: list[Child] = []
        self._group: Group | None = None

    @property
    def size(self) -> int:
        """Devices, the leading one included."""
        return len(self.devices)

    @property
    def pids(self) -> list[int]:
        """Of the children that were started."""
        return [child.pid for child in self._children]

    def begin(self, module: StageModule) -> None:
        """As :meth:`fed_diffmic.training.parts.Team.begin`."""
        if live_batch_norms(module.network):
            raise ConfigError(
                "site.device",
                "[" + ", ".join(self.devices) + "]",
                "one device for a run whose batch norm learns from the batch",
                "Each device would normalise by its own images: name one in site.device, or ask for a run with "
                "model.norm=group and model.encoder_norm=group or frozen.",
            )
        with self._unbroken():
            if any(child.poll() is not None for child in self._children):
                self.close()  # between two rounds: nothing is lost with it
            group = self._group or self._start()
            self._give_all(Task("begin", {"spec": module.spec.to_json(), "stage": module.stage}, {}))
            _heard(group.broadcast, list(module.network.state_dict().values()))

    def gradients(self, module: StageModule, parts: Sequence[Part], precision: str) -> Tensor:
        """As :meth:`fed_diffmic.training.parts.Team.gradients`."""
        parameters = list(trained(module).values())
        with self._unbroken():
            group = self._begun()
            for child, part in zip(self._children, parts[1:], strict=True):
                self._give(child, part_task(part, precision))
            _heard(group.broadcast, parameters)
            with casts(parts[0].labels.device, precision):
                loss = part_loss(module, parts[0])
            loss.backward()
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            loss = loss.detach().float()
            _heard(group.reduce, [loss, *found])
            return loss

    def summed(self, module: StageModule, chunks: Iterator[Units], bound: float) -> dict[str, Tensor]:
        """As :meth:`fed_diffmic.training.parts.Team.summed`."""
        with self._unbroken():
            group = self._begun()
            self._give_all(Task("weights", {}, {}))
            _heard(group.broadcast, list(trained(module).values()))
            total = nothing(module)
            for number, units in enumerate(chunks):
                turn = number % self.size
                if turn == self.size - 1:  # the others were given theirs before and compute meanwhile
                    add_clipped(total, module, units, bound)
                else:
                    tensors = {"labels": units.labels, "mask": units.mask, "offset": units.offset}
                    task = rows_task("units", units.inputs, tensors, units.draws, bound=bound)
                    self._give(self._children[turn], task)
            self._give_all(Task("sum", {}, {}))
            _heard(group.reduce, list(total.values()))
            return total

    def close(self) -> None:
        """End the children; the next local update starts new ones."""
        for child in self._children:
            child.kill()
            if child.stdin is not None:
                with suppress(OSError):
                    child.stdin.close()
        if self._group is not None:
            self._group.close()
        self._children, self._group = [], None

    def _begun(self) -> Group:
        if self._group is None:
            raise _LostError
        return self._group

    def _start(self) -> Group:
        """Children and the group that they are in; the folder in which they find each other is gone afterwards."""
        logs = private_folder(private_folder(self._folder) / "logs")
        short = tempfile.gettempdir() if len(tempfile.gettempdir()) < LONGEST else "/tmp"  # noqa: S108 - made 0700
        meeting = Path(tempfile.mkdtemp(prefix="fed-diffmic-devices-", dir=short))
        try:
            for rank, name in enumerate(self.devices[1:], start=1):
                args = [name, str(meeting), str(rank), str(self.size)]
                log = logs / f"device-{rank}.log"
                self._children.append(start_child(MODULE, args, env=dict(os.environ), log=log, more=True))
            until = time.monotonic() + self._start_s
            while not all((meeting / f"ready-{rank}").exists() for rank in range(1, self.size)):
                if time.monotonic() > until or any(child.poll() is not None for child in self._children):
                    raise _LostError
                time.sleep(_LOOK_S)
            group: Group = _heard(Group, meeting, 0, self.size, self._wait_s)
            self._group = group
            return group
        finally:
            shutil.rmtree(meeting, ignore_errors=True)

    def _give_all(self, task: Task) -> None:
        for child in self._children:
            self._give(child, task)

    def _give(self, child: Child, task: Task) -> None:
        """Write a task into a child's pipe, waiting for it to read no longer than for anything else."""
        assert child.stdin is not None  # it was left open
        left, pipe = memoryview(task.to_bytes()), child.stdin.fileno()
        os.set_blocking(pipe, False)
        ready = select.poll()
        ready.register(pipe, select.POLLOUT)
        until = time.monotonic() + self._wait_s
        while left:
            if not ready.poll(1000 * max(0.0, until - time.monotonic())):
                raise _LostError
            try:
                left = left[os.write(pipe, left) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise _LostError from error

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        """Whatever ends the block early ends the children: they would wait for what never comes."""
        try:
            yield
        except _LostError as error:
            raise self._lost() from error
        except BaseException:
            self.close()
            raise

    def _lost(self) -> MachineError:
        """Which device it was, in words; all children are ended."""
        until = time.monotonic() + _GONE_S
        while not (gone := self._gone()) and time.monotonic() < until:
            time.sleep(_LOOK_S)
        found = [f"{self.devices[rank]} ended (code {code})" for rank, code in gone]
        words = "; ".join(found) or f"one of {', '.join(self.devices[1:])} did not answer in time"
        logs = ", ".join(f"logs/device-{rank}.log" for rank, _ in gone) or "logs/device-N.log"
        self.close()
        return MachineError(
            f"site.device: a process that computes for this site on {words}",
            f"{logs} in site.folder says what failed. Free that device's memory, or name fewer devices in site.device; "
            "the next local update starts them again.",
        )

    def _gone(self) -> list[tuple[int, int]]:
        """Ranks and exit codes of children that are over."""
        codes = [(rank, child.poll()) for rank, child in enumerate(self._children, start=1)]
        return [(rank, code) for rank, code in codes if code is not None]


def _heard(what: Any, *args: Any) -> Any:
    """Something that needs the other processes.

    Raises:
        _LostError: one of them does not take part.
    """
    try:
        return what(*args)
    except OSError as error:
        raise _LostError from error
