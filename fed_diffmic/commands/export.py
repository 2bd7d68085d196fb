"""``fed-diffmic export``: a finished run's model for other programs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from fed_diffmic.commands import Add

_ABOUT = """Write a finished run's model as one ONNX graph: pixels in, calibrated probabilities out.

  fed-diffmic export --run DIR --key COORDINATOR.pub --out model.onnx

The normalisation, the calibration and, of a model with a diffusion head, the sampler's steps are inside. What
onnxruntime makes of the graph is held against this program before anything is written. Beside it FILE.json says what
it is and how an image must come, and OUT.provenance.json who signed for the weights. Needs the extra onnx.
"""
_DIFFERENCE = "largest_difference"
"""A field that every card of an export has, and nothing else of a run."""


def register(add: Add) -> None:
    """Add ``export``."""
    export = add("export", _export, "a run's model as one ONNX graph")
    export.description = _ABOUT
    export.add_argument("--run", required=True, type=Path, dest="folder", metavar="DIR", help="folder of the run")
    export.add_argument("--key", type=Path, metavar="PUB", help="the coordinator's public key: it must have signed")
    export.add_argument("--site", metavar="NAME", help="whose own part of the model to use (fedbn, ditto)")
    export.add_argument("--format", choices=("onnx",), default="onnx", help="onnx")
    export.add_argument("--out", required=True, type=Path, metavar="FILE", help="the graph, ending in .onnx")


def _check(arguments: argparse.Namespace) -> None:
    """Refuse, before minutes of work, what could not be written or would be written over.

    Raises:
        UsageError, MachineError: says what and where.
    """
    out: Path = arguments.out
    if not arguments.folder.is_dir():
        raise UsageError(f"--run {arguments.folder}: there is no such folder", "Give the folder of a finished run.")
    if out.suffix != ".onnx":
        raise UsageError(
            f"--out {out} does not end in .onnx", "Name the file with that ending: programs tell the format by it."
        )
    from fed_diffmic.commands.outputs import check_output, check_outside, check_spares
    from fed_diffmic.release.provenance import PROVENANCE

    check_output("--out", out)
    check_outside("--out", out, arguments.folder)
    check_spares("--out", out, [("--key", arguments.key)])
    card = _beside(out, ".json")
    for path in (card, _beside(out, f".{PROVENANCE}")):
        check_output("a file beside --out:", path)
    if card.exists() and not _is_card(card):
        raise UsageError(
            f"--out {out}: the graph's card would be written over {card}, which is no card of an export",
            "Name the graph otherwise: its card has its name.",
        )


def _is_card(path: Path) -> bool:
    """Whether a file is the card of an earlier export."""
    from fed_diffmic.files import read_json

    try:
        value = read_json(path)
    except ModelFileError:
        return False
    return isinstance(value, dict) and _DIFFERENCE in value


def _export(arguments: argparse.Namespace, hint: list[str]) -> int:
    _check(arguments)
    out: Path = arguments.out
    from fed_diffmic.files import atomic_write
    from fed_diffmic.inference.card import model_card
    from fed_diffmic.inference.export import export_onnx, needs_starts
    from fed_diffmic.inference.finished import predictor_of
    from fed_diffmic.provision.keys import load_public
    from fed_diffmic.release.final import load_final
    from fed_diffmic.release.made_at import MIXTURE
    from fed_diffmic.release.provenance import PROVENANCE

    final = load_final(arguments.folder, public_key=None if arguments.key is None else load_public(arguments.key))
    if final.made_at is not None and final.made_at.kind == MIXTURE:
        raise UsageError(
            "a mixture is two models, and ONNX takes one",
            "Export the run's model that came, and the folder `own` inside this one, each by itself.",
        )
    predictor = predictor_of(final, arguments.folder, arguments.site)
    card = model_card(final)
    spec, side = predictor.spec, predictor.spec.model.image_side
    card |= {
        "input": {
            "pixels": f"uint8 (1, 3, {side}, {side}), red green blue, the whole image stretched to "
            "the square (bicubic, antialiased); normalised inside",
            **({"starts": f"float32 (1, {spec.model.sampling_starts}, 2, {spec.num_classes}), uniform in [0, 1)"}
               if needs_starts(predictor) else {}),
        },
        "output": {"probabilities": "float32 (1, C), calibrated, in the order of classes"},
        "calibration": predictor.fitted.to_json(),
        "decision": spec.stages.decision,
        "own_part_of": arguments.site or "",
    }  # fmt: skip
    found = export_onnx(predictor, out, card)
    card[_DIFFERENCE] = found.difference
    atomic_write(_beside(out, ".json"), (json.dumps(card, indent=2, allow_nan=False) + "\n").encode())
    signed, copy = arguments.folder / "final" / PROVENANCE, _beside(out, f".{PROVENANCE}")
    if signed.exists():
        atomic_write(copy, signed.read_bytes())
    else:
        copy.unlink(missing_ok=True)  # of a model that was written here before
    print(f"{out}: onnxruntime agrees with this program to {found.difference:.1e}; the model is {final.origin}")
    print(card["notice"])
    return 0


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(out.stem + ending)
