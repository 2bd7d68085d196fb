"""MedMNIST's file as a table: what is written is what was there; a file that is not it is refused by array."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fed_diffmic.cli import main
from fed_diffmic.config.compose import compose
from fed_diffmic.data.medmnist import KINDS, write_medmnist
from fed_diffmic.data.open import open_dataset
from fed_diffmic.errors import DataError, UsageError

COUNTS = {"train": 12, "val": 4, "test": 5}


def arrays(name: str, side: int = 28) -> dict[str, np.ndarray]:
    """Made-up images in the published layout, every class among the training images."""
    kind, rng = KINDS[name], np.random.default_rng(3)
    grey = kind.modality in ("chest", "ultrasound")
    found: dict[str, np.ndarray] = {}
    for part, count in COUNTS.items():
        shape = (count, side, side) if grey else (count, side, side, 3)
        found[f"{part}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        if kind.task == "multilabel":
            labels = rng.integers(0, 2, (count, len(kind.classes)))
            labels[0] = 0
        else:
            labels = (np.arange(count) % len(kind.classes))[:, None]
        found[f"{part}_labels"] = labels.astype(np.uint8)
    return found


def stored(folder: Path, name: str) -> Path:
    """The same as a file."""
    path = folder / f"{name}.npz"
    np.savez(path, **arrays(name))  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_written_data_set_opens_with_its_labels_and_pixels(name: str, tmp_path: Path) -> None:
    out, source = tmp_path / "out", arrays(name)
    settings = write_medmnist(name, out, file=stored(tmp_path, name), split=True)
    config = compose(None, [*settings, f"dataset.cache_dir={tmp_path / 'cache'}", "model.image_side=32"])
    data = open_dataset(config.dataset, 32, findings_path=tmp_path / "findings.csv")
    manifest = data.manifest
    assert manifest.classes == KINDS[name].classes and manifest.task == KINDS[name].task
    for part, count in COUNTS.items():
        rows = manifest.table[manifest.table["split"] == part]
        assert len(rows) == count
        wanted = source[f"{part}_labels"]
        labels = np.array(rows["label"].tolist())
        assert np.array_equal(labels, wanted if manifest.task == "multilabel" else wanted[:, 0])
    with Image.open(out / "images" / "val_000002.png") as picture:
        assert np.array_equal(np.asarray(picture), source["val_images"][2])


def test_without_the_published_split_the_table_has_none(tmp_path: Path) -> None:
    write_medmnist("retinamnist", tmp_path / "out", file=stored(tmp_path, "retinamnist"))
    assert (tmp_path / "out" / "manifest.csv").read_text().splitlines()[0] == "image,label"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"val_labels": None}, "holds no val_labels"),
        ({"train_images": np.zeros((12, 28, 28, 3), np.float32)}, "train_images is float32"),
        (
            {"test_labels": np.zeros((5, 2), np.uint8)},
            r"test_labels is uint8 \(5, 2\), expected whole numbers \(5, 1\)",
        ),
        ({"test_labels": np.full((5, 1), 9, np.uint8)}, "test_labels holds numbers outside 0 to 4"),
        ({"train_labels": np.array([["x"]] * 12, dtype=object)}, "not a readable .npz"),
    ],
)
def test_a_file_that_is_not_the_data_set_is_refused(
    change: dict[str, np.ndarray | None], said: str, tmp_path: Path
) -> None:
    whole = {k: v for k, v in {**arrays("retinamnist"), **change}.items() if v is not None}
    np.savez(tmp_path / "x.npz", **whole)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=said):
        write_medmnist("retinamnist", tmp_path / "out", file=tmp_path / "x.npz")
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, "breastmnist")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="not a readable .npz"):
        write_medmnist("breastmnist", tmp_path / "out", file=path)


def test_the_package_is_asked_for_class_size_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def fetch(**wanted: object) -> None:
        asked.append(wanted)
        np.savez(Path(str(wanted["root"])) / "breastmnist_64.npz", **arrays("breastmnist"))  # type: ignore[arg-type]

    monkeypatch.setitem(sys.modules, "medmnist", types.SimpleNamespace(BreastMNIST=fetch))
    write_medmnist("breastmnist", tmp_path / "out", size=64)
    assert asked == [{"split": "train", "download": True, "size": 64, "root": str(tmp_path / "out")}]
    assert (tmp_path / "out" / "manifest.csv").is_file()


def test_without_the_package_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(UsageError, match="needs the package medmnist"):
        write_medmnist("breastmnist", tmp_path / "out")


def test_the_command_says_how_to_train_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = stored(tmp_path, "chestmnist")
    assert main(["data", "medmnist", "chestmnist", str(tmp_path / "out"), "--file", str(file)]) == 0
    said = capsys.readouterr().out
    assert "dataset.task=multilabel" in said and "without its patients" in said
    assert main(["data", "medmnist", "chestmnist", str(tmp_path / "out"), "--file", str(file)]) == 2
    assert main(["data", "medmnist", "chestmnist", str(tmp_path / "new"), "--file", str(tmp_path / "no.npz")]) == 2
