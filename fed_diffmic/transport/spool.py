"""The request that a site has in hand, on its disk, until its reply has been delivered.

Flower's SuperNode keeps what it received in memory only and tells the SuperLink that it has it: killed, it has
lost the request for good, and the coordinator waits for the reply until the deadline. Here the request (its
message and the objects of its content, each named by the SHA-256 of what it holds) stays in a folder until the
reply is delivered, so that a new SuperNode goes on where the old one ended. A worker that was killed gets the
same request again. The reply is kept here too, from the moment at which it is whole: it is not computed again, and
it is delivered as the very same message, which is the only one that a SuperLink takes once it has a part of it.

A site does one task at a time, so there is at most one request here. The reply derives from patients' data: the
folder is 0700 and is empty again once the reply is delivered.
"""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_object_id, is_valid_sha256_hash, iterate_object_tree

from fed_diffmic.files import atomic_write

REQUEST, REPLY, FACTS, OBJECTS = "request.pb", "reply.pb", "facts.json", "objects"
ATTEMPTS, RECEIVED, DELIVERED = "attempts", "received", "delivered"


class Spool:
    """A folder that holds the request in hand.

    Args:
        folder: made 0700.

    Attributes:
        lock: held by who must find what it found before still there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        (folder / OBJECTS).mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)

    def begin(self, request: PullMessagesResponse) -> None:
        """Keep a request that was just received (its content follows object by object)."""
        with self.lock:
            self.drop()
            (self.folder / OBJECTS).mkdir(mode=0o700, exist_ok=True)
            atomic_write(self.folder / REQUEST, request.SerializeToString(), 0o600)

    def request(self) -> PullMessagesResponse | None:
        """The request in hand, or none; one that cannot be read counts as none and is removed."""
        with self.lock:
            try:
                data = (self.folder / REQUEST).read_bytes()
            except FileNotFoundError:
                return None
            except OSError:
                self.drop()
                return None
            found = PullMessagesResponse()
            try:
                found.ParseFromString(data)
            except Exception:  # protobuf raises its own type
                self.drop()
                return None
            if len(found.messages_list) != 1 or len(found.message_object_trees) != 1:
                self.drop()
                return None
            return found

    def keep_reply(self, reply: PushAppMessagesRequest) -> None:
        """The reply is whole (its objects were put here before): from now on it is delivered, not computed."""
        with self.lock:
            atomic_write(self.folder / REPLY, reply.SerializeToString(), 0o600)

    def reply(self) -> PushAppMessagesRequest | None:
        """The kept reply, or none; one of which a part is lost counts as none."""
        with self.lock:
            found = PushAppMessagesRequest()
            try:
                found.ParseFromString((self.folder / REPLY).read_bytes())
                tree = found.message_object_trees[0]
            except FileNotFoundError:
                return None
            except Exception:  # protobuf raises its own type
                (self.folder / REPLY).unlink(missing_ok=True)
                return None
            if not all(self._has(node.object_id) for node in iterate_object_tree(tree)):
                (self.folder / REPLY).unlink(missing_ok=True)
                return None
            return found

    def has_reply(self) -> bool:
        """Whether a reply is kept, without reading it."""
        return (self.folder / REPLY).exists()

    def drop_reply(self) -> None:
        """Forget what was computed for the request, whole or in part, and how often it was tried: not the request."""
        with self.lock:
            request = self.request()
            (self.folder / REPLY).unlink(missing_ok=True)
            (self.folder / FACTS).unlink(missing_ok=True)
            trees = [] if request is None else request.message_object_trees
            own = {node.object_id for tree in trees for node in iterate_object_tree(tree)}
            for path in (self.folder / OBJECTS).glob("*"):
                if path.name not in own:
                    path.unlink(missing_ok=True)

    def put(self, object_id: str, content: bytes) -> None:
        """Keep one object of the content."""
        if is_valid_sha256_hash(object_id):
            # Not flushed to the disk: a file torn by a power cut does not hold what its name says and is fetched again.
            path = self.folder / OBJECTS / object_id
            part = path.with_suffix(".part")
            part.write_bytes(content)
            part.replace(path)

    def get(self, object_id: str) -> bytes | None:
        """One object, whole, or none."""
        if not is_valid_sha256_hash(object_id):
            return None
        try:
            content = (self.folder / OBJECTS / object_id).read_bytes()
        except OSError:
            return None
        return content if get_object_id(content) == object_id else None

    @property
    def attempts(self) -> int:
        """How often the request in hand was given to a worker."""
        return self.counted(ATTEMPTS)

    def attempt(self) -> int:
        """Count one more; returns how many there were with it."""
        return self.count(ATTEMPTS)

    def counted(self, what: str) -> int:
        """How often something happened with the request in hand, over every start of this process."""
        value = self._facts().get(what, 0)
        return value if isinstance(value, int) else 0

    def count(self, what: str, more: int = 1) -> int:
        """Count it; returns how often it happened with this time."""
        with self.lock:
            facts = self._facts()
            facts[what] = self.counted(what) + more
            atomic_write(self.folder / FACTS, json.dumps(facts).encode(), 0o600)
            return facts[what]

    def drop(self) -> None:
        """The reply is delivered, or nobody wants it: forget the request."""
        with self.lock:
            (self.folder / REQUEST).unlink(missing_ok=True)
            (self.folder / REPLY).unlink(missing_ok=True)
            (self.folder / FACTS).unlink(missing_ok=True)
            shutil.rmtree(self.folder / OBJECTS, ignore_errors=True)

    def _has(self, object_id: str) -> bool:
        return is_valid_sha256_hash(object_id) and (self.folder / OBJECTS / object_id).exists()

    def _facts(self) -> dict[str, int]:
        try:
            value = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}
