"""Example images with what the guidance network looked at: for drawn data, and public data where it was asked for.

A run keeps them in ``examples.safetensors`` beside its predictions, so that its report can be written again. They are
images of patients where the data are: nothing is kept of a hospital's own table (``run.examples``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import load_tensors
from fed_diffmic.reporting import page, plots
from fed_diffmic.reporting.page import Html
from fed_diffmic.reporting.view import plain_names

FILE = "examples.safetensors"
PANEL = 1.35  # inches
PANELS = ("image", "where it responds", "regions looked at")
_BOX = "#56B4E9"
_NDIM = {"images": 4, "saliency": 3, "boxes": 3, "attention": 2, "probabilities": 2, "classes": 1}

Tensors = Mapping[str, np.ndarray]


def load_examples(run_dir: Path) -> Tensors | None:
    """The examples of a run, or none.

    Returns:
        ``images`` ``(N, 3, H, H)`` uint8; ``saliency`` ``(N, G, G)``, 0 to 1; ``boxes`` ``(N, K, 3)``, top, left and
        side as shares of the image's side, in the order in which they were found; ``attention`` ``(N, K)``;
        ``probabilities`` ``(N, C)`` of the run's final model; ``classes`` ``(N,)``, the class that each stands for.

    Raises:
        ModelFileError: the file does not hold that.
    """
    path = run_dir / FILE
    if not path.is_file():
        return None
    found = load_tensors(path)
    sizes = {len(value) for value in found.values()}
    if {name: value.ndim for name, value in found.items()} != _NDIM or len(sizes) != 1:
        raise ModelFileError(
            f"{path.name} holds no examples", "Put it back from a copy, or remove it: the report is written without."
        )
    return found


def examples_section(examples: Tensors | None, classes: Sequence[str]) -> Html:
    """The report's section; empty without examples."""
    if examples is None or not len(examples["images"]):
        return Html("")
    drawn = []
    for index in np.unique(examples["classes"]):
        rows = np.flatnonzero(examples["classes"] == index)
        said = "; ".join(_said(examples["probabilities"][row], classes) for row in rows)
        caption = f"Test images of class {_named(classes[index], classes)}. The model says: {said}."
        drawn.append(page.picture(plots.data_uri(example_plot(examples, rows)), caption))
    note = (
        "Left the image. In the middle, over it, the guidance network's saliency map of one class only, the one that "
        "the final model holds for most probable, from its lowest value in this image (dark) to its highest (bright). "
        "Right, by themselves, the regions cut out for a closer look, the heavier the line the more they weigh: they "
        "are sought in the maps of all classes together (model.region_map), so they may lie where the map in the "
        "middle is dark. Both show where the network responds, not why, and not that it is right to. The images are "
        "the first of each class in an order that has nothing to do with how well they were classified."
    )
    return page.section("What the model looks at", page.pictures(drawn), page.paragraph(note, "soft"))


def _named(name: str, classes: Sequence[str]) -> str:
    """A class with what its abbreviation stands for, where that is known."""
    plain = plain_names(classes).get(name)
    return f"{name} ({plain})" if plain else name


def _said(probabilities: np.ndarray, classes: Sequence[str]) -> str:
    best = int(probabilities.argmax())
    return f"{classes[best]} ({probabilities[best]:.2f})"


def example_plot(examples: Tensors, rows: Sequence[int] | np.ndarray) -> Figure:
    """Each image beside itself with saliency, and with regions, one triple below the other: one thing at a time."""
    drawing = Figure(figsize=(3 * PANEL + 0.15, (PANEL + 0.05) * len(rows) + 0.2), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots(len(rows), 3, squeeze=False)
    for ax, title in zip(axes[0], PANELS, strict=True):
        ax.set_title(title, fontsize=8)
    for (left, middle, right), row in zip(axes, rows, strict=True):
        pixels = examples["images"][row].transpose(1, 2, 0)
        for ax in (left, middle, right):
            ax.imshow(pixels, interpolation="nearest")
            ax.set_axis_off()
        _saliency(middle, examples["saliency"][row], len(pixels))
        _regions(right, examples["boxes"][row], examples["attention"][row], len(pixels))
    return drawing


def _saliency(ax: Axes, saliency: np.ndarray, side: int) -> None:
    extent = (-0.5, side - 0.5, side - 0.5, -0.5)
    ax.imshow(saliency, cmap="inferno", vmin=0, vmax=1, alpha=0.55, extent=extent, interpolation="bilinear")


def _regions(ax: Axes, boxes: np.ndarray, attention: np.ndarray, side: int) -> None:
    for (top, left, size), weight in zip(boxes * side, attention, strict=True):
        width = 0.6 + 2.4 * float(weight)
        ax.add_patch(Rectangle((left - 0.5, top - 0.5), size, size, fill=False, edgecolor=_BOX, linewidth=width))
