"""What Flower keeps outside its public API and a grid of our own needs.

``flwr.app.Message`` reads the identity of the running task from a process-wide holder, and a
message's identifier is set by whoever carries it. Both are internal to Flower and touched here only.
"""

from __future__ import annotations

from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity


def ensure_task_identity() -> None:
    """Give this process an identity if Flower has not: without one, no message can be built."""
    for name in ("task_id", "run_id", "node_id"):
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:
            setattr(TaskIdentity, name, 1)


def set_message_id(message: Message, message_id: str) -> None:
    """Name a message, as a SuperLink does when it takes one."""
    message.metadata.__dict__["_message_id"] = message_id
