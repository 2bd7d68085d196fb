"""A site that speaks Flower's fleet protocol itself, with its enrolled key, and says whatever it likes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fed_diffmic.transport.control import Control
from fed_diffmic.transport.identity import ensure_task_identity
from fed_diffmic.transport.refusals import refusal_of
from fed_diffmic.transport.serverapp import run_server_app
from fed_diffmic.transport.superlink import RunningLink

BOUND_S = 60.0


def wait(what: Callable[[], Any], bound_s: float = BOUND_S) -> Any:
    """The first true value."""
    until = time.monotonic() + bound_s
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {bound_s} s")


class RawNode:
    """A connection with a site's key."""

    def __init__(self, link: RunningLink, key: Path) -> None:
        private: Any = load_ssh_private_key(key.read_bytes(), None)
        self.public = public_key_to_bytes(private.public_key())
        self.client = FleetHttpClient.from_server_address(
            f"localhost:{link.public_port}", False, link.ca,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(private, private.public_key()),
            ],
        )  # fmt: skip
        answer = self.client.ActivateNode(ActivateNodeRequest(public_key=self.public, heartbeat_interval=60.0))
        self.node = Node(node_id=answer.node_id)

    @property
    def id(self) -> int:
        return int(self.node.node_id)

    def pull(self) -> tuple[Message, ObjectTree]:
        """The next request, waited for."""

        def next_one() -> Any:
            found = self.client.PullMessages(PullMessagesRequest(node=self.node))
            return found if found.messages_list else None

        found = wait(next_one)
        return message_from_proto(found.messages_list[0]), found.message_object_trees[0]

    def push(self, message: Message, tree: ObjectTree | None = None, **changed: Any) -> PushMessagesResponse:
        """Announce a message whose metadata are changed first."""
        _, named = named_message(message, **changed)
        if tree is not None:
            tree.object_id = named.metadata.message_id
        return self.client.PushMessages(
            PushMessagesRequest(
                node=self.node,
                messages_list=[message_to_proto(remove_content_from_message(named))],
                message_object_trees=[tree or get_object_tree(named)],
                clientapp_runtime_list=[0.0],
            )
        )

    def push_object(self, run_id: int, session: str, object_id: str, content: bytes) -> bool:
        request = PushObjectRequest(
            node=self.node, run_id=run_id, session_id=session, object_id=object_id, object_content=content
        )
        return bool(self.client.PushObject(request).stored)

    def push_all(self, message: Message, **changed: Any) -> list[bool]:
        """Announce a message and deliver its content."""
        contents, named = named_message(message, **changed)
        answer = self.push(message, **changed)
        run_id = named.metadata.run_id
        return [self.push_object(run_id, answer.session_id, i, contents[i]) for i in answer.objects_to_push]

    def pull_object(self, run_id: int, object_id: str) -> PullObjectResponse:
        return self.client.PullObject(PullObjectRequest(node=self.node, run_id=run_id, object_id=object_id))

    def fetch(self, run_id: int, object_id: str) -> bytes:
        """An object, once the coordinator has delivered it."""
        return bytes(wait(lambda: self.pull_object(run_id, object_id).object_content))

    def confirm(self, run_id: int, message_id: str) -> None:
        self.client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.node, run_id=run_id, message_object_id=message_id)
        )

    def take(self) -> Message:
        """The next request, its content fetched and confirmed, as a SuperNode does."""
        message, tree = self.pull()
        for object_id in ids(tree):
            self.fetch(message.metadata.run_id, object_id)
        self.confirm(message.metadata.run_id, message.metadata.message_id)
        return message


def ids(tree: ObjectTree) -> list[str]:
    """Every object of a tree."""
    return [tree.object_id, *(name for child in tree.children for name in ids(child))]


def named_message(message: Message, **changed: Any) -> tuple[dict[str, bytes], Message]:
    """The message with its metadata changed and its name renewed, and its objects."""
    metadata = message.metadata.__dict__
    for name, value in changed.items():
        metadata[f"_{name}"] = value
    metadata["_message_id"] = ""
    metadata["_message_id"] = message.object_id
    return {name: part.deflate() for name, part in get_all_nested_objects(message).items()}, message


def content(size: int = 10, fill: int = 0) -> RecordDict:
    """Content of about ``size`` bytes that no other has."""
    return RecordDict({"said": ConfigRecord({"data": bytes([fill]) * size, "at": time.time_ns()})})


def request_of(node: int, size: int = 10) -> Message:
    """As the coordinator would write it."""
    ensure_task_identity()
    return Message(content(size), dst_node_id=node, message_type="train", ttl=600.0)


def refusal(error: httpx.HTTPStatusError) -> str:
    """Status and what our SuperLink means."""
    found = refusal_of(error.response.text)
    return f"{error.response.status_code} {found.code if found else error.response.text}"


class Asking:
    """A ServerApp in a thread that asks what it is told to, of whom it is told."""

    def __init__(self, link: RunningLink) -> None:
        self._todo: list[tuple[int, RecordDict, float]] = []
        self.asked: list[str] = []
        self.replies: list[Message] = []
        self.run_id = 0
        self._over = threading.Event()
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            while not self._over.is_set():
                while self._todo:
                    node, record, ttl = self._todo.pop(0)
                    message = Message(record, dst_node_id=node, message_type="train", ttl=ttl)
                    self.asked += list(grid.push_messages([message]))
                if self.asked:
                    found = list(grid.pull_messages(self.asked))
                    over = {message.metadata.reply_to_message_id for message in found}
                    self.asked = [name for name in self.asked if name not in over]
                    self.replies += found
                time.sleep(0.05)

        control = Control(link)
        control.stop_runs()
        self.run_id = control.submit()
        control.close()
        self.failure: BaseException | None = None

        def run() -> None:
            try:
                run_server_app(app, link, self.run_id, {})
            except BaseException as error:
                self.failure = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def ask(self, node: int, size: int = 10, ttl: float = 600.0) -> None:
        self._todo.append((node, content(size), ttl))
        wait(lambda: not self._todo)

    def answered(self, count: int = 1) -> list[Message]:
        wait(lambda: len(self.replies) >= count or self.failure)
        assert self.failure is None, self.failure
        return self.replies

    def forget(self) -> None:
        """Wait for no reply any more."""
        self.asked = []

    def end(self) -> None:
        self._over.set()
        self._thread.join(BOUND_S)
