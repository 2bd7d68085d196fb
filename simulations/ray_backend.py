"""Virtual sites on Ray, through Flower's public simulation engine (``run.backend=ray``).

Ray brings parallel sites, GPUs shared between them and several machines. Node numbers are random
there and replies come in any order; the coordinator asks each node for its name and works in the
order of names, and a local update sets its own number of threads, so the weights are those of the
in-process grid, bit for bit. Ray's services listen on loopback only (:mod:`fed_diffmic.transport`).
"""

from __future__ import annotations

import importlib.util
import logging
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from client.site import Source
from fed_diffmic.errors import ConfigError, FedDiffmicError
from simulations.flower_app import VirtualClientApp
from simulations.sites import open_virtual_site


class InterruptedRunError(Exception):
    """Ctrl-C reached the coordinator's thread."""


def run_on_ray(
    server_app: ServerApp,
    node_configs: Sequence[Mapping[str, Any]],
    run_config: Mapping[str, Any],
    *,
    source: Source = open_virtual_site,
    cpus: int | None = None,
    cpus_per_site: int = 1,
    gpus_per_site: float = 0.0,
) -> None:
    """Run a ServerApp over virtual sites, each task in one of Ray's actors.

    Args:
        server_app: the coordinator's.
        node_configs: one mapping a virtual site.
        run_config: Flower's run configuration, for the coordinator and the sites.
        source: where the virtual sites' data come from (importable by the actors).
        cpus: processors that Ray may use; none: all of the machine.
        cpus_per_site: processors for one site's task.
        gpus_per_site: share of a GPU for one site's task.

    Raises:
        ConfigError: Ray is not installed.
        FedDiffmicError: what the ServerApp raised.
        KeyboardInterrupt: after Ctrl-C, once the tasks under way have ended.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("run.backend", "ray", "inprocess, or ray with the extra 'simulation' installed")
    stop = threading.Event()
    failures: list[BaseException] = []
    outer = ServerApp()

    @outer.main()
    def main(grid: Grid, context: Context) -> None:
        context.run_config = {**context.run_config, **run_config}
        try:
            server_app(grid=StoppableGrid(grid, stop), context=context)
        except (FedDiffmicError, InterruptedRunError) as error:
            failures.append(error)

    init: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    if cpus is not None:
        init["num_cpus"] = cpus
    with _interruptible(stop), _quiet():
        run_simulation(
            server_app=outer,
            client_app=VirtualClientApp(node_configs, run_config, source),
            num_supernodes=len(node_configs),
            backend_name="ray",
            backend_config={
                "init_args": init,
                "client_resources": {"num_cpus": cpus_per_site, "num_gpus": gpus_per_site},
            },
        )
    if stop.is_set():
        raise KeyboardInterrupt
    if failures:
        raise failures[0]


class StoppableGrid(Grid):
    """A grid that raises in the coordinator's thread once the main thread was asked to stop."""

    def __init__(self, grid: Grid, stop: threading.Event) -> None:
        self._grid = grid
        self._stop = stop

    def set_run(self, run: Any) -> None:
        """As the grid behind does."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """As the grid behind does."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the grid behind does."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As the grid behind does."""
        self._check()
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the grid behind does."""
        self._check()
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the grid behind does."""
        self._check()
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As the grid behind does."""
        self._check()
        return self._grid.send_and_receive(messages, timeout=timeout)

    def _check(self) -> None:
        if self._stop.is_set():
            raise InterruptedRunError


@contextmanager
def _interruptible(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C sets ``stop``: the engine itself would wait for the coordinator's thread without a bound."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower's advice to use its command line instead is not for our users."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
