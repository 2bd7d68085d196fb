"""A small experiment on drawn images: two seeds, three methods, seconds a cell."""

from pathlib import Path

import pytest

TEXT = """about: a small comparison
settings:
  - stages=linear
  - stages.plain.rounds=3
  - dataset.phantom_images=96
  - dataset.modality=ultrasound
  - model=tiny
  - model.image_side=32
  - partition.sites=2
  - partition.min_images=6
  - run.bootstrap=0
  - run.device=cpu
axes:
  seed: [1, 2]
  method:
    fedavg: [strategy=fedavg, "baselines=[local,pooled]"]
    scaffold: [strategy=scaffold]
    ditto: [strategy=ditto]
"""


@pytest.fixture
def experiment_file(tmp_path: Path):
    def write(text: str = TEXT, name: str = "small.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("drawn")
    return [f"dataset.root={folder / 'phantoms'}", f"dataset.cache_dir={folder / 'cache'}"]
