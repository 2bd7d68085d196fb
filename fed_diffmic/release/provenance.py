"""A signed statement of where a model comes from: ``provenance.json`` beside it.

The file holds ``format``, ``statement`` (JSON), ``public_key`` (OpenSSH text) and ``signature`` (ECDSA over the
statement's canonical JSON). Whether that key is the coordinator's is for the reader to say, who has it from the kit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fed_diffmic import __version__
from fed_diffmic.errors import CredentialError, ModelFileError
from fed_diffmic.files import read_json, write_json
from fed_diffmic.provision.keys import (
    PrivateKey,
    PublicKey,
    decode_signature,
    fingerprint,
    parse_public,
    public_text,
    sign,
    verifies,
)

PROVENANCE = "provenance.json"
FORMAT = 1
PACKAGES = ("torch", "timm", "flwr", "numpy", "safetensors", "cryptography")
SOURCES = ("fed_diffmic", "server", "client", "simulations", "configs")
_DOMAIN = b"fed_diffmic provenance\0"


def sign_statement(path: Path, statement: Mapping[str, Any], signer: PrivateKey) -> None:
    """Write a signed statement, atomically.

    Raises:
        MachineError: no space, no permission.
    """
    signature = base64.b64encode(sign(signer, _DOMAIN + _canonical(statement))).decode()
    key = public_text(signer.public_key())
    write_json(path, {"format": FORMAT, "statement": dict(statement), "public_key": key, "signature": signature})


def verify_statement(path: Path, public_key: PublicKey | None = None) -> tuple[dict[str, Any], str]:
    """A statement whose signature holds, and the fingerprint of the key that signed it.

    Args:
        public_key: whose signature it must be; none: the key that the file itself names.

    Raises:
        ModelFileError: not such a file, another key, or the signature does not hold.
    """
    value = read_json(path)
    try:
        if value["format"] != FORMAT or not isinstance(value["statement"], dict):
            raise ModelFileError(f"{path} was written by another version")
        signature = decode_signature(value["signature"])
        named = parse_public(value["public_key"], f"the key in {path}")
    except (AttributeError, KeyError, TypeError, ValueError, CredentialError) as error:
        raise ModelFileError(f"{path} lacks fields or has others") from error
    if public_key is not None and fingerprint(public_key) != fingerprint(named):
        raise ModelFileError(
            f"{path} is signed by the key {fingerprint(named)}, not by {fingerprint(public_key)}",
            "Compare both with what the coordinator reads to you by phone.",
        )
    if not verifies(named, signature, _DOMAIN + _canonical(value["statement"])):
        raise ModelFileError(f"the signature in {path} does not hold: the file was changed", "Fetch it again.")
    return value["statement"], fingerprint(named)


def signed_key(path: Path) -> PublicKey:
    """The key that signed a statement, whose signature holds.

    Raises:
        ModelFileError: as :func:`verify_statement`.
    """
    verify_statement(path)
    return parse_public(read_json(path)["public_key"])


def code_facts() -> dict[str, Any]:
    """What computed: our version, a digest of our installed source files, and versions of what it stands on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {"version": __version__, "source": source_digest(), "packages": versions}


def source_digest() -> str:
    """SHA-256 over the names and bytes of our installed Python files, so that a changed installation is seen."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for package in SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _canonical(statement: Mapping[str, Any]) -> bytes:
    return json.dumps(statement, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
