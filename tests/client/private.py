"""A federation of private sites with a small network, and what its ledgers hold."""

from dataclasses import replace

from torch import nn

from client import privacy as client_privacy
from client import site as client_site
from client.site import Protection
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.privacy.account import read_account
from fed_diffmic.privacy.accounting import Mechanism
from server.checkpoints import CheckpointStore
from tests.toy import CLASSES, SIDE, Events, toy_grid, toy_spec
from tests.toy import federate as federate_rounds

PRIVACY = PrivacyConfig(
    name="dp_sgd",
    stages=["plain"],
    unit="image",
    noise_multiplier=2.0,
    epsilon=None,
    budget=100.0,
    delta=1e-3,
    logical_batch=4,
    count_noise=5.0,
    weight=3,
)
ROUND = Mechanism(4 / 12, 2.0, 2)
COUNTS = Mechanism(1.0, 5.0, 1)


class PrivateNet(nn.Module):
    """No batch norm: a frozen projection, group norm, a trained head."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(3 * SIDE * SIDE, 8).requires_grad_(False)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, images):
        return self.head(self.norm(self.frozen(images.flatten(1))))


def spec(rounds=3, **stage):
    made = toy_spec(rounds=rounds, ema=0.0, steps=2, loss="balanced", **stage)
    return replace(made, arm="federated")


def grid_of(folder, configs):
    """A grid of virtual sites, each with a privacy of its own."""
    grid, source = toy_grid(folder, tuple(configs))
    client_site.register_source(
        source, protection=lambda context: Protection(configs[str(context.node_config["site"])])
    )
    return grid


def federate(folder, grid, made=None, events=None, **settings):
    given = {"stages": ["plain"], "sites": ["a", "b"], "poll_s": 0.001, "join_s": 120.0, **settings}
    return federate_rounds(grid, made or spec(), CheckpointStore(folder / "run"), events or Events([]), **given)


def account(folder, name):
    return read_account(folder / "sites" / name / "arms" / "federated")


def sent_updates(monkeypatch):
    """What the sites send, in the order in which they do."""
    sent, real = [], client_privacy.private_update

    def watched(*args, **kwargs):
        at = args[3]
        sent.append((at.site, real(*args, **kwargs)))
        return sent[-1][1]

    monkeypatch.setattr(client_privacy, "private_update", watched)
    return sent
