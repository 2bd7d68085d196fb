"""A consortium of one site: provisioned files, a small data set, the coordinator's real SuperLink on loopback."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.config.site import CoordinatorConfig, SiteConfig, SiteGroup
from fed_diffmic.provision.authority import Authority, make_authority
from fed_diffmic.provision.keys import load_private, make_site_key, public_text
from fed_diffmic.provision.kit import Kit
from fed_diffmic.provision.roster import Roster
from fed_diffmic.provision.site import OPENED
from fed_diffmic.transport.superlink import LinkSettings, start_superlink

CLASSES = ["benign", "malignant"]


@dataclass
class Consortium:
    folder: Path
    authority: Authority

    def key(self, name: str) -> Path:
        """Private key of ``north``, who is enrolled, of ``stranger``, who is not, or ``signing``."""
        return self.folder / "keys" / name


@pytest.fixture(scope="session")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    """CA, certificate of the coordinator, keys, and a roster that admits ``north``."""
    folder = tmp_path_factory.mktemp("consortium")
    folder.chmod(0o700)
    authority = make_authority(folder / "ca")
    authority.issue_server([], ["127.0.0.1"], folder / "server")
    public = {name: make_site_key(folder / "keys" / name) for name in ("north", "stranger", "signing")}
    Roster().enrol("north", public["north"], "Hospital North").save(folder / "roster.json")
    return Consortium(folder, authority)


@pytest.fixture(scope="session")
def address(consortium: Consortium) -> Iterator[str]:
    """Address of the coordinator's real SuperLink, behind its guard."""
    settings = LinkSettings(
        folder=str(consortium.folder / "link"),
        host="127.0.0.1",
        port=0,
        certificate=str(consortium.folder / "server" / "server.crt"),
        key=str(consortium.folder / "server" / "server.key"),
        ca=str(consortium.authority.certificate_path),
        roster=str(consortium.folder / "roster.json"),
    )
    link = start_superlink(settings)
    try:
        yield f"127.0.0.1:{link.public_port}"
    finally:
        link.child.kill()


def write_images(root: Path, count: int = 60, side: int = 64) -> Path:
    """Scenes with an up and a down, two classes, two images a patient."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    lines = ["image,label,patient_id"]
    for index in range(count):
        label = index // 2 % 2
        cx, cy = rng.uniform(0.3, 0.7, 2)
        grey = 190 - 90 * y + (40 if label else 15) * ((x - cx) ** 2 + (y - cy) ** 2 < 0.03)
        grey = np.clip(grey + rng.normal(0, 6, (side, side)), 0, 255).astype(np.uint8)
        Image.fromarray(grey).convert("RGB").save(root / f"JaneDoe{index}.png")
        lines.append(f"JaneDoe{index}.png,{CLASSES[label]},{index // 2}")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root


def at(site: SiteConfig, **changed: Any) -> SiteConfig:
    """The site with other values in group ``coordinator``."""
    return replace(site, coordinator=replace(site.coordinator, **changed))


def opened_kit(consortium: Consortium, home: Path, address: str, **changed: Any) -> None:
    """Write what ``provision open-kit`` writes."""
    signing = load_private(consortium.key("signing"))
    kit = Kit(
        site="north",
        institution="Hospital North",
        role="train",
        site_key=public_text(load_private(consortium.key("north")).public_key()),
        address=address,
        ca=consortium.authority.certificate_path.read_text(),
        coordinator_key=public_text(signing.public_key()),
        classes=CLASSES,
        task="multiclass",
        seed=0,
        made="2026-01-01T00:00:00+00:00",
    )
    kit = replace(kit, **changed)
    (home / OPENED).write_bytes(kit.sealed(signing))
    (home / "ca.crt").write_text(kit.ca)
    (home / "coordinator.pub").write_text(kit.coordinator_key + "\n")


@pytest.fixture
def way() -> Any:
    """:func:`at`, for the tests."""
    return at


@pytest.fixture
def kit_of(consortium: Consortium, site: SiteConfig) -> Any:
    """Replaces the site's opened kit by one that says otherwise."""
    home = Path(str(site.coordinator.ca)).parent
    return lambda **changed: opened_kit(consortium, home, changed.pop("address", "127.0.0.1:9"), **changed)


@pytest.fixture
def site(consortium: Consortium, tmp_path: Path) -> SiteConfig:
    """Site ``north`` as its opened kit leaves it; nothing listens at its coordinator's address."""
    home = tmp_path / "north"
    home.mkdir(mode=0o700)
    address = "127.0.0.1:9"
    opened_kit(consortium, home, address)
    return SiteConfig(
        site=SiteGroup(name="north", folder=str(home / "state"), device=["cpu"]),
        coordinator=CoordinatorConfig(
            address=address,
            ca=str(home / "ca.crt"),
            key=str(consortium.key("north")),
            public_key=str(home / "coordinator.pub"),
        ),
        dataset=DatasetConfig(
            name="table", root=str(write_images(tmp_path / "data")), classes=CLASSES, task="multiclass"
        ),
    )
