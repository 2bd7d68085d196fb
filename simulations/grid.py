"""A Flower grid inside this process: each message runs the ClientApp here, one after another.

Deterministic and without processes, threads or a network. A message waits until its reply is asked
for, so the coordinator hears of each site as it ends and can stop between two.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fed_diffmic.exchange.failures import UNEXPECTED
from fed_diffmic.transport.identity import ensure_task_identity, set_message_id
from fed_diffmic.transport.messages import failure_message

logger = logging.getLogger(__name__)


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    node_configs: Sequence[Mapping[str, Any]],
    run_config: Mapping[str, Any],
) -> None:
    """Run a ServerApp over virtual sites in this process; what it raises comes out as it is.

    Args:
        server_app: the coordinator's.
        client_app: what each virtual site runs.
        node_configs: one mapping a virtual site.
        run_config: Flower's run configuration, for the coordinator and the sites.
    """
    grid = InProcessGrid(client_app, node_configs, run_config)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config))
    server_app(grid=grid, context=context)


class InProcessGrid(Grid):
    """A grid of virtual nodes, numbered from 1 in the order given.

    Args:
        client_app: what each node runs.
        node_configs: one mapping a node, as Flower's ``node_config``.
        run_config: Flower's run configuration, the same for all.
    """

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: Sequence[Mapping[str, Any]],
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        ensure_task_identity()
        self._client_app = client_app
        self._contexts = {
            node: Context(
                run_id=1, node_id=node, node_config=dict(config), state=RecordDict(), run_config=dict(run_config or {})
            )
            for node, config in enumerate(node_configs, start=1)
        }
        self._waiting: dict[str, Message] = {}
        self._numbers = itertools.count(1)

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Any:
        """Flower's record of a run; there is none here."""
        return None

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As ``flwr.app.Message`` does."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, always there."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; each runs when its reply is pulled. Unknown nodes get none."""
        ids = []
        for message in messages:
            if message.metadata.dst_node_id in self._contexts:
                message_id = str(next(self._numbers))
                set_message_id(message, message_id)
                self._waiting[message_id] = message
                ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the first of these messages that waits, and return its reply."""
        for message_id in message_ids:
            message = self._waiting.pop(message_id, None)
            if message is not None:
                return [self._run(message)]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull; no message is started after ``timeout`` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        for message_id in self.push_messages(messages):
            if until is not None and time.monotonic() >= until:
                self._waiting.pop(message_id, None)
                continue
            replies.extend(self.pull_messages([message_id]))
        return replies

    def _run(self, message: Message) -> Message:
        """The node's reply; an exception out of the app itself becomes a code, never its text."""
        context = self._contexts[message.metadata.dst_node_id]
        try:
            reply = self._client_app(message=message, context=context)
        except Exception as error:
            logger.error("a virtual site's app raised %s", type(error).__name__)
            reply = failure_message(UNEXPECTED, message)
        set_message_id(reply, f"reply-{message.metadata.message_id}")
        return reply
