"""Which coordinator's key a folder with a model was made or kept under: a model there must be signed by it.

A coordinator's run keeps its public key as ``coordinator.pub`` from its start, a site beside the model that it took
over. Where that file is gone, the run's own ``config.yaml`` still says that it had one. Whoever may write to the folder
can remove all of it together: what cannot be removed that way is a key that is named from elsewhere (``--key``, a
site's ``coordinator.public_key``, the line in a site's audit log).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fed_diffmic.errors import CredentialError, ModelFileError
from fed_diffmic.files import atomic_write
from fed_diffmic.provision.certificates import load_pem_key
from fed_diffmic.provision.keys import PublicKey, load_private, load_public, public_text

PIN = "coordinator.pub"


def pin(folder: Path, key: PublicKey) -> None:
    """Keep the key whose signature a model in this folder must have.

    Raises:
        MachineError: no space, no permission.
    """
    atomic_write(folder / PIN, (public_text(key) + "\n").encode())


def pinned_key(folder: Path) -> PublicKey | None:
    """The key whose signature a model in this folder must have; none: the folder names none.

    Raises:
        CredentialError: ``coordinator.pub`` is damaged.
        ModelFileError: the run's configuration cannot be read.
    """
    if (folder / PIN).exists():
        return load_public(folder / PIN)
    security = _security(folder)
    for name, load in (("signing_key", load_private), ("key", load_pem_key)):
        path = security.get(name)
        if path is None:
            continue
        try:
            return load(str(path), security.get("key_passphrase")).public_key()
        except CredentialError:  # another machine, or another account: that it must be signed is known all the same
            return None
    return None


def must_be_signed(folder: Path) -> bool:
    """Whether a coordinator with a key made, or a site kept, what lies in this folder.

    Raises:
        ModelFileError: the run's configuration cannot be read.
    """
    security = _security(folder)
    return (folder / PIN).exists() or any(security.get(name) for name in ("signing_key", "key"))


def _security(folder: Path) -> dict[str, Any]:
    """Group ``security`` of a coordinator's run, as far as it says that there is a key; empty: a simulation."""
    path = folder / "config.yaml"
    if not path.exists():
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ModelFileError(f"{path} cannot be read: {type(error).__name__}", "Restore it from the backup.") from error
    security = value.get("security") if isinstance(value, dict) else None
    if not isinstance(security, dict) or (security.get("insecure") and not security.get("signing_key")):
        return {}
    return security
