"""A bill of materials of what a deployment installs: CycloneDX JSON, and a list of licences. `make sbom` calls it.

Names, versions and hashes are those of deploy/requirements.txt, licences those that the packages installed here say of
themselves. The same list gives the same bytes: no time of day, no random number.
"""

from __future__ import annotations

import argparse
import re
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

UNKNOWN = "not said"
_CLASSIFIER = "License :: "


@dataclass(frozen=True)
class Pin:
    """A package of a compiled list.

    Attributes:
        name, version: as they stand there.
        marker: where it is installed; empty: everywhere.
        hashes: SHA-256 of its files, any of which may be installed.
    """

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def read_pins(path: Path) -> list[Pin]:
    """Every entry of a compiled list, in order.

    Raises:
        ValueError: an entry without a version or a hash.
    """
    pins = []
    for entry in re.split(r"\n(?=[^\s#])", re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.M).strip()):
        found = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)\s*(?:;\s*([^\\\n]*?)\s*)?(?:\\|$)", entry)
        hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})\b", entry))
        if found is None or not hashes:
            raise ValueError(f"{path}: not a package with a version and hashes: {entry.splitlines()[0]}")
        pins.append(Pin(found[1], found[2], found[3] or "", hashes))
    return pins


def licence(pin: Pin) -> str:
    """What the installed package says of its licence: an SPDX expression, else its classifiers, else its own words."""
    try:
        told = metadata.metadata(pin.name)
    except metadata.PackageNotFoundError:
        return UNKNOWN
    if told["Version"] != pin.version:
        return UNKNOWN
    if told.get("License-Expression"):
        return str(told["License-Expression"])
    classes = [value.split(" :: ")[-1] for value in told.get_all("Classifier") or () if value.startswith(_CLASSIFIER)]
    if classes:
        return " AND ".join(sorted(set(classes)))
    words = (told.get("License") or "").strip()
    return words.splitlines()[0][:100] if words else UNKNOWN


def bill(pins: Sequence[Pin], name: str, version: str) -> Bom:
    """The bill of materials of a program that installs ``pins``."""
    licences = LicenseFactory()
    program = Component(name=name, version=version, type=ComponentType.APPLICATION, bom_ref=f"{name}@{version}")
    parts = []
    for pin in pins:
        purl = PackageURL("pypi", None, re.sub(r"[-_.]+", "-", pin.name).lower(), pin.version)
        said = licence(pin)
        parts.append(
            Component(
                name=pin.name,
                version=pin.version,
                type=ComponentType.LIBRARY,
                bom_ref=str(purl),
                purl=purl,
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=value) for value in pin.hashes],
                licenses=[] if said == UNKNOWN else [licences.make_from_string(said)],
                properties=[Property(name="installed where", value=pin.marker)] if pin.marker else [],
            )
        )
    seed = "\n".join(f"{pin.name}=={pin.version} {' '.join(pin.hashes)}" for pin in pins)
    found = Bom(
        components=parts,
        metadata=BomMetaData(component=program),
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {version}\n{seed}"),
    )
    found.metadata.timestamp = None
    found.metadata.tools.tools.clear()
    found.register_dependency(program, parts)
    return found


def licence_list(pins: Sequence[Pin]) -> str:
    """One line for each package: name, version, licence."""
    width = max(len(f"{pin.name} {pin.version}") for pin in pins)
    lines = [f"{f'{pin.name} {pin.version}':{width}}  {licence(pin)}" for pin in pins]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``sbom.cdx.json`` and ``licences.txt``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("requirements", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--version", required=True)
    said = parser.parse_args(arguments)
    pins = read_pins(said.requirements)
    text = make_outputter(bill(pins, "fed-diffmic", said.version), OutputFormat.JSON, SchemaVersion.V1_6)
    said.out.mkdir(parents=True, exist_ok=True)
    (said.out / "sbom.cdx.json").write_text(text.output_as_string(indent=2) + "\n", encoding="utf-8")
    (said.out / "licences.txt").write_text(licence_list(pins), encoding="utf-8")
    unknown = [pin.name for pin in pins if licence(pin) == UNKNOWN]
    print(f"{said.out}: sbom.cdx.json, licences.txt; {len(pins)} packages")
    if unknown:
        print(f"licence {UNKNOWN} (this version is not installed here, or says nothing): {', '.join(unknown)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
