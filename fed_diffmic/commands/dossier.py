"""``fed-diffmic dossier``: what is known of a finished run, for a board, a data protection officer, an authority."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.commands.provision_passphrase import add_passphrase
from fed_diffmic.errors import ModelFileError, UsageError
from fed_diffmic.inputs import check_file

if TYPE_CHECKING:
    from fed_diffmic.commands import Add
    from fed_diffmic.provision.keys import PublicKey

_ABOUT = """Write the dossier of a finished run, or verify one.

  fed-diffmic dossier RUN [--out DIR] [--key coordinator.pub] [--sign KEY] [--sbom FILE]
  fed-diffmic dossier DIR --verify [--key coordinator.pub] [--against RUN]

Model card, statement on each site's data, privacy, evaluation, calibration and coverage, threats and what was tested
against them, provenance, software; drafts of a data protection impact assessment and of technical documentation. Every
number comes from a file of the run, which is named; what is not known is said. With --against, the numbers of a dossier
are looked up again in the run that it is about.
"""


def register(add: Add) -> None:
    """Add ``dossier``."""
    dossier = add("dossier", _dossier, "papers of a finished run: model card, data, privacy, evaluation; signed")
    dossier.description = _ABOUT
    dossier.add_argument("folder", type=Path, metavar="RUN", help="folder of the run; with --verify: of the dossier")
    dossier.add_argument("--out", type=Path, metavar="DIR", help="folder of the dossier (RUN/dossier)")
    dossier.add_argument("--key", type=Path, metavar="PUB", help="the coordinator's public key: it must have signed")
    dossier.add_argument(
        "--sign", type=Path, metavar="KEY", help="private key that signs (that of the run, if readable)"
    )
    add_passphrase(dossier, "opens the key of --sign, if it is locked")
    dossier.add_argument(
        "--sbom", type=Path, metavar="FILE", help="bill of materials (RUN/sbom.cdx.json, if it is there)"
    )
    about = "counts of fewer images are kept back (10)"
    dossier.add_argument("--least", type=int, default=10, metavar="N", help=about)
    dossier.add_argument("--verify", action="store_true", help="verify the dossier in this folder")
    dossier.add_argument("--against", type=Path, metavar="RUN", help="with --verify: look every number up in that run")


def _dossier(arguments: argparse.Namespace, hint: list[str]) -> int:
    _check(arguments)
    from fed_diffmic.provision.keys import load_public

    key = None if arguments.key is None else load_public(arguments.key)
    if arguments.verify:
        return _verify(arguments.folder, arguments.against, key)
    from fed_diffmic.provision.locking import load_either
    from fed_diffmic.release.dossier.write import write_dossier
    from fed_diffmic.release.pinned import signing_key

    given = arguments.sign
    signer = signing_key(arguments.folder) if given is None else load_either(given, arguments.passphrase_file)
    out = arguments.out or arguments.folder / "dossier"
    made = write_dossier(
        arguments.folder, out, public_key=key, signer=signer, sbom=arguments.sbom, least=arguments.least
    )
    for name in made.files:
        print(made.folder / name)
    if not made.signed:
        print("Nobody signed it: give --sign KEY, or make it where the coordinator's key is.")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if not arguments.folder.is_dir():
        raise UsageError(f"{arguments.folder}: there is no such folder", "Name the folder of a finished run.")
    making = [name for name in ("out", "sign", "sbom", "passphrase_file") if getattr(arguments, name) is not None]
    if arguments.verify and making:
        raise UsageError(f"--{making[0].replace('_', '-')} does not go with --verify", "Leave it out.")
    if arguments.against is not None and not arguments.verify:
        raise UsageError("--against is for --verify", "Add --verify.")
    if arguments.against is not None and not arguments.against.is_dir():
        raise UsageError(f"--against {arguments.against}: there is no such folder", "Name the folder of the run.")
    if arguments.sbom is not None:
        check_file("--sbom", arguments.sbom, "`make sbom` writes dist/sbom.cdx.json.")
    if not 1 <= arguments.least <= 1_000_000:
        raise UsageError(f"--least {arguments.least} is not allowed", "Give a number from 1 to 1000000.")


def _verify(folder: Path, run: Path | None, key: PublicKey | None) -> int:
    from fed_diffmic.release.dossier.chain import SBOM
    from fed_diffmic.release.dossier.write import read_dossier, unsourced, verify_dossier

    statement, signed_by = verify_dossier(folder, key)
    print(
        f"The dossier of {statement['run']} is whole: {len(statement['files'])} files, signed by the key {signed_by}."
    )
    if key is None:
        print("Whether that is the coordinator's key was not checked: give --key.")
    if run is None:
        return 0
    extra = {SBOM: folder / SBOM} if (folder / SBOM).is_file() else {}
    wrong = unsourced(read_dossier(folder), run, extra)
    for line in wrong[:20]:
        print(f"not in the run's files: {line}")
    print(f"numbers and facts that do not stand in the files of {run}: {len(wrong) or 'none'}")
    return ModelFileError.exit_code if wrong else 0
