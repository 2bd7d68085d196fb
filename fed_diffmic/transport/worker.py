"""The loop of a site's worker: take tasks from its own SuperNode, run the installed ClientApp, hand replies back.

Whatever bundle a coordinator names, only the ClientApp given here runs; neither the coordinator's run configuration
nor state carried from task to task reaches it. What goes wrong leaves as one of our codes and its fixed sentence.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.interceptors.http.superexec_auth import SuperExecAuthHttpInterceptor
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.retry.retry_invoker import exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from fed_diffmic.exchange.failures import failure_code
from fed_diffmic.transport.messages import failure_message
from fed_diffmic.transport.pauses import Pauses

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
SHORTEST_S, POLL_S = 0.04, 0.2
LOST_S = 1.0
RETRY_S = 5.0  # a SuperNode on this machine that does not answer is gone; the next one gives the task again

logger = logging.getLogger(__name__)


class App(Protocol):
    """Flower's ClientApp."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""


def serve(
    app: App,
    *,
    port: Callable[[], int],
    secret: bytes,
    node_config: Mapping[str, Any],
    stop: threading.Event,
    beat_s: float = 10.0,
    state: Callable[[str], None] = lambda _: None,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Work until ``stop`` is set.

    Args:
        app: the installed ClientApp.
        port: where this site's SuperNode listens on loopback now; 0: not known yet.
        secret: shared with the SuperNode.
        node_config: what the app is told about this site.
        stop: ends the loop, after the task in hand.
        beat_s: interval at which the SuperNode is told that a task's worker lives.
        state: told ``ready``, ``lost``, ``working`` and ``replying``.
        after: is called after each task.
    """
    pauses = Pauses(SHORTEST_S, POLL_S)
    with _Tasks(port, secret) as tasks:
        while not stop.is_set():
            asked = time.monotonic()
            try:
                token = tasks.next()
            except (httpx.HTTPError, OSError, ValueError):
                state("lost")
                stop.wait(LOST_S)
                continue
            if token is None:
                state("ready")
                pauses.waited(time.monotonic() - asked)  # the SuperNode holds a question for which it has no task yet
                stop.wait(pauses.next())
                continue
            try:
                _do(app, tasks, token, node_config, beat_s, state)
                pauses.came()
            except Exception as error:  # the SuperNode is gone or gave the task to another: its next start asks again
                logger.warning("a task could not be taken or handed back: %s", type(error).__name__)
                stop.wait(LOST_S)
            after()


class _Tasks:
    """The question for work, to whatever port the SuperNode has now."""

    def __init__(self, port: Callable[[], int], secret: bytes) -> None:
        self._port, self._secret = port, secret
        self._known = 0
        self._client: RuntimeHttpClient | None = None

    def __enter__(self) -> _Tasks:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    @property
    def address(self) -> str:
        """Of the SuperNode."""
        return f"127.0.0.1:{self._known}"

    def next(self) -> str | None:
        """The token of a task, or none if there is nothing to do."""
        port = self._port()
        if not port:
            raise OSError("no SuperNode yet")
        if port != self._known or self._client is None:
            if self._client is not None:
                self._client.close()
            self._known = port
            signer = SuperExecAuthHttpInterceptor(master_secret=self._secret, protected_methods=[ACQUIRE])
            self._client = RuntimeHttpClient.from_server_address(
                self.address, True, None, [RuntimeVersionHttpInterceptor(component_name="SuperExec"), signer]
            )
        answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        return answer.token or None


def _do(
    app: App,
    tasks: _Tasks,
    token: str,
    node_config: Mapping[str, Any],
    beat_s: float,
    state: Callable[[str], None],
) -> None:
    client = RuntimeHttpClient.from_server_address(
        tasks.address,
        True,
        None,
        [RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), RuntimeTokenHttpInterceptor(token)],
        retry_invoker=_patience(),
    )
    over = threading.Event()
    beats = threading.Thread(target=_beat, args=(client, over, beat_s), daemon=True, name="task heartbeat")
    beats.start()
    try:
        message, context, _run, _bundle = pull_task_input(client)
        state("working")
        context.node_config = dict(node_config)
        context.run_config = {}
        context.state = RecordDict()
        reply = answer(app, message, context)
        state("replying")
        push_message(client, reply, context)
        push_task_output(client, None, SubStatus.COMPLETED, "")
    finally:
        over.set()
        beats.join(timeout=RETRY_S)
        client.close()


def answer(app: App, message: Message, context: Context) -> Message:
    """The app's reply; whatever it raises (a kind of message that it does not know) is a failure's code."""
    try:
        return app(message, context)
    except Exception as error:
        logger.error("a request was not answered by the app: %s", type(error).__name__)
        return failure_message(failure_code(error), message)


def _beat(client: RuntimeHttpClient, over: threading.Event, beat_s: float) -> None:
    while not over.wait(beat_s):
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except (httpx.HTTPError, ValueError, RuntimeError) as error:
            logger.debug("heartbeat of a task: %s", type(error).__name__)


def _patience() -> RetryInvoker:
    """Another try where the loopback connection failed; never where the SuperNode answered."""
    return RetryInvoker(
        lambda: exponential(base_delay=0.2, max_delay=2),
        httpx.TransportError,
        max_tries=None,
        max_time=RETRY_S,
    )
