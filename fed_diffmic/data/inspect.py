"""``fed-diffmic data inspect``: what a data set holds, as a table on the terminal and as pictures.

Pictures: images of each class by site (``classes.png``), sizes of the original images (``sizes.png``) and a contact
sheet (``contact_sheet.png``). The contact sheet shows patients' images and the findings file names them: both are
written for their owner alone (0600).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.data.decode import FORMATS
from fed_diffmic.data.dicom.bounded import DECODERS
from fed_diffmic.data.dicom.reasons import UnusableError
from fed_diffmic.data.dicom.sources import read_file
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.manifest import OWN_GROUP, SPLITS, Manifest
from fed_diffmic.data.open import OpenDataset, open_dataset
from fed_diffmic.errors import MachineError
from fed_diffmic.files import atomic_write

Partitioner = Callable[[Manifest], Mapping[str, Manifest]]

FINDINGS_FILE = "findings.csv"
_SIZES_SAMPLED = 4000
_MOST_BYTES = 2**31  # of a file that is asked for its size
_SHEET_COLUMNS = 8
_SHEET_ROWS = 20
_UNKNOWN = "unknown"


def inspect(
    cfg: SimulateConfig, out_dir: Path, *, partition: Partitioner | None = None, console: Console | None = None
) -> int:
    """Open the data set, print what it holds, draw it into ``out_dir``.

    Args:
        cfg: ``dataset`` and ``model.image_side`` are used.
        out_dir: created if need be (0700).
        partition: divides the manifest over sites, for the counts by site; None: by institution.
        console: where to print; None: standard output.

    Returns:
        0, or 3 when an error was found (everything is printed and drawn all the same).

    Raises:
        DataError: nothing can be read at all.
        MachineError: no space, no permission.
    """
    console = console or Console()
    try:
        out_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot make {out_dir}: {error.strerror}", "Choose another folder.") from error
    data = open_dataset(cfg.dataset, cfg.model.image_side, findings_path=out_dir / FINDINGS_FILE, raise_errors=False)
    sites = dict(partition(data.manifest)) if partition else by_institution(data.manifest)
    what = "site" if partition else "institution"
    console.print(
        f"{data.manifest.name} ({data.manifest.task}): images by class and {what}", style="bold", highlight=False
    )
    console.print(class_table(data.manifest, sites, what))
    console.print("groups and split", style="bold")
    console.print(facts_table(data.manifest))
    print_findings(data.findings, out_dir / FINDINGS_FILE, console)
    for name, figure, private in (
        ("classes.png", draw_classes(data.manifest, sites, what), False),
        ("sizes.png", draw_sizes(data.manifest, cfg.model.image_side), False),
        ("contact_sheet.png", draw_contact_sheet(data, cfg.seed), True),
    ):
        _save(figure, out_dir / name, private)
        console.print(
            f"{out_dir / name}{' (shows images of patients: yours alone, do not share)' if private else ''}",
            soft_wrap=True,
        )
    return 3 if data.findings.errors else 0


def by_institution(manifest: Manifest) -> dict[str, Manifest]:
    """The rows of each institution, sorted by name; all under one name where none is known."""
    names = manifest.table["institution"].replace("", _UNKNOWN)
    return {name: manifest.subset((names == name).to_numpy()) for name in sorted(names.unique())}


def class_table(manifest: Manifest, sites: Mapping[str, Manifest], what: str) -> Table:
    """Images of each class at each site."""
    table = Table()
    table.add_column("class")
    for name in sites:
        table.add_column(Text(name), justify="right")
    table.add_column("all", justify="right", style="bold")
    counts = [part.class_counts() for part in sites.values()]
    for index, name in enumerate(manifest.classes):
        cells = [int(count[index]) for count in counts]
        table.add_row(
            Text(name),
            *(f"{cell:,}" for cell in cells),
            f"{sum(cells):,}",
            end_section=index == len(manifest.classes) - 1,
        )
    if manifest.task == "multilabel":
        bare = [int((part.labels.sum(axis=1) == 0).sum()) for part in sites.values()]
        table.add_row("none of them", *(f"{cell:,}" for cell in bare), f"{sum(bare):,}", end_section=True)
    sizes = [len(part) for part in sites.values()]
    table.add_row("images", *(f"{size:,}" for size in sizes), f"{sum(sizes):,}")
    groups = [part.table["group"].nunique() for part in sites.values()]
    table.add_row("groups", *(f"{group:,}" for group in groups), f"{manifest.table['group'].nunique():,}")
    return table


def facts_table(manifest: Manifest) -> Table:
    """Groups and split of the whole data set."""
    t = manifest.table
    sizes = t["group"].value_counts().to_numpy()
    known = int((~t["group"].str.startswith(OWN_GROUP)).sum())
    table = Table(show_header=False)
    table.add_row("images", f"{len(t):,}")
    table.add_row("groups (patients or lesions, never divided)", f"{len(sizes):,}")
    table.add_row("images whose group is known", f"{known:,}")
    table.add_row("images a group: mean, largest", f"{sizes.mean():.2f}, {sizes.max():,}")
    for split in SPLITS:
        count = int((t["split"] == split).sum())
        if count:
            table.add_row(f"split of the data set: {split}", f"{count:,}")
    if (t["split"] == "").all():
        table.add_row("split of the data set", "none: each site divides its own groups")
    return table


def print_findings(findings: Findings, path: Path, console: Console) -> None:
    """Every finding, without names, and where the names are."""
    if not len(findings):
        console.print("Nothing wrong was found.")
        return
    console.print("findings", style="bold")
    for item in [*findings.errors, *findings.warnings]:
        style = "bold red" if item.severity == "error" else "bold yellow"
        console.print(
            Text.assemble((f"  {item.severity} ", style), f"[{item.code}] {item.where}: {item.count:,}"),
            highlight=False,
            soft_wrap=True,
        )
        console.print(Padding(escape(item.message), (0, 0, 0, 6)), highlight=False)
    where = f"Every row and image concerned: {path} (names patients' images: yours alone)"
    console.print(where, soft_wrap=True, markup=False)


def draw_classes(manifest: Manifest, sites: Mapping[str, Manifest], what: str) -> Figure:
    """A matrix of images by class (rows) and site (columns): colour is the share within the site, number the count."""
    counts = np.stack([part.class_counts() for part in sites.values()], axis=1)
    totals = np.array([len(part) for part in sites.values()])
    share = counts / np.maximum(totals, 1)
    figure = Figure(
        figsize=(max(5.0, 2.6 + 1.25 * len(sites)), max(3.0, 1.6 + 0.42 * len(manifest.classes))), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=max(float(share.max()), 1e-9), aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        dark = share[row, column] > 0.55 * share.max()
        axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=9, color="white" if dark else "black")
    names = [f"{name}\n{total:,} images" for name, total in zip(sites, totals, strict=True)]
    axes.set_xticks(range(len(names)), names, rotation=0 if len(names) <= 6 else 90, fontsize=9)
    axes.set_yticks(range(len(manifest.classes)), manifest.classes)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{manifest.name}: images by class and {what}", loc="left", fontsize=11)
    figure.colorbar(image, ax=axes, label=f"share of the {what}'s images", shrink=0.85)
    return figure


def original_sizes(paths: np.ndarray) -> np.ndarray:
    """``(n, 2)`` width and height in pixels, from the files' headers; files that cannot be opened are passed over."""
    sizes = [size for size in map(_size_of, paths) if size is not None]
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def _size_of(path: str) -> tuple[int, int] | None:
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except UnidentifiedImageError:  # DICOM, or nothing
        try:
            answer, _ = DECODERS.ask({"what": "look"}, read_file(Path(path), _MOST_BYTES))
            facts = answer["look"]["facts"]
            return int(facts["columns"]), int(facts["rows"])
        except (UnusableError, ValueError):
            return None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def draw_sizes(manifest: Manifest, side: int) -> Figure:
    """Width against height of the original images; a circle's area grows with the number of images of that size."""
    paths = manifest.table["image"].to_numpy()
    if len(paths) > _SIZES_SAMPLED:
        paths = paths[np.linspace(0, len(paths) - 1, _SIZES_SAMPLED).astype(np.int64)]
    sizes, counts = np.unique(original_sizes(paths), axis=0, return_counts=True)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(
        sizes[:, 0],
        sizes[:, 1],
        s=12 + 400 * counts / counts.max(initial=1),
        alpha=0.45,
        edgecolor="none",
        color="tab:blue",
    )
    for index in np.argsort(-counts, kind="stable")[:3]:
        width, height = sizes[index]
        axes.annotate(
            f"{width} x {height}: {counts[index]:,}",
            (width, height),
            xytext=(-14, -4),
            textcoords="offset points",
            ha="right",
            fontsize=9,
        )
    top = 1.15 * max(float(sizes.max(initial=0)), float(side))
    axes.plot([0, top], [0, top], color="0.8", linewidth=1, zorder=0)
    axes.plot(
        [0, side, side],
        [side, side, 0],
        color="tab:red",
        linewidth=1,
        linestyle="--",
        label=f"model's input, {side} px",
    )
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="width, pixels", ylabel="height, pixels", aspect="equal")
    count = int(counts.sum())
    sampled = "" if len(paths) == len(manifest) else ", evenly sampled"
    of = f"{count:,}" + ("" if count == len(manifest) else f" of {len(manifest):,}{sampled}")
    axes.set_title(f"{manifest.name}: sizes of the original images ({of})", loc="left", fontsize=11)
    axes.legend(loc="upper left", frameon=False)
    return figure


def draw_contact_sheet(data: OpenDataset, seed: int) -> Figure:
    """One row a class, images drawn at random (seeded) from different groups, as the model sees them (before flips)."""
    manifest, side = data.manifest, data.cache.image_side
    rng = np.random.default_rng(seed)
    names = manifest.classes[:_SHEET_ROWS]
    gap = max(2, side // 28)
    step = side + gap
    sheet = np.full((step * len(names) - gap, step * _SHEET_COLUMNS - gap, 3), 255, dtype=np.uint8)
    counts = manifest.class_counts()
    for row in range(len(names)):
        index = _examples(manifest, row, rng)
        images = data.cache.images(manifest.table["row"].to_numpy()[index]).numpy().transpose(0, 2, 3, 1)
        for column, image in enumerate(images):
            sheet[row * step : row * step + side, column * step : column * step + side] = image
    figure = Figure(figsize=(1.25 * _SHEET_COLUMNS + 1.8, 1.25 * len(names) + 0.5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="antialiased")
    labels = [f"{name.replace('_', ' ')}\n{count:,} images" for name, count in zip(names, counts, strict=False)]
    axes.set_yticks([row * step + side / 2 for row in range(len(names))], labels, fontsize=9)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    cut = f", first {_SHEET_ROWS} of {len(manifest.classes)} classes" if len(manifest.classes) > _SHEET_ROWS else ""
    title = f"{manifest.name}{cut}: images as the model gets them, {side} px. Images of patients: do not share."
    axes.set_title(title, loc="left", fontsize=10)
    return figure


def _examples(manifest: Manifest, index: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of up to a row's worth of images of a class, from as many groups as there are."""
    labels = manifest.labels
    carries = np.flatnonzero(labels[:, index] > 0 if labels.ndim == 2 else labels == index)
    order = rng.permutation(carries)
    groups = manifest.table["group"].to_numpy()[order]
    _, first = np.unique(groups.astype(str), return_index=True)
    fresh = np.sort(first)
    rest = np.setdiff1d(np.arange(len(order)), fresh)
    return order[np.concatenate([fresh, rest])[:_SHEET_COLUMNS]]


def _save(figure: Figure, path: Path, private: bool) -> None:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    atomic_write(path, stream.getvalue(), mode=0o600 if private else 0o644)
