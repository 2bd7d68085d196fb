"""Tables and images that are refused, or cannot be divided: with what the message says done to them, they are read.

The rows are in ``data.toml``. A person has a folder ``data`` with 24 images and a table, changes it as the message
says, and opens it again: as a simulation does, with sites and splits, or as a site does.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import cycle, islice
from pathlib import Path

import pytest

from client.source import SiteSource
from fed_diffmic.config.compose import compose, compose_site
from fed_diffmic.errors import FedDiffmicError
from simulations.sites import build_sites, check_named_sites
from tests.data.published import write_image, write_table
from tests.remedies.places import table
from tests.remedies.test_settings import changed

IMAGES = 24
SPLITS = {"t": "train", "v": "val", "T": "test"}
SIMULATE = "model.image_side=32 model.crop=8 partition=iid partition.sites=2 partition.min_images=2 dataset.cache_dir=c"
SITE = "site.name=here site.folder=here dataset.cache_dir=c"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose pixels all differ."""
    folder = tmp_path_factory.mktemp("drawn")
    for number in range(IMAGES):
        write_image(folder / f"{number:02d}.png", number, side=32)
    return folder


def tabulate(folder: Path, columns: str) -> None:
    """A table of the images whose columns repeat the letters given for them; ``-``: an empty field."""
    names, letters = zip(*(column.split("=") for column in columns.split()), strict=True)
    rows = zip(*(islice(cycle(of), IMAGES) for of in letters), strict=True)
    write_table(
        folder / "manifest.csv",
        ["image", *names],
        [
            [
                f"{n:02d}.png",
                *("" if v == "-" else SPLITS.get(v, v) if c == "split" else v for c, v in zip(names, row, strict=True)),
            ]
            for n, row in enumerate(rows)
        ],
    )


def opened(whose: str, settings: list[str]) -> None:
    """Read it as a simulation or a site does before it trains."""
    if whose == "site":
        SiteSource(compose_site(None, settings)).read(32)
        return
    config = compose(None, settings)
    check_named_sites(config, build_sites(config, Path("run")).sites)


COLUMNS = ("whose", "table", "first", "given", "read", "mended", "do", "put")


@pytest.mark.parametrize(COLUMNS, table("data", *COLUMNS))
def test_data_are_read_when_done_to_as_the_message_says(
    whose, table, first, given, read, mended, do, put, drawn, elsewhere
) -> None:
    shutil.copytree(drawn, elsewhere / "data")
    (elsewhere / "empty").mkdir()
    (elsewhere / "here").mkdir()
    tabulate(elsewhere / "data", table or "label=ab patient_id=abcdefghijkl")
    subprocess.run(first, shell=True, check=True)
    basis = f"dataset=table dataset.root=data {SITE if whose == 'site' else SIMULATE}"
    settings = changed(basis.split(), given)
    with pytest.raises(FedDiffmicError) as caught:
        opened(whose, settings)
    found = re.search(read, str(caught.value), re.DOTALL)
    assert found is not None, str(caught.value)
    assert mended or do or put
    if mended:
        tabulate(elsewhere / "data", mended)
    subprocess.run(do.format(*found.groups()), shell=True, check=True)
    opened(whose, changed(settings, put.format(*found.groups())))
