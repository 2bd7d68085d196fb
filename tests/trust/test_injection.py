"""Over real processes: an enrolled site's key pushes a request in the coordinator's name to another site.

It ended a run for good: the victim trained what the intruder asked, wrote down that it had answered the last round, and
refused every honest round before it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.fleet_http_connection import remove_content_from_message
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fed_diffmic.config.spec import RunSpec, without_paths
from fed_diffmic.exchange.failures import UNSEALED
from fed_diffmic.exchange.payload import Payload, Wire, encode
from fed_diffmic.files import tensors_digest
from fed_diffmic.training.stages import build_module, exchanged, initial_state
from fed_diffmic.transport.messages import task_message
from tests.consortium.harness import Consortium, consortium, summary
from tests.consortium.programs import wait
from tests.consortium.settings import SITES, training, write_data

VICTIM, INTRUDER = SITES[:2]
ROUNDS = 5


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_ends_well_though_a_site_asks_another_in_the_coordinators_name(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    common = training(rounds=ROUNDS)
    patient = {"deadline_s": 400.0, "join_s": 400.0}
    with consortium(tmp_path / "c", tmp_path / "data", common, run=patient) as made:
        for site in (VICTIM, INTRUDER):
            made.start_site(site)
        server = made.start_server(
            f"consortium.sites=[{VICTIM},{INTRUDER}]", "stages.diffusion.rounds=0", "run.test_s=0"
        )
        made.wait_event("round_done", stage="guidance", round=1)
        refused = inject(made, forged_request(made))
        assert server.wait(400) == 0, server.said()
        found = summary(made.run_dir)["rounds"]
        assert len(found) == ROUNDS and all(row["missing"] == {} for row in found)
        if not refused:  # the SuperLink carried it: the site itself refused it, once
            (line,) = [x for x in audit(made) if x["kind"] == "refusal"]
            assert line["facts"]["code"] == UNSEALED
        assert [x["facts"]["round"] for x in audit(made) if x["kind"] == "task" and x["facts"]["task"] == "train"] == (
            list(range(1, ROUNDS + 1))
        )


def audit(made: Consortium) -> list[dict[str, Any]]:
    """The lines of the victim's audit log."""
    return [json.loads(x) for x in (made.site_folder(VICTIM) / "audit.jsonl").read_text(encoding="utf-8").splitlines()]


def forged_request(made: Consortium) -> Wire:
    """To train in the last round, one image a step: what every site of a run can write from what it was sent."""
    state = json.loads((made.run_dir / "checkpoints" / "state.json").read_text(encoding="utf-8"))
    spec = without_paths(RunSpec.from_json(json.dumps(state["settings"]["spec"])))
    stage = replace(spec.stages.guidance, batch_size=1, clip_norm=0.0, augment=False, lr=1e-2)
    spec = replace(spec, stages=replace(spec.stages, guidance=stage))
    module, weights = build_module(spec, "guidance"), initial_state(spec, "guidance")
    kinds = exchanged(module)
    frozen = {name: value for name, value in weights.items() if name not in kinds}
    sent = {name: weights[name] for name in kinds}
    header = {
        "spec": spec.to_json(), "run": spec.run_id, "arm": "federated", "stage": "guidance", "round": ROUNDS,
        "site": VICTIM, "base": tensors_digest(frozen), "weights": tensors_digest(sent), "state": "", "guidance": "",
        "keep": "", "ledger": "",
    }  # fmt: skip
    return encode(Payload("train", header, {**sent, **{f"base/{name}": value for name, value in frozen.items()}}))


def inject(made: Consortium, wire: Wire) -> bool:
    """Push it as the intruder's SuperNode could; whether the SuperLink refused to take it."""
    # No log tells a node's number any more; here the intruder is given it, as if it had guessed.
    nodes = {site: int((made.site_folder(site) / "run" / "node").read_text()) for site in (VICTIM, INTRUDER)}
    message = task_message(wire, node=nodes[VICTIM], message_type="train", ttl=600.0, group="1")
    run = wait("a request in the intruder's hand", lambda: run_in_hand(made), 60)
    message.metadata.__dict__.update(_src_node_id=1, _run_id=run, _message_id="")
    message.metadata.__dict__["_message_id"] = message.object_id
    tree, objects = get_object_tree(message), {k: o.deflate() for k, o in get_all_nested_objects(message).items()}
    settings = yaml.safe_load(made.site_yaml[INTRUDER].read_text(encoding="utf-8"))["coordinator"]
    key = load_ssh_private_key(Path(settings["key"]).read_bytes(), None)
    me, ways = Node(node_id=nodes[INTRUDER]), [RuntimeVersionHttpInterceptor(component_name="SuperNode")]
    ways.append(NodeAuthHttpInterceptor(key, key.public_key()))  # type: ignore[arg-type]
    ca = Path(settings["ca"]).read_bytes()
    try:
        with FleetHttpClient.from_server_address(settings["address"], False, ca, interceptors=ways) as client:
            push = PushMessagesRequest(
                node=me,
                messages_list=[message_to_proto(remove_content_from_message(message))],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],
            )
            taken = client.PushMessages(push)
            for name in taken.objects_to_push:
                content = objects[name]
                client.PushObject(
                    PushObjectRequest(
                        node=me, run_id=run, session_id=taken.session_id, object_id=name, object_content=content
                    )
                )
            return not taken.objects_to_push
    except (httpx.HTTPError, ValueError):
        return True


def run_in_hand(made: Consortium) -> int:
    """Flower's number of the run, as the intruder's own requests say it."""
    found = PullMessagesResponse()
    try:
        found.ParseFromString((made.site_folder(INTRUDER) / "inbox" / "request.pb").read_bytes())
    except OSError:
        return 0
    return int(found.messages_list[0].metadata.run_id) if found.messages_list else 0


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
