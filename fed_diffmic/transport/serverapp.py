"""Run a ServerApp inside our own process, on our SuperLink, as Flower's own task process would."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import httpx
from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, message_from_proto, message_to_proto, run_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.serverapp import ServerApp
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import InflatableObject, get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from fed_diffmic.transport.assembly import MalformedError, content_of, push_few
from fed_diffmic.transport.control import LoopbackToken
from fed_diffmic.transport.superlink import LinkLostError, RunningLink

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
ACQUIRE_S = 60.0
RETRY_S = 60.0
_RETRIED = (502, 503, 504)


def run_server_app(app: ServerApp, link: RunningLink, run_id: int, run_config: Mapping[str, Any]) -> None:
    """Take the run's task, run ``app`` on it here, and say how it ended.

    Args:
        app: runs in this thread.
        link: our SuperLink.
        run_id: of :meth:`fed_diffmic.transport.control.Control.submit`.
        run_config: what the app finds in its context; it never reaches the SuperLink or a site.

    Raises:
        LinkLostError: the SuperLink ended, or does not know the task any more.
        Exception: whatever the app raised.
    """
    token = _acquire(link, run_id)
    grid = OurGrid(link, token)
    beat = _Heartbeat(link, token)
    status, details = SubStatus.FAILED, "interrupted"
    try:
        beat.start()
        given = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        context, run = context_from_proto(given.context), run_from_proto(given.run)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = given.task_id, run.run_id, context.node_id
        grid.set_run(run)
        context.run_config = dict(run_config)
        app(grid=grid, context=context)
        status, details = SubStatus.COMPLETED, ""
    except (httpx.HTTPError, RunNotRunningException) as error:
        raise LinkLostError(f"the run on the SuperLink is lost: {type(error).__name__}: {error}") from error
    except Exception as error:
        details = type(error).__name__
        raise
    finally:
        grid.finish(status, details)
        beat.stop()
        grid.close()


class OurGrid(HttpGrid):
    """Flower's grid on our private listener, which gives up when the SuperLink is gone.

    Flower's own retries have no bound, and on 401 it sends this process a SIGINT. Messages are pushed and pulled
    by :mod:`fed_diffmic.transport.assembly`: one reply after the other, and nothing twice in memory. Whom a reply is
    from, and to what, is what the SuperLink took it for, which knows the node that pushed it.
    """

    def __init__(self, link: RunningLink, token: str) -> None:
        super().__init__(link.address, not link.settings.secure, link.ca, token=token)
        self._link = link
        self._retry_invoker = _retries(link.alive, RETRY_S)

    def _connect(self) -> None:
        self._client = _client(self._link, self._token, self._retry_invoker)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies that are there, each brought when it is asked for; one that cannot be read has empty content."""
        found = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            yield self._pulled(proto, tree)

    def _pulled(self, proto: Any, tree: ObjectTree) -> Message:
        reply = message_from_proto(proto)
        metadata, client, run_id = reply.metadata, self._runtime_client, self.run.run_id
        if not reply.has_error():
            pull = make_pull_object_fn_protobuf(client.PullObject, self.node, run_id)
            try:
                reply = make_message(metadata, content_of(tree, pull, self._link.settings.reply_bytes))
            except MalformedError:
                reply = make_message(metadata, RecordDict())
            except ObjectPullError:
                reason = "the SuperLink no longer has the reply's content"
                return make_message(metadata, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))
        confirmed = ConfirmMessageReceivedRequest(node=self.node, run_id=run_id, message_object_id=metadata.message_id)
        client.ConfirmMessageReceived(confirmed)
        return reply

    def _try_push_messages(self, run_id: int, messages: Iterable[Message]) -> list[str]:
        objects: dict[str, InflatableObject] = {}
        protos, trees = [], []
        for message in messages:
            protos.append(message_to_proto(remove_content_from_message(message)))
            objects |= get_all_nested_objects(message)
            trees.append(get_object_tree(message))
        client = self._runtime_client
        answer = client.PushMessages(PushAppMessagesRequest(messages_list=protos, message_object_trees=trees))
        push = make_push_object_fn_protobuf(client.PushObject, self.node, run_id, answer.session_id)
        push_few(objects, answer.objects_to_push, push)
        return list(answer.message_ids)

    def finish(self, status: str, details: str) -> None:
        """Tell the SuperLink how the task ended, if it is there to hear it."""
        if not self._link.alive():
            return
        self._retry_invoker.max_time = 5.0
        try:
            self._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
        except (httpx.HTTPError, RunNotRunningException):
            self._disconnect()  # the run is not known there any more: there is nobody to tell


class _Heartbeat:
    """Says that the task is alive, often enough for the SuperLink's patience of two intervals."""

    def __init__(self, link: RunningLink, token: str) -> None:
        self._client = _client(link, token, None)
        self._pause = link.settings.heartbeat_s * 0.4
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="task heartbeat")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(timeout=10)
        self._client.close()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                known = self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
            except httpx.HTTPError:
                known = True  # not reached; the grid notices what that means
            if not known:
                return
            self._over.wait(self._pause)


def _acquire(link: RunningLink, run_id: int) -> str:
    """Take the task of our run; its token."""
    client = _client(link, None, _retries(link.alive, ACQUIRE_S))
    until = time.monotonic() + ACQUIRE_S
    try:
        while time.monotonic() < until:
            answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
            if answer.HasField("task") and answer.token and answer.task.run_id == run_id:
                return str(answer.token)
            time.sleep(0.05)
    except (httpx.HTTPError, RunNotRunningException) as error:
        raise LinkLostError(f"the run's task cannot be taken: {type(error).__name__}: {error}") from error
    finally:
        client.close()
    raise LinkLostError(f"the SuperLink gave no task for the run within {ACQUIRE_S:.0f} s")


def _client(link: RunningLink, token: str | None, retries: RetryInvoker | None) -> RuntimeHttpClient:
    interceptors: list[Any] = [
        LoopbackToken(link.settings.token()),
        RuntimeVersionHttpInterceptor(component_name="flwr-serverapp" if token else "SuperExec"),
    ]
    if token:
        interceptors.append(RuntimeTokenHttpInterceptor(token))
    else:
        secret = bytes.fromhex(link.settings.secret)
        interceptors.append(SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE}))
    return RuntimeHttpClient.from_server_address(
        link.address, not link.settings.secure, link.ca, interceptors, retry_invoker=retries
    )


def _retries(alive: Callable[[], bool], max_time: float) -> RetryInvoker:
    """Try again for as long as the SuperLink's process lives, at most ``max_time`` seconds."""

    def give_up(error: Exception) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code not in _RETRIED
        return not alive()

    return RetryInvoker(
        wait_gen_factory=lambda: exponential(base_delay=0.1, max_delay=2),
        recoverable_exceptions=(httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=max_time,
        should_giveup=give_up,
    )
