"""The ClientApp of virtual sites: the sites' own ClientApp with a virtual source of data.

Ray sends the app to its actors by pickling it. The class lives here, so that an actor that
unpickles it imports this module and with it everything that a virtual site needs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.app import app as site_app
from client.site import Protection, Source, register_source
from fed_diffmic.config.compose import config_from_run_config
from fed_diffmic.exchange.masking.site import MIN_SITES, MaskingSite
from fed_diffmic.exchange.masking.store import FileStore
from fed_diffmic.exchange.masking.virtual import VirtualRoster, virtual_key
from fed_diffmic.files import safe_name
from fed_diffmic.transport.folders import run_dir_of
from simulations.sites import open_virtual_site, pace_of, virtual_site_name


class VirtualClientApp(ClientApp):
    """Runs the sites' ClientApp as one of several virtual sites.

    Args:
        node_configs: what each node is told beyond Flower's own ``partition-id``, by that number.
        run_config: what is added to Flower's run configuration.
        source: where the virtual sites' data come from.
    """

    def __init__(
        self,
        node_configs: Sequence[Mapping[str, Any]] = (),
        run_config: Mapping[str, Any] | None = None,
        source: Source = open_virtual_site,
    ) -> None:
        super().__init__()
        self._node_configs = [dict(config) for config in node_configs]
        self._run_config = dict(run_config or {})
        self._source = source

    def __call__(self, message: Message, context: Context) -> Message:
        """Run the app as the virtual site that ``context`` stands for; Flower's own context stays as it was."""
        register_source(self._source, virtual_site_folder, protection=virtual_protection, masking=virtual_masking)
        number = int(context.node_config.get("partition-id", 0))
        own = self._node_configs[number] if self._node_configs else {}
        run_config = {**context.run_config, **self._run_config}
        inside = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config={**context.node_config, **own},
            state=context.state,
            run_config=run_config,
        )
        inside.run_config["run-dir"] = str(run_dir_of(inside))
        inside.node_config.setdefault("pace", virtual_pace(inside))
        return site_app(message=message, context=inside)


def virtual_protection(context: Context) -> Protection:
    """Every virtual site protects its training as the run's configuration says."""
    if "config-json" not in context.run_config:
        return Protection()
    return Protection(config_from_run_config(context.run_config).privacy)


def virtual_masking(context: Context, name: str) -> MaskingSite | None:
    """A virtual site's part in masked sums, where the run has them."""
    if "config-json" not in context.run_config:
        return None
    config = config_from_run_config(context.run_config)
    if config.strategy.secure_aggregation == "off":
        return None
    store = FileStore(virtual_site_folder(context) / "masking", lambda kind, facts: None)
    privacy = config.privacy
    shares = privacy.name != "none" and privacy.mechanism == "distributed"
    least = max(MIN_SITES, privacy.honest_sites if shares else 0)  # as a real site's policy.min_sites has to be
    return MaskingSite(name, virtual_key(config.seed, name), VirtualRoster(config.seed), store, least)


def virtual_pace(context: Context) -> float:
    """Share of a round's steps that the virtual site manages."""
    if "config-json" not in context.run_config:
        return 1.0
    config = config_from_run_config(context.run_config)
    return pace_of(config, virtual_site_name(context, config)) if config.conditions.slow else 1.0


def virtual_site_folder(context: Context) -> Path:
    """``<run>/sites/<name or number>``: each virtual site's own folder."""
    name = context.node_config.get("site", f"partition-{context.node_config.get('partition-id', 0)}")
    return _site_folder(run_dir_of(context), str(name))


@functools.lru_cache(maxsize=4096)  # asked several times a task
def _site_folder(run_dir: Path, name: str) -> Path:
    return run_dir / "sites" / safe_name(name)


client_app = VirtualClientApp()
