"""The work of ``benchmarks.peers`` in stock Flower's simulation: its FedAvg, and virtual clients in Ray's actors.

python -m benchmarks.peers_flower SITES DRAWN ROUNDS OUT

Run by ``python -m benchmarks.peers``, with the Python that its ``--flower-python`` names. After each round as many
clients judge as there are judges, drawn by FedAvg, on ten images each.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers_work import IMAGES, JUDGED, JUDGES, Clock, images_of, network, tell, train

client_app = ClientApp()


def model_of(message: Message) -> Any:
    """The CNN with the weights that came."""
    torch.set_num_threads(1)
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


@client_app.train()
def fit(message: Message, context: Context) -> Message:
    """One local update."""
    model = model_of(message)
    train(model, int(context.node_config["partition-id"]), int(message.content["config"]["server-round"]))
    record = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": IMAGES})}
    return Message(RecordDict(record), reply_to=message)


@client_app.evaluate()
@torch.no_grad()
def judge(message: Message, context: Context) -> Message:
    """Loss and accuracy on ten images."""
    scores_of = model_of(message)
    images, labels = images_of(int(context.node_config["partition-id"]), JUDGED)
    scores = scores_of(images)
    found = {
        "loss": float(F.cross_entropy(scores, labels)),
        "accuracy": float((scores.argmax(1) == labels).float().mean()),
        "num-examples": JUDGED,
    }
    return Message(RecordDict({"metrics": MetricRecord(found)}), reply_to=message)


def main() -> None:
    """Command line."""
    sites, drawn, rounds = (int(value) for value in sys.argv[1:4])
    judges = min(JUDGES, sites)
    clock = None
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        def tick(server_round: int, arrays: ArrayRecord) -> None:
            nonlocal clock
            if clock is None:  # before the first round, when the actors are there
                clock = Clock()
            else:
                clock.tick()

        strategy = FedAvg(
            # A little more than the share, since what is multiplied with it is rounded down.
            fraction_train=min(1.0, drawn / sites + 1e-9), fraction_evaluate=min(1.0, judges / sites + 1e-9),
            min_train_nodes=drawn, min_evaluate_nodes=judges, min_available_nodes=sites,
        )  # fmt: skip
        started = ArrayRecord(network().state_dict())
        result = strategy.start(grid=grid, initial_arrays=started, num_rounds=rounds, evaluate_fn=tick)
        assert clock is not None
        tell(sys.argv[4], clock, result.arrays.to_torch_state_dict())

    try:
        run_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=sites,
            backend_config={"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )
    except Exception:
        traceback.print_exc()
        os._exit(1)  # a Ray that has lost a process of its own would be waited for without end


if __name__ == "__main__":
    main()
