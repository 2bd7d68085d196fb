"""``fed-diffmic evaluate``, ``predict`` and ``reference``: a finished run's model in use."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed_diffmic.errors import DataError, MachineError, UsageError
from fed_diffmic.inputs import check_file

if TYPE_CHECKING:
    from fed_diffmic.commands import Add
    from fed_diffmic.inference.predictions import Predictions
    from fed_diffmic.inference.predictor import Predictor

_EVALUATE = """Metrics of a run's final model on a table of images: image,label[,patient_id].

  fed-diffmic evaluate --run DIR --manifest FILE [--json OUT] [--csv OUT] [dataset.on_bad_image=skip]

Decoded copies of the images go to the run's own dataset.cache_dir, or to the one that is given here; `fed-diffmic data
purge dataset.cache_dir=...` removes them.
"""
_PREDICT = """Class probabilities of images by a run's final model, what its rule decides, and how sure that is.

  fed-diffmic predict --run DIR IMAGE_OR_FOLDER_OR_TABLE... [--level 0.9] [--refer 0.15] [--json OUT] [--csv OUT]
  fed-diffmic predict --run DIR DICOM_FOLDER --dicom-sr OUT
  find DIR -name '*.png' | fed-diffmic predict --run DIR - --csv OUT

Of a folder every image below it is taken, DICOM files too, of a table (.csv, .tsv) its column image. Images that cannot
be read are named, the others are predicted, and the exit code is 3.
"""
_REFERENCE = """What a site's own labelled images say of a model: its own prediction sets, and what they look like.

  fed-diffmic reference --run DIR --manifest FILE --out FILE
  fed-diffmic predict --run DIR --reference FILE IMAGE...

The images must be none that the model was trained on, some hundreds of many patients. The file stays here (0600).
"""


def register(add: Add) -> None:
    """Add ``evaluate``, ``predict`` and ``reference``."""
    evaluate = add("evaluate", _evaluate, "metrics of a run's final model on a table of images")
    predict = add("predict", _predict, "class probabilities of images by a run's final model")
    reference = add("reference", _reference, "prediction sets and warnings from a site's own labelled images")
    evaluate.description, predict.description, reference.description = _EVALUATE, _PREDICT, _REFERENCE
    for command in (evaluate, predict, reference):
        command.add_argument("--run", required=True, type=Path, dest="folder", metavar="DIR", help="folder of the run")
        command.add_argument("--site", metavar="NAME", help="whose own part of the model to use (fedbn, ditto)")
        command.add_argument(
            "--key", type=Path, metavar="PUB", help="the coordinator's public key: it must have signed"
        )
        command.add_argument(
            "--precision",
            choices=("float32", "bfloat16"),
            default="float32",
            help="compute in float32, as the model was judged, or in bfloat16, where that is faster",
        )
    for command in (evaluate, reference):
        command.add_argument(
            "--manifest", required=True, type=Path, metavar="FILE", help="table: image,label[,patient_id]"
        )
    reference.add_argument("--out", required=True, type=Path, metavar="FILE", help="write it to this file (0600)")
    what = {evaluate: "the metrics", predict: "the predictions, with the images' names (0600)"}
    for command, about in what.items():
        command.add_argument("--json", metavar="OUT", help=f"write {about} as JSON to this file; - is the terminal")
        command.add_argument("--csv", metavar="OUT", help=f"write {about} as CSV to this file; - is the terminal")
    for command in (evaluate, reference):
        command.add_argument(
            "settings", nargs="*", metavar="key=value", help="dataset.cache_dir=DIR, dataset.on_bad_image=skip"
        )
    predict.add_argument(
        "--dicom-sr",
        type=Path,
        metavar="OUT",
        help="write a DICOM structured report of each DICOM image to this folder",
    )
    predict.add_argument("--batch", type=int, default=64, metavar="N", help="images at a time, 1 to 4096 (64)")
    predict.add_argument("--level", type=float, default=0.9, metavar="L", help="of prediction sets: 0.8 0.9 0.95 0.99")
    predict.add_argument("--method", metavar="M", help="of prediction sets: lac (smallest, the default) or aps")
    predict.add_argument("--overall", action="store_true", help="smaller sets, in which a rare class may never be")
    predict.add_argument("--refer", type=float, metavar="S", help="refer the most uncertain: 0.05 0.1 0.15 0.2 0.3 0.5")
    predict.add_argument("--reference", type=Path, metavar="FILE", help="of `fed-diffmic reference`: sets and warnings")
    predict.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders, tables, or - (names on stdin)"
    )


def _evaluate(arguments: argparse.Namespace, hint: list[str]) -> int:
    _check_common(arguments)
    manifest: Path = arguments.manifest
    check_file("--manifest", manifest)
    from fed_diffmic.commands.use_print import console, print_metrics
    from fed_diffmic.inference.evaluate import evaluate_table, metrics_csv, table_settings

    settings = table_settings(arguments.folder, arguments.settings)
    predictor = _predictor(arguments)
    with _enough_memory("End other programs, or use a machine with more memory: the model sets the images' size."):
        found = evaluate_table(predictor, manifest, settings)
    result = {"run": arguments.folder.name, **found}
    _write(arguments, json.dumps(result, indent=2, allow_nan=False) + "\n", lambda: metrics_csv(result["figures"]))
    out = console(_taken(arguments))
    print_metrics(out, result)
    out.print(f"Decoded copies of the images are in {settings.folder}", markup=False, highlight=False)
    return 0


def _predict(arguments: argparse.Namespace, hint: list[str]) -> int:
    _check_common(arguments)
    from fed_diffmic.commands.outputs import check_output_folder
    from fed_diffmic.commands.use_print import console, print_predictions, progress_bar, shown
    from fed_diffmic.inference.images import STDIN, begins_as_dicom, image_files
    from fed_diffmic.inference.predictions import predict_files
    from fed_diffmic.inference.reference import load_reference
    from fed_diffmic.inference.sure import Wanted

    wanted = Wanted(arguments.level, arguments.method, not arguments.overall, arguments.refer)
    files = image_files(
        arguments.images,
        sys.stdin if STDIN in arguments.images else (),
        lambda text: print(shown(text), file=sys.stderr),
    )
    _check_spared(arguments, files)
    if arguments.dicom_sr is not None:
        from fed_diffmic.inference.structured import check_installed

        check_installed()
        check_output_folder("--dicom-sr", arguments.dicom_sr)
    predictor = _predictor(arguments)
    own = None if arguments.reference is None else load_reference(arguments.reference, predictor)
    with _enough_memory("Give a smaller --batch, or end other programs."), progress_bar(len(files), 64) as progress:
        found = predict_files(predictor, files, arguments.batch, wanted=wanted, reference=own, progress=progress)
    text = json.dumps({"run": arguments.folder.name, **found.to_json()}, indent=2, allow_nan=False) + "\n"
    _write(arguments, text, found.to_csv)
    print_predictions(console(_taken(arguments)), found)
    if arguments.dicom_sr is not None:
        _write_reports(arguments, predictor, found)
    dicom = sum(map(begins_as_dicom, found.names))
    if dicom:
        which = "one was looked at, the one that its header names or the middle one"
        print(f"{dicom} of the images are DICOM: of a file with several frames {which}.", file=sys.stderr)
    for bad in found.unreadable:
        print(f"not predicted: {shown(bad.name)}: {bad.words}", file=sys.stderr)
    if found.unreadable:
        raise DataError(
            f"{len(found.unreadable)} of {len(files)} images cannot be read; they are named above",
            "Give readable JPEG, PNG or DICOM files in their place. What was said of the others holds.",
        )
    return 0


def _reference(arguments: argparse.Namespace, hint: list[str]) -> int:
    _check_common(arguments)
    check_file("--manifest", arguments.manifest)
    import numpy as np

    from fed_diffmic.commands.use_print import console, shown
    from fed_diffmic.inference.evaluate import table_settings
    from fed_diffmic.inference.predictor import NOTICE
    from fed_diffmic.inference.reference import make_reference
    from fed_diffmic.inference.sure import Wanted, sure

    settings = table_settings(arguments.folder, arguments.settings)
    predictor = _predictor(arguments)
    with _enough_memory("End other programs, or use a machine with more memory: the model sets the images' size."):
        found = make_reference(predictor, arguments.manifest, settings)
    found.save(arguments.out)
    spec, usual = predictor.spec, found.familiar
    said = sure(np.zeros((0, spec.num_classes)), {}, spec.classes, spec.task, found.sureness, Wanted()).sentences()
    said.append(f"An image is warned of that lies farther from the classes than {usual.level:.0%} of these images.")
    for sentence in [*said, f"Written to {shown(str(arguments.out))}; it stays at this site.", NOTICE]:
        console(False).print(sentence, markup=False, highlight=False)
    return 0


def _write_reports(arguments: argparse.Namespace, predictor: Predictor, found: Predictions) -> None:
    """A structured report of each DICOM image; what was written and left is said."""
    from fed_diffmic.commands.use_print import console
    from fed_diffmic.inference.structured import Author, write_reports
    from fed_diffmic.reporting.view import plain_names

    names = plain_names(found.classes, found.plain)
    author = Author(predictor.spec.run_id, predictor.digest, predictor.signed_by, names)
    for sentence in write_reports(arguments.dicom_sr, found, author).sentences(arguments.dicom_sr):
        console(_taken(arguments)).print(sentence, markup=False, highlight=False)


def _taken(arguments: argparse.Namespace) -> bool:
    """Whether a result is written to standard output."""
    from fed_diffmic.files import is_output

    return any(target is not None and is_output(target) for target in (arguments.json, arguments.csv))


def _check_common(arguments: argparse.Namespace) -> None:
    if not arguments.folder.is_dir():
        raise UsageError(f"--run {arguments.folder}: there is no such folder", "Give the folder of a finished run.")
    from fed_diffmic.commands.outputs import check_output, check_outside
    from fed_diffmic.config.folders import RUN_MARKS

    for option, target in _outputs(arguments):
        check_output(option, target)
        check_outside(option, target, arguments.folder, ("final", *RUN_MARKS))
    _check_spared(arguments, getattr(arguments, "images", ()))
    as_json = getattr(arguments, "json", None)
    if as_json is not None and as_json == arguments.csv:
        raise UsageError(f"--json {as_json} and --csv {as_json} would be mixed", "Write one of them to another file.")


def _outputs(arguments: argparse.Namespace) -> list[tuple[str, str | Path]]:
    """The files that were asked for, each with its option."""
    given = {f"--{name}": getattr(arguments, name, None) for name in ("json", "csv", "out")}
    return [(option, target) for option, target in given.items() if target is not None]


def _check_spared(arguments: argparse.Namespace, images: Iterable[str]) -> None:
    """Refuse to write over what was named to be read, or over an image or a table of ``images``."""
    from fed_diffmic.commands.outputs import check_spares

    named = [(f"--{name}", getattr(arguments, name, None)) for name in ("manifest", "reference", "key")]
    for option, target in _outputs(arguments):
        check_spares(option, target, [*named, *(("an image or table to predict", image) for image in images)])


def _predictor(arguments: argparse.Namespace) -> Predictor:
    from fed_diffmic.inference.finished import final_predictor
    from fed_diffmic.provision.keys import load_public

    key = None if arguments.key is None else load_public(arguments.key)
    return final_predictor(arguments.folder, arguments.site, key, precision=arguments.precision)


@contextmanager
def _enough_memory(remedy: str) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise MachineError("out of memory", remedy) from error


def _write(arguments: argparse.Namespace, as_json: str, as_csv: Any) -> None:
    """Write what was asked for; images may be named in it, so that its owner alone may read it."""
    from fed_diffmic.files import write_out

    if arguments.json is not None:
        write_out(arguments.json, as_json.encode(), mode=0o600)
    if arguments.csv is not None:
        write_out(arguments.csv, as_csv().encode(errors="backslashreplace"), mode=0o600)
