"""``fed-diffmic data from-dicom``: an archive's export, or an archive, becomes a table of images; docs/dicom.md."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.errors import FedDiffmicError, UsageError
from fed_diffmic.inputs import check_file

if TYPE_CHECKING:
    from fed_diffmic.commands import Add
    from fed_diffmic.config.site import SiteConfig
    from fed_diffmic.data.dicom.sources import Item
    from fed_diffmic.data.findings import Findings

_ABOUT = """A table and 16-bit PNG, for dataset=table, from a folder, a DICOMDIR, or an archive that speaks DICOMweb.

  fed-diffmic data from-dicom EXPORT OUT --labels labels.csv --config site.yaml
  fed-diffmic data from-dicom EXPORT/DICOMDIR OUT --labels labels.csv site.folder=DIR dicom.window=header
  fed-diffmic data from-dicom https://pacs.example.org/dicom-web OUT --labels labels.csv --config site.yaml

Patients, studies and series become keyed hashes under the secret in site.folder, where the mapping and the findings
stay too. The table of labels finds an image by accession number or SOP instance UID."""


def register(add: Add) -> None:
    """Add ``from-dicom`` below ``data``."""
    command = add("from-dicom", _from_dicom, "a table of images from DICOM: a folder, a DICOMDIR or a DICOMweb address")
    command.description = _ABOUT
    command.add_argument("source", metavar="FOLDER|DICOMDIR|URL", help="what to read")
    command.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
    command.add_argument("--labels", type=Path, metavar="CSV", help="table: accession or sop_instance_uid, and label")
    command.add_argument("--config", type=Path, metavar="FILE", help="site.yaml")
    command.add_argument("settings", nargs="*", metavar="key=value", help="site.folder=DIR, dicom.window=header, ...")


def _from_dicom(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.config.compose import compose_site

    out: Path = arguments.out
    for name, value in (("FOLDER", arguments.source), ("OUT", str(out))):
        if "=" in value and not Path(value).exists():
            raise UsageError(f"{name} is missing: {value!r} is a setting", "Name FOLDER and OUT first, then settings.")
    config = compose_site(arguments.config, arguments.settings)
    if config.site.folder is None:
        raise UsageError(
            "site.folder is not set: the secret of the pseudonyms and their mapping are kept there",
            "Name the site's configuration (--config site.yaml), or its folder: site.folder=DIR (made, if it is new).",
        )
    if Path(arguments.source).is_dir() and out.resolve().is_relative_to(Path(arguments.source).resolve()):
        raise UsageError(
            f"{out} lies in the export itself: the next one would take it for a part of it", "Name a folder outside."
        )
    if arguments.labels is not None:
        check_file("--labels", arguments.labels)
    from fed_diffmic.data.dicom.reasons import readers

    if not readers():
        raise UsageError("the packages that read DICOM are not installed", "Run pip install 'fed-diffmic[dicom]'.")
    from fed_diffmic.data.dicom.export import check_free

    check_free(out)
    return _export(arguments, config, hint)


def _export(arguments: argparse.Namespace, config: SiteConfig, hint: list[str]) -> int:
    from fed_diffmic.data.dicom.export import TABLE, Place, export
    from fed_diffmic.data.dicom.identity import Names
    from fed_diffmic.data.dicom.labels import read_labels
    from fed_diffmic.data.findings import Findings
    from fed_diffmic.files import private_folder, safe_name
    from fed_diffmic.privacy.account import FOLDER
    from fed_diffmic.privacy.continuity import unit_secret

    out: Path = arguments.out
    site = private_folder(Path(str(config.site.folder)))
    private = private_folder(site / "dicom")
    names = Names(unit_secret(private_folder(site / FOLDER)))
    findings = Findings(private / f"{safe_name(out.absolute().name)}-findings.csv")
    labels = None
    try:
        if arguments.labels is not None:
            labels = read_labels(arguments.labels, config.dicom.join, config.dicom.label_column, findings)
        items = _items(arguments.source, config, private, findings, hint)
        place = Place(out, private, config.site.name)
        summary = export(items, config.dicom, labels, names, place, findings, _progress)
    except FedDiffmicError:
        findings.write()
        raise
    findings.write()
    print(f"{summary['images']} images of {summary['patients']} patients from {summary['files']} files in {out}")
    for line in findings.lines():
        print(f"  {line}")
    print(f"every file concerned: {findings.path} (names patients' images: yours alone)")
    print(f"train on it with: fed-diffmic simulate dataset=table {shlex.quote(f'dataset.root={out / TABLE}')}")
    return 0


def _items(source: str, config: SiteConfig, private: Path, findings: Findings, hint: list[str]) -> list[Item]:
    """The files to look at, fetched first where the source is an archive."""
    from fed_diffmic.data.dicom.dicomweb import Archive, download_folder, is_url
    from fed_diffmic.data.dicom.sources import items_of

    if not is_url(source):
        return items_of(Path(source), findings)
    folder = download_folder(private, source, config.dicom.web)
    hint.append("what was fetched is kept; the same command goes on with the rest")
    with Archive(source, config.dicom.web, config.dicom.max_file_mib) as archive:
        items = archive.fetch(folder, findings, _progress)
    print(f"fetched files are kept in {folder}: they name patients; remove them when they are not needed", flush=True)
    return items


def _progress(what: str, done: int, total: int) -> None:
    end = "\n" if done >= total or not sys.stderr.isatty() else "\r"
    if end == "\r" or done >= total:
        print(f"{what}: {done} of {total}", end=end, file=sys.stderr, flush=True)
