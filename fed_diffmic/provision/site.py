"""The site's side of provisioning: a kit is opened, and what it brings is written where the client finds it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fed_diffmic.config.compose import compose_site
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.errors import CredentialError, FedDiffmicError, UsageError
from fed_diffmic.files import atomic_write, private_folder
from fed_diffmic.provision.certificates import days_left
from fed_diffmic.provision.credentials import read_credential
from fed_diffmic.provision.keys import load_private, place_new, same_digits
from fed_diffmic.provision.kit import Kit, check_follows, check_for_site, load_kit
from fed_diffmic.provision.templates import site_yaml

CA, COORDINATOR_KEY, OPENED, CONFIG = "ca.crt", "coordinator.pub", "opened.kit", "site.yaml"


def open_kit(
    path: str | os.PathLike[str],
    key: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    digits: Callable[[Kit], str],
    *,
    data: Path | None = None,
    passphrase: Path | None = None,
) -> Path:
    """Open the first kit of a site: ``ca.crt``, ``coordinator.pub``, ``opened.kit`` and a ``site.yaml``, all new.

    Args:
        path: the kit, as it arrived.
        key: the site's private key.
        folder: of the site's configuration (0700).
        digits: asks for the digits that the coordinator reads by phone; called once everything else is well.
        data: the site's table or its folder, for ``site.yaml``.
        passphrase: file of what opens the key, if it is locked; ``site.yaml`` names it.

    Returns:
        The path of ``site.yaml``.

    Raises:
        CredentialError: the kit is damaged, for another site's key, expired, not the one whose digits were given; or
            one of the files is there already.
        UsageError: there are no such data.
    """
    if data is not None and not data.exists():
        raise UsageError(
            f"--data {data}: there is no such file or folder",
            "Give the table, or the folder that holds it; or leave --data out and set dataset.root in site.yaml.",
        )
    kit = _kit_for_key(path, key, passphrase)
    if (Path(folder) / OPENED).exists():
        raise CredentialError(
            f"a kit was opened in {folder} already, and nothing is overwritten: {OPENED} is there already",
            "For a newer kit of the same site: the same command with --update and without --data; site.yaml stays.",
        )
    _check_digits(kit, digits(kit))
    folder = private_folder(folder).absolute()
    text = site_yaml(kit, folder, Path(key).absolute(), None if data is None else data.absolute(), passphrase)
    files = {folder / name: (value, 0o644) for name, value in _brought(path, kit).items()}
    place_new({**files, folder / CONFIG: (text.encode(), 0o644)})
    return folder / CONFIG


def update_kit(
    path: str | os.PathLike[str],
    key: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    digits: Callable[[Kit], str] | None = None,
    *,
    passphrase: Path | None = None,
) -> list[str]:
    """Open a later kit over an opened one; ``site.yaml`` stays as it is.

    A kit signed by the coordinator's key that is known here needs no phone call. One whose signing key is new does.

    Args:
        path: the kit, as it arrived.
        key: the site's private key, which may be new too.
        folder: where the earlier kit was opened.
        digits: what was read by phone; none: the signature must do.
        passphrase: file of what opens the key, if it is locked.

    Returns:
        What in ``site.yaml`` no longer agrees with the kit, a sentence for each.

    Raises:
        CredentialError: as :func:`open_kit`; nothing opened here yet; a kit that does not follow the opened one.
    """
    folder = Path(folder).absolute()
    opened = load_kit(folder / OPENED)
    kit = _kit_for_key(path, key, passphrase)
    if digits is None:
        check_follows(kit, opened)
    else:
        _check_digits(kit, digits(kit))
        if kit.site != opened.site:
            raise CredentialError(
                f"this kit is for site {kit.site!r}; here is site {opened.site!r}", "Open it in another folder."
            )
    for name, value in _brought(path, kit).items():  # opened.kit last: until then the earlier one is what is known
        atomic_write(folder / name, value)
    return _differences(folder / CONFIG, kit, Path(key).absolute())


def _kit_for_key(path: str | os.PathLike[str], key: str | os.PathLike[str], passphrase: Path | None) -> Kit:
    kit = load_kit(path)
    check_for_site(kit, load_private(key, passphrase).public_key())
    if all(days_left(ca) <= 0 for ca in kit.certificates):
        raise CredentialError(
            f"the CA in this kit expired on {kit.certificates[0].not_valid_after_utc:%Y-%m-%d}",
            "Ask the coordinator for a new kit; if it is not so, the clock of this machine is wrong.",
        )
    return kit


def _check_digits(kit: Kit, given: str) -> None:
    if same_digits(given, kit.fingerprint):
        return
    if sum(character.isdigit() for character in given) != sum(character.isdigit() for character in kit.fingerprint):
        raise CredentialError(
            "a fingerprint has thirty digits, in six groups of five", "Type all of them, as they are read to you."
        )
    raise CredentialError(
        "these are not the digits of this kit: it is not the one that the coordinator made",
        "Have them read again. If they differ still, do not open this kit, keep it as evidence, and have another one "
        "sent by another way.",
    )


def _brought(path: str | os.PathLike[str], kit: Kit) -> dict[str, bytes]:
    return {
        CA: kit.ca.encode(),
        COORDINATOR_KEY: kit.coordinator_key.encode() + b"\n",
        OPENED: read_credential(Path(path), "kit"),
    }


def _differences(path: Path, kit: Kit, key: Path) -> list[str]:
    """Where a site's own configuration and the kit disagree."""
    try:
        config: SiteConfig = compose_site(path, [])
    except FedDiffmicError as error:
        return [f"{path} cannot be used: {error.cause}"]
    pairs = (
        ("site.name", config.site.name, kit.site),
        ("coordinator.address", config.coordinator.address, kit.address),
        ("coordinator.key", config.coordinator.key, str(key)),
        ("coordinator.ca", config.coordinator.ca, str(path.with_name(CA))),
        ("coordinator.public_key", config.coordinator.public_key, str(path.with_name(COORDINATOR_KEY))),
        ("dataset.classes", config.dataset.classes, kit.classes),
        ("dataset.task", config.dataset.task, kit.task),
    )
    return [f"{name} is {here}, the kit says {said}" for name, here, said in pairs if here != said]
