"""Make a dossier, sign it, and verify one that came."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import atomic_write, read_json
from fed_diffmic.provision.keys import PrivateKey, PublicKey
from fed_diffmic.release.dossier import render
from fed_diffmic.release.dossier.chain import SBOM, materials, provenance_chain
from fed_diffmic.release.dossier.counts import LEAST
from fed_diffmic.release.dossier.drafts import drafts
from fed_diffmic.release.dossier.evaluation import evaluation, sureness
from fed_diffmic.release.dossier.facts import (
    BOUNDS,
    LINES,
    MODEL,
    PROVENANCE,
    Sources,
    count_lines,
    digest_of,
    resolve,
)
from fed_diffmic.release.dossier.model import data_statement, model_card, training_facts
from fed_diffmic.release.dossier.privacy import privacy_statement, threats
from fed_diffmic.release.final import load_final
from fed_diffmic.release.pinned import pinned_key
from fed_diffmic.release.provenance import sign_statement, verify_statement

FORMAT = 1
KIND = "fed_diffmic dossier"
HTML, JSON, SIGNATURE = "dossier.html", "dossier.json", "signature.json"
DOMAIN = b"fed_diffmic dossier\0"
NOTICE = "For research. Not a medical device: nothing here may be used to diagnose or to treat a patient."
ABOUT = (
    "Made by a program from the run's files. Every number names the file that it stands in; the place shows where the "
    "number is pointed at, and in dossier.json. What the files do not say is missing, or to be filled in."
)


@dataclass(frozen=True)
class Made:
    """What was written.

    Attributes:
        folder: where.
        files: names, the signature among them if there is one.
        signed: whether somebody signed.
    """

    folder: Path
    files: tuple[str, ...]
    signed: bool


def build(
    run: Path, *, public_key: PublicKey | None = None, sbom: Path | None = None, least: int = LEAST
) -> dict[str, Any]:
    """The content of a dossier; the same run gives the same.

    Args:
        run: folder of a run that has ended, simulated or a coordinator's.
        public_key: whose signature the model must have; none: as :func:`fed_diffmic.release.final.load_final`.
        sbom: bill of materials (CycloneDX JSON); none: the one in the run's folder, if there is one.
        least: counts of fewer images are kept back.

    Raises:
        ModelFileError: the run has not ended, its model does not hold, or a file of it cannot be read.
    """
    key = public_key or pinned_key(run)
    final = load_final(run, public_key=public_key)
    sources = Sources(run)
    if sbom is not None:
        sources.add(SBOM, sbom)
        if not isinstance(sources.tree(SBOM), dict):
            raise ModelFileError(f"{sbom} is no bill of materials", "Give the sbom.cdx.json that `make sbom` wrote.")
    sections = [
        model_card(sources),
        data_statement(sources, least),
        training_facts(sources),
        privacy_statement(sources),
        evaluation(sources, least),
        sureness(sources, least),
        threats(sources),
        provenance_chain(sources, final, key),
        materials(sources),
    ]
    named = {str(cell["file"]) for cell in cells(sections)}
    return {
        "format": FORMAT,
        "kind": KIND,
        "run": final.spec.run_id,
        "notice": NOTICE,
        "about": ABOUT,
        "sections": sections,
        "drafts": drafts(sections),
        "sources": {name: digest_of(sources.path(name)) for name in sorted({*sources.used(), *named})},
    }


def write_dossier(
    run: Path,
    out: Path,
    *,
    public_key: PublicKey | None = None,
    signer: PrivateKey | None = None,
    sbom: Path | None = None,
    least: int = LEAST,
) -> Made:
    """Write a dossier: page, JSON, drafts, the bill of materials, and a signature over all of them.

    Args:
        out: folder, made if it is not there; a dossier in it is replaced.
        signer: who signs; none: nobody, and an older signature is removed.

    Raises:
        ModelFileError: as :func:`build`.
        MachineError: no space, no permission.
    """
    content = build(run, public_key=public_key, sbom=sbom, least=least)
    files = {
        HTML: render.html(content).encode(),
        JSON: (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        **{f"{draft['id']}.md": render.markdown(draft, content["run"]).encode() for draft in content["drafts"]},
    }
    if SBOM in content["sources"]:
        files[SBOM] = (sbom or run / SBOM).read_bytes()
    out.mkdir(parents=True, exist_ok=True)
    (out / SIGNATURE).unlink(missing_ok=True)
    (out / SBOM).unlink(missing_ok=True)
    for name, data in files.items():
        atomic_write(out / name, data)
    if signer is None:
        return Made(out, tuple(files), False)
    statement = {"kind": KIND, "run": content["run"], "files": {name: digest_of(out / name) for name in files}}
    model = {name: content["sources"][name] for name in (MODEL, PROVENANCE) if name in content["sources"]}
    sign_statement(out / SIGNATURE, {**statement, "model": model}, signer, domain=DOMAIN)
    return Made(out, (*files, SIGNATURE), True)


def verify_dossier(folder: Path, public_key: PublicKey | None = None) -> tuple[dict[str, Any], str]:
    """A dossier of which every file is as it was signed: the statement, and the fingerprint of the key.

    Raises:
        ModelFileError: nobody signed, another key did, a file was changed, is gone, or was added.
    """
    path = folder / SIGNATURE
    if not path.is_file():
        raise ModelFileError(
            f"{folder} holds no {SIGNATURE}: nobody signed this dossier", "Ask for one that is signed."
        )
    statement, signed_by = verify_statement(path, public_key, domain=DOMAIN)
    listed = statement.get("files")
    if statement.get("kind") != KIND or not isinstance(listed, dict):
        raise ModelFileError(
            f"what {path} signs is no dossier", "Name the folder that `fed-diffmic dossier RUN` wrote (RUN/dossier)."
        )
    remedy = "Fetch the folder again, whole, from whoever signed it."
    there = {found.name for found in folder.iterdir()} - {SIGNATURE}
    for name, digest in sorted(listed.items()):
        if name not in there:
            raise ModelFileError(f"{folder / name} was signed, and is gone", remedy)
        if digest_of(folder / name) != digest:
            raise ModelFileError(f"{folder / name} is not the one that was signed", remedy)
    if there - set(listed):
        raise ModelFileError(f"{folder} holds {', '.join(sorted(there - set(listed)))}, which nobody signed", remedy)
    return statement, signed_by


def cells(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every fact of a dossier's content."""
    if isinstance(node, Mapping):
        if "file" in node and "at" in node:
            yield node
            return
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from cells(item)


def unsourced(content: Mapping[str, Any], run: Path, extra: Mapping[str, Path] | None = None) -> list[str]:
    """The facts of a dossier that do not stand in the run's files as it says; empty: all do.

    Args:
        content: what ``dossier.json`` holds.
        run: the run's folder.
        extra: files that lie elsewhere, by name.
    """
    sources = Sources(run)
    for name, path in (extra or {}).items():
        sources.add(name, path)
    wrong = []
    for cell in cells({"sections": content["sections"], "drafts": content["drafts"]}):
        if "withheld" not in cell and not _stands(sources, cell):
            wrong.append(f"{cell['file']} {cell['at']}: {cell.get('value')!r}")
    return wrong


def _stands(sources: Sources, cell: Mapping[str, Any]) -> bool:
    try:
        if cell["at"] == LINES:
            return bool(count_lines(sources.path(cell["file"])) == cell["value"])
        found = resolve(sources.tree(cell["file"]), cell["at"])
        given = {key: cell[key] for key in BOUNDS if key in cell}
        return bool(
            given == {key: found[key] for key in given} if isinstance(found, Mapping) else given == {"value": found}
        )
    except (KeyError, IndexError, ValueError, TypeError, OSError):
        return False


def read_dossier(folder: Path) -> dict[str, Any]:
    """The content of a dossier that lies in a folder.

    Raises:
        ModelFileError: it is none.
    """
    content = read_json(folder / JSON)
    if not isinstance(content, dict) or content.get("kind") != KIND or content.get("format") != FORMAT:
        raise ModelFileError(
            f"{folder / JSON} is no dossier of this version", "Make it again with `fed-diffmic dossier RUN`."
        )
    return content
