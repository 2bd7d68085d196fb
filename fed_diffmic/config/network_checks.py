"""What no single field of ``flower-server``'s and ``fed-diffmic client``'s configurations can say.

``..._consistency`` looks at the configuration alone; ``check_server_start`` and ``check_site_start`` at files and
folders, before anything is started.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from fed_diffmic.config.checks import (
    DEVICE,
    check_dataset,
    check_model,
    check_privacy_group,
    check_stages,
)
from fed_diffmic.config.groups import layout_options
from fed_diffmic.config.hours import parse_hours
from fed_diffmic.config.owner_checks import (
    check_client_level,
    check_exchanges,
    check_once,
    check_secure_aggregation,
    check_strategy,
)
from fed_diffmic.config.policy_study import check_study_rules
from fed_diffmic.config.server import ServerConfig
from fed_diffmic.config.shared_noise import check_shared_noise, check_shared_policy
from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.errors import ConfigError

ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
PROXY = re.compile(r"http://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}/?")
MOST_DEVICES = 16
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_KIT = "The kit that the coordinator sent holds it: `fed-diffmic provision open-kit`."
_PUBLIC = (
    "Requests are taken only under the coordinator's seal, which this key verifies. Name coordinator.pub, which lies "
    "beside ca.crt where the kit was opened; `fed-diffmic provision open-kit --update` writes it again."
)
_MADE = "`fed-diffmic provision` makes it; docs/provisioning.md shows how."


def check_server_consistency(config: ServerConfig) -> None:
    """Refuse values of the coordinator that are each allowed but not together.

    Raises:
        ConfigError: names the key to change, its value, and what is allowed beside the others.
    """
    common = config.consortium
    task = common.task or "multiclass"
    check_dataset(
        DatasetConfig(name="table", task=task, classes=common.classes, mean=common.mean, std=common.std), "consortium"
    )
    if common.sites is not None:
        check_once("consortium.sites", common.sites)
        for name in common.sites:
            check_site_name("consortium.sites", name)
    check_model(config)
    check_stages(config)
    check_strategy(config)
    check_client_level(config)
    check_secure_aggregation(config)
    check_exchanges(config)
    check_shared_noise(config)
    if config.listen.status_port == config.listen.port:
        raise ConfigError("listen.status_port", config.listen.port, "another port than listen.port, or 0")
    if config.listen.connections_per_address > config.listen.connections:
        raise ConfigError(
            "listen.connections_per_address",
            config.listen.connections_per_address,
            f"at most listen.connections, which is {config.listen.connections}",
        )
    if config.listen.reply_mib > config.listen.site_mib:
        raise ConfigError(
            "listen.reply_mib", config.listen.reply_mib, f"at most listen.site_mib, which is {config.listen.site_mib:g}"
        )


def check_site_consistency(config: SiteConfig) -> None:
    """Refuse values of a site that are each allowed but not together.

    Raises:
        ConfigError: names the key to change, its value, and what is allowed beside the others.
    """
    check_dataset(config.dataset, "dataset")
    check_privacy_group(config.privacy)
    check_shared_policy(config.privacy, config.policy)
    site, way = config.site, config.coordinator
    parse_hours(config.policy.hours)
    check_study_rules(config.policy.study)
    if site.name:
        check_site_name("site.name", site.name)
    check_devices(site.device)
    if site.val_fraction + site.test_fraction >= 1:
        raise ConfigError(
            "site.test_fraction", site.test_fraction, f"less than 1 - site.val_fraction, {1 - site.val_fraction:g}"
        )
    if way.address is not None:
        found = ADDRESS.fullmatch(way.address)
        if found is None or not 1 <= int(found[2]) <= 65535:
            raise ConfigError("coordinator.address", way.address, "host:port, for example fl.example.org:9443")
    if way.proxy is not None and not PROXY.fullmatch(way.proxy):
        raise ConfigError(
            "coordinator.proxy", way.proxy, "http://host:port", "A proxy that asks for a password is not supported."
        )
    if way.retry_min_s > way.retry_max_s:
        raise ConfigError(
            "coordinator.retry_min_s", way.retry_min_s, f"at most coordinator.retry_max_s, {way.retry_max_s:g}"
        )


def check_devices(names: Sequence[str]) -> None:
    """One device, or several of one kind that can share a step.

    Raises:
        ConfigError: they are not that.
    """
    shown = names[0] if len(names) == 1 else f"[{', '.join(names)}]"
    if not names or not all(DEVICE.fullmatch(name) for name in names):
        raise ConfigError("site.device", shown, "auto, cpu, cuda, cuda:N, mps, or a list of cuda:N or of cpu")
    if len(names) == 1:
        return
    if len(names) > MOST_DEVICES:
        raise ConfigError("site.device", f"{len(names)} devices", f"at most {MOST_DEVICES}")
    cards = all(name.startswith("cuda:") for name in names)
    if not cards and set(names) != {"cpu"}:
        raise ConfigError(
            "site.device",
            shown,
            "several devices of one kind by number: [cuda:0, cuda:1], or [cpu, cpu]",
            "Name the cards one by one; a card and a processor do not keep step.",
        )
    if cards and len({int(name.partition(":")[2]) for name in names}) < len(names):
        raise ConfigError("site.device", shown, "each card once")


def check_site_name(key: str, name: str) -> None:
    """A site's name is printable, at most 128 characters, and holds nothing that means something in a path.

    Raises:
        ConfigError: it is not.
    """
    if not 0 < len(name) <= 128 or not name.isprintable() or set(name) & set("/\\|") or name.startswith("."):
        raise ConfigError(key, ascii(name)[:140], "printable text without / \\ | that does not begin with a dot")


def check_server_start(config: ServerConfig) -> None:
    """Refuse to start a coordinator without its files, or one that anyone could join.

    Raises:
        ConfigError: names the key, its value and what is needed.
    """
    security = config.security
    if security.insecure:
        if config.strategy.secure_aggregation != "off":
            raise ConfigError(
                "strategy.secure_aggregation",
                config.strategy.secure_aggregation,
                "off with security.insecure=true",
                "Sites agree to a sum by their enrolled keys, of which there are none; a simulation has its own.",
            )
        if config.listen.host not in LOOPBACK:
            raise ConfigError(
                "listen.host",
                config.listen.host,
                "127.0.0.1, localhost or ::1 with security.insecure=true",
                "Anyone who reaches an insecure coordinator can read and steer the run. " + _MADE,
            )
        if config.consortium.sites is None:
            raise ConfigError(
                "consortium.sites", "null", "names of the sites with security.insecure=true: there is no roster"
            )
    else:
        for name in ("certificate", "key", "ca", "roster"):
            _need_file(f"security.{name}", getattr(security, name), _MADE)
    if security.signing_key is not None:
        _need_file("security.signing_key", security.signing_key, _MADE)
    paths = {
        "model.weights": config.model.weights,
        "model.prior_weights": config.model.prior_weights,
        "stages.guidance.init": config.stages.guidance.init,
        "stages.diffusion.init": config.stages.diffusion.init,
    }
    for key, path in paths.items():
        if path is not None:
            _need_file(key, path, "Check the path; a relative one starts at the current folder.")


def check_site_start(config: SiteConfig) -> None:
    """Refuse to start a site without its name, its folder, its data or its files.

    Raises:
        ConfigError: names the key, its value and what is needed.
    """
    site, way = config.site, config.coordinator
    if not site.name:
        raise ConfigError("site.name", "(nothing)", "the name of this site in the coordinator's roster", _KIT)
    if site.folder is None:
        raise ConfigError("site.folder", "null", "a folder for the site's own state, on an encrypted volume")
    if Path(site.folder).exists() and not Path(site.folder).is_dir():
        raise ConfigError("site.folder", site.folder, "a folder, existing or not")
    if site.turn is not None:
        _check_turn(Path(site.turn))
    if way.address is None:
        raise ConfigError("coordinator.address", "null", "host:port of the coordinator", _KIT)
    if way.insecure:
        if way.address.rsplit(":", 1)[0].strip("[]") not in LOOPBACK:
            raise ConfigError(
                "coordinator.insecure",
                "true",
                "false with a coordinator on another machine",
                "Without TLS anyone on the way can read and change what is sent.",
            )
    else:
        _need_file("coordinator.ca", way.ca, _KIT)
        _need_file("coordinator.key", way.key, "Make it here: `fed-diffmic provision site-key`.")
        _need_file("coordinator.public_key", way.public_key, _PUBLIC)
    root = config.dataset.root
    may_be_file = layout_options(config.dataset.name).root_file
    if root is None or not (Path(root).is_dir() or (may_be_file and Path(root).is_file())):
        raise ConfigError(
            "dataset.root", root or "null", f"the folder that holds the images of dataset={config.dataset.name}"
        )


def _need_file(key: str, path: str | None, remedy: str) -> None:
    if path is None or not Path(path).is_file():
        raise ConfigError(key, path or "null", "an existing file", remedy)


def _check_turn(path: Path) -> None:
    """Refuse a file of turns that this site could never hold: it would give every request back."""
    there, folder = path.exists() or path.is_symlink(), path.parent
    a_file = path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)
    a_place = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    if not (a_file if there else a_place):
        raise ConfigError(
            "site.turn", path, "a file (no link) that this user may read, existing or not, in a folder that is there"
        )
