"""Real sites in one process: each virtual node of the in-process grid under rules of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message

from client import site as client_site
from client.site import Rules
from fed_diffmic.config.policy_floors import Floors
from fed_diffmic.config.site import PolicyConfig
from fed_diffmic.exchange.audit import AuditLog
from fed_diffmic.exchange.policy import SitePolicy
from simulations.grid import InProcessGrid
from tests import toy

# P-256: signs ten times as fast, and speed is all that matters here; the same in every process, as a site's is.
KEY = ec.derive_private_key(20251129, ec.SECP256R1())
# No floor at all: the toy federation's sites have a dozen images.
NO_FLOORS = Floors(
    step_images=0, step_patients=0, update_images=0, update_patients=0, steps=0, figure_patients=0, sums_images=0,
    few_images=0, few_rounds=0, largest_share=1.0, changed_patients=0, isolation=False, secret_draws=False,
)  # fmt: skip
OPEN = PolicyConfig(
    name="standard",
    runs=["toy"],
    datasets=["table"],
    classes=["*"],
    stages=["guidance", "plain"],
    strategies=["fedavg"],
    tensors=["*"],
    dtypes=["float32", "int64"],
    max_update_norm=100.0,
    metrics=["*"],
    min_count=0,
    max_rounds=5,
    max_epochs=3.0,
    max_steps=50,
    max_seconds=600.0,
    hours=["always"],
    privacy="none",
    floors=NO_FLOORS,
)


class Anything:
    """Agrees to every request: for tests that are about other rules than the study's."""

    def check(self, kind: str, request: Any) -> None: ...


def rules(folder: Path, name: str, gate: Any = None, key: Any = KEY, studies: Any = None, **changes: Any) -> Rules:
    folder.mkdir(parents=True, exist_ok=True)
    log = AuditLog(folder / f"{name}.audit.jsonl", key, owner=name)
    return Rules(SitePolicy(replace(OPEN, **changes)), "table", log, gate, studies=studies or Anything())


class RuledGrid(InProcessGrid):
    """Before a node runs, this process takes on its rules."""

    rules: Mapping[str, Rules | None]

    def _run(self, message: Message) -> Message:
        name = str(self._contexts[message.metadata.dst_node_id].node_config["site"])
        client_site._REGISTERED.rules = self.rules[name]
        try:
            return super()._run(message)
        finally:
            client_site._REGISTERED.rules = None


def ruled_grid(folder: Path, site_rules: Mapping[str, Rules | None], **node_config: Any) -> tuple[RuledGrid, Any]:
    grid, source = toy.toy_grid(folder, names=tuple(site_rules), **node_config)
    grid.__class__ = RuledGrid
    assert isinstance(grid, RuledGrid)
    grid.rules = site_rules
    return grid, source
