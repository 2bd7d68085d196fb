"""All checks, one after the other; each is made even if one before it failed, where it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from client.preflight.check import Check, failed, guarded, of_error, passed
from client.preflight.credentials import check_credentials, read_key, read_kit
from client.preflight.images import check_groups, check_labels, check_outliers, open_images
from client.preflight.machine import check_machine
from client.preflight.network import check_network
from client.preflight.peers import check_peers
from client.preflight.privacy import check_privacy, check_shares_of_noise
from client.preflight.rules import check_policy
from client.preflight.trial import check_trial, expected_spec
from client.source import SiteSource
from fed_diffmic.config.network_checks import check_site_start
from fed_diffmic.config.simulation import ModelConfig, StagesConfig, StrategyConfig
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.data.site import SiteData
from fed_diffmic.errors import ConfigError
from fed_diffmic.privacy.continuity import witness_of
from fed_diffmic.provision.peers import load_peers

PARTS = ("machine", "credentials", "network", "data", "privacy", "trial")


@dataclass(frozen=True)
class Expected:
    """What is assumed of the run, which the coordinator decides.

    Attributes:
        model, stages, strategy: groups of the coordinator's configuration.
    """

    model: ModelConfig
    stages: StagesConfig
    strategy: StrategyConfig = field(default_factory=StrategyConfig)


def preflight(
    config: SiteConfig, expected: Expected, say: Callable[[Check], None], parts: tuple[str, ...] = PARTS
) -> list[Check]:
    """Make the checks.

    Args:
        config: of the site.
        expected: of the run.
        say: called with each check as it is made.
        parts: which of :data:`PARTS`.

    Returns:
        all of them, in order.
    """
    checks = []
    for check in _checks(config, expected, parts):
        checks.append(check)
        say(check)
    return checks


def _checks(config: SiteConfig, expected: Expected, parts: tuple[str, ...]) -> Iterator[Check]:
    try:
        check_site_start(config)
        yield passed("configuration", "complete")
    except ConfigError as error:
        yield of_error("configuration", error)
    ready = config.site.folder is not None
    if "machine" in parts and ready:
        yield from check_machine(config)
    if "credentials" in parts:
        yield from check_credentials(config)
        if ready:
            yield from guarded("credentials.peers", lambda: check_peers(config))
    way = config.coordinator
    if "network" in parts and way.address is not None:
        yield from guarded("network", lambda: check_network(way, read_key(way)))
    if "data" in parts and ready and config.dataset.root is not None:
        data = list(guarded("data", lambda: _data(config, expected)))
        yield from data
        if "trial" in parts and any(check.exit_code for check in data):
            yield failed("trial.step", "not tried: the data cannot be used", "Mend the data first.", exit_code=3)
            return
    if "privacy" in parts and ready and config.dataset.root is not None and config.privacy.name != "none":
        yield from guarded("privacy", lambda: _privacy(config, expected))
    if "trial" in parts and ready and config.dataset.root is not None:
        yield from guarded("trial", lambda: check_trial(config, expected.model, expected.stages))


def _privacy(config: SiteConfig, expected: Expected) -> Iterator[Check]:
    data = SiteSource(config).read(expected.model.image_side)
    spec = expected_spec(config, data.classes, data.task, expected.model, expected.stages, expected.strategy)
    coordinator, folder = config.coordinator, Path(str(config.site.folder))
    witness = None if coordinator.key is None else witness_of(Path(coordinator.key))
    yield from check_privacy(
        config.privacy, spec, data.train, folder, read_key(coordinator), rules=config.policy.budget, witness=witness
    )
    if config.privacy.mechanism == "distributed":
        yield check_shares_of_noise(config.privacy, config.policy.min_sites, 1 + len(load_peers(folder)))


def _data(config: SiteConfig, expected: Expected) -> Iterator[Check]:
    checks, images = open_images(config, expected.model.image_side)
    yield from checks
    if images is None:
        return
    yield from check_labels(config, images.opened.manifest, read_kit(config.coordinator))
    yield check_groups(images.opened.manifest)
    data = SiteData.from_manifest(config.site.name, images.split, images.opened.cache)
    spec = expected_spec(config, data.classes, data.task, expected.model, expected.stages)
    yield from guarded("policy", lambda: check_policy(config, data, spec))
    yield from guarded("data.outliers", lambda: check_outliers(images, config.dataset.modality))
