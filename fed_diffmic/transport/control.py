"""The coordinator's side of the SuperLink's control interface: nodes and runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from fed_diffmic.provision.keys import parse_public, public_pem
from fed_diffmic.transport.superlink import TOKEN_HEADER, LinkLostError, RunningLink

# What a SuperNode is sent as "the app". Our sites run the ClientApp that they have installed, whatever arrives; the
# bundle holds a name and nothing of the run's configuration.
_BUNDLE = b"""[project]
name = "fed-diffmic-run"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "fed-diffmic"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
[tool.flwr.app.config]
"""


class LoopbackToken:
    """Adds the private listener's token to each request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the header before sending the request."""
        context.request.headers[TOKEN_HEADER] = self._token
        return call_next(context)


@dataclass(frozen=True)
class NodeState:
    """A node as the SuperLink knows it.

    Attributes:
        node: Flower's number.
        key: its public key (PEM).
        status: ``registered``, ``online``, ``offline`` or ``unregistered``.
        online_until: Unix time until which its last heartbeat counts.
    """

    node: int
    key: bytes
    status: str
    online_until: float


class Control:
    """Registers nodes and submits runs on a SuperLink of ours.

    Every method raises :class:`LinkLostError` if it does not answer.
    """

    def __init__(self, link: RunningLink) -> None:
        interceptors: Any = [LoopbackToken(link.settings.token()), RuntimeVersionHttpInterceptor("flwr CLI")]
        self._client = ControlHttpClient.from_server_address(
            link.address, not link.settings.secure, link.ca, interceptors
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def nodes(self) -> list[NodeState]:
        """Every node that is registered."""
        answer = self._call(self._client.ListNodes, ListNodesRequest())
        return [NodeState(n.node_id, n.public_key, n.status, n.online_until) for n in answer.nodes_info]

    def register(self, public_keys: Sequence[str]) -> dict[str, int]:
        """Admit nodes by their public keys (OpenSSH text); those that are admitted already keep their number.

        Nodes are never unregistered: Flower would not take their key again, and a site that is put back on the
        roster must be able to return. Whom the roster does not name, the guard refuses.

        Returns:
            Flower's node number of each key.
        """
        known = {node.key: node.node for node in self.nodes() if node.status != "unregistered"}
        numbers = {}
        for text in public_keys:
            pem = public_pem(parse_public(text))
            if pem not in known:
                known[pem] = self._call(self._client.RegisterNode, RegisterNodeRequest(public_key=pem)).node_id
            numbers[text] = known[pem]
        return numbers

    def submit(self) -> int:
        """A new Flower run; its number."""
        content, _ = build_fab_from_files({"pyproject.toml": _BUNDLE})
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        return int(self._call(self._client.StartRun, StartRunRequest(fab=fab_to_proto(fab), federation="")).run_id)

    def stop_runs(self) -> int:
        """Stop every run that is not over (what an earlier coordinator left behind); how many."""
        runs = self._call(self._client.ListRuns, ListRunsRequest(limit=1000)).run_dict
        open_runs = [number for number, run in runs.items() if run.status.status != "finished"]
        for number in open_runs:
            self._call(self._client.StopRun, StopRunRequest(run_id=number))
        return len(open_runs)

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request)
        except httpx.HTTPError as error:
            raise LinkLostError(f"the SuperLink's control interface: {type(error).__name__}: {error}") from error
