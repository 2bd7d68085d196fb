"""``fed-diffmic evaluate`` and ``predict``: a finished run's model in use."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed_diffmic.errors import DataError, MachineError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fed_diffmic.commands import Add
    from fed_diffmic.inference.predictions import Predictions
    from fed_diffmic.inference.predictor import Predictor

_NAME_WIDTH = 20  # characters that an image's name has at least, before it is folded

_EVALUATE = """Figures of a run's final model on a table of images: image,label[,patient_id].

  fed-diffmic evaluate --run DIR --manifest FILE [--json OUT] [--csv OUT] [dataset.on_bad_image=skip]

Decoded copies of the images go to the run's own dataset.cache_dir, or to the one that is given here; `fed-diffmic data
purge dataset.cache_dir=...` removes them.
"""
_PREDICT = """Class probabilities of images by a run's final model, and the class that its rule decides.

  fed-diffmic predict --run DIR IMAGE_OR_FOLDER... [--json OUT] [--csv OUT]

Of a folder every image below it is taken. Images that cannot be read are named, the others are predicted, and the exit
code is 3.
"""


def register(add: Add) -> None:
    """Add ``evaluate`` and ``predict``."""
    evaluate = add("evaluate", _evaluate, "figures of a run's final model on a table of images")
    predict = add("predict", _predict, "class probabilities of images by a run's final model")
    evaluate.description, predict.description = _EVALUATE, _PREDICT
    for command in (evaluate, predict):
        command.add_argument("--run", required=True, type=Path, dest="folder", metavar="DIR", help="folder of the run")
        command.add_argument("--site", metavar="NAME", help="whose own part of the model to use (fedbn, ditto)")
        command.add_argument(
            "--key", type=Path, metavar="PUB", help="the coordinator's public key: it must have signed"
        )
    evaluate.add_argument(
        "--manifest", required=True, type=Path, metavar="FILE", help="table: image,label[,patient_id]"
    )
    what = {evaluate: "the figures", predict: "the predictions, with the images' names (0600)"}
    for command, about in what.items():
        command.add_argument("--json", metavar="OUT", help=f"write {about} as JSON to this file; - is the terminal")
        command.add_argument("--csv", metavar="OUT", help=f"write {about} as CSV to this file; - is the terminal")
    evaluate.add_argument(
        "settings", nargs="*", metavar="key=value", help="dataset.cache_dir=DIR, dataset.on_bad_image=skip"
    )
    predict.add_argument("--batch", type=int, default=64, metavar="N", help="images at a time, 1 to 4096 (64)")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of images")


def _evaluate(arguments: argparse.Namespace, hint: list[str]) -> int:
    _check_common(arguments)
    manifest: Path = arguments.manifest
    if not manifest.is_file():
        raise UsageError(
            f"--manifest {manifest}: there is no such file", "A relative path starts at the current folder."
        )
    from fed_diffmic.inference.evaluate import evaluate_table, figures_csv, table_settings

    settings = table_settings(arguments.folder, arguments.settings)
    predictor = _predictor(arguments)
    with _enough_memory("End other programs, or use a machine with more memory: the model sets the images' size."):
        found = evaluate_table(predictor, manifest, settings)
    result = {"run": arguments.folder.name, **found}
    _write(arguments, json.dumps(result, indent=2, allow_nan=False) + "\n", lambda: figures_csv(result["figures"]))
    console = _console(arguments)
    _print_figures(console, result)
    console.print(f"Decoded copies of the images are in {settings.folder}", markup=False, highlight=False)
    return 0


def _predict(arguments: argparse.Namespace, hint: list[str]) -> int:
    _check_common(arguments)
    from fed_diffmic.inference.images import image_files
    from fed_diffmic.inference.predictions import predict_files

    files = image_files(arguments.images)
    predictor = _predictor(arguments)
    with _enough_memory("Give a smaller --batch, or end other programs."):
        found = predict_files(predictor, files, arguments.batch)
    text = json.dumps({"run": arguments.folder.name, **found.to_json()}, indent=2, allow_nan=False) + "\n"
    _write(arguments, text, found.to_csv)
    _print_predictions(_console(arguments), found)
    for bad in found.unreadable:
        print(f"not predicted: {shown(bad.name)}: {bad.words}", file=sys.stderr)
    if found.unreadable:
        raise DataError(
            f"{len(found.unreadable)} of {len(files)} images cannot be read; they are named above",
            "Give readable JPEG or PNG files in their place. What was said of the others holds.",
        )
    return 0


def _check_common(arguments: argparse.Namespace) -> None:
    if not arguments.folder.is_dir():
        raise UsageError(f"--run {arguments.folder}: there is no such folder", "Give the folder of a finished run.")
    for name in ("json", "csv"):
        target = getattr(arguments, name)
        if target is not None and target != "-" and not Path(target).absolute().parent.is_dir():
            raise UsageError(f"--{name} {target}: its folder does not exist", "Make that folder.")
    if arguments.json == arguments.csv == "-":
        raise UsageError("--json - and --csv - would be mixed", "Write one of them to a file.")


def _predictor(arguments: argparse.Namespace) -> Predictor:
    from fed_diffmic.inference.predictor import final_predictor
    from fed_diffmic.provision.keys import load_public

    key = None if arguments.key is None else load_public(arguments.key)
    return final_predictor(arguments.folder, arguments.site, key)


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


def _console(arguments: argparse.Namespace) -> Console:
    """Where tables are printed: beside a result that is written to standard output."""
    from rich.console import Console

    from fed_diffmic.files import is_output

    taken = any(target is not None and is_output(target) for target in (arguments.json, arguments.csv))
    return Console(stderr=taken)


def shown(name: str) -> str:
    """A name as one line that no terminal takes for a command: what is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _table(columns: list[str], title: str | None = None) -> Table:
    """A table whose words are printed as they are, square brackets too, and folded rather than cut."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None if title is None else Text(title))
    for name in columns:
        table.add_column(Text(shown(name)), overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells))


def _print_figures(console: Console, result: dict[str, Any]) -> None:
    from fed_diffmic.training.metrics import METRICS

    figures = result["figures"]
    table = _table(["figure", "value", "95 % interval"], f"{result['n']} images")
    for metric in METRICS:
        cell = figures[metric]
        if cell["value"] is not None:
            interval = "" if cell["low"] is None else f"{cell['low']:.3f} to {cell['high']:.3f}"
            _row(table, metric, f"{cell['value']:.3f}", interval)
    console.print(table)
    for note in result["notes"]:
        console.print(note, markup=False, highlight=False)
    absent = [shown(name) for name, cell in figures["per_class"].items() if not cell["positives"]]
    if absent:
        console.print(f"Absent from this table, and from every macro figure: {', '.join(absent)}", markup=False)
    console.print(result["notice"], markup=False)


def _print_predictions(console: Console, found: Predictions) -> None:
    """One column a class where they fit beside the names, else one line a class."""
    from rich.cells import cell_len

    from fed_diffmic.inference.predictor import NOTICE

    classes = [shown(name) for name in found.classes]
    decided = [", ".join(map(shown, names)) or "none" for names in found.decided_names()]
    widths = [_NAME_WIDTH, max(map(cell_len, ["decided", *decided])), *(max(5, cell_len(name)) for name in classes)]
    rows = zip(found.names, decided, found.probabilities, strict=True)
    if sum(widths) + 3 * len(widths) + 1 <= console.width:
        table = _table(["image", "decided", *classes])
        for column in table.columns[1:]:
            column.no_wrap = True
        for name, said, row in rows:
            _row(table, shown(name), said, *(f"{p:.3f}" for p in row))
    else:
        table = _table(["image", "decided", "probability"])
        table.show_lines = True
        for name, said, row in rows:
            _row(table, shown(name), said, "\n".join(f"{p:.3f} {c}" for p, c in zip(row, classes, strict=True)))
    if len(found):
        console.print(table)
    console.print(NOTICE, markup=False)
