"""``fed-diffmic data inspect``: the table, the pictures, who may read them."""

import stat

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fed_diffmic.config.simulation import DatasetConfig, ModelConfig, SimulateConfig
from fed_diffmic.data.inspect import by_institution, draw_contact_sheet, draw_sizes, inspect, original_sizes
from fed_diffmic.data.open import open_dataset
from fed_diffmic.errors import DataError, MachineError
from tests.data.dicom.written import content, header, ramp, with_pixels
from tests.data.published import write_image, write_table


@pytest.fixture
def cfg(tmp_path):
    root = tmp_path / "data"
    rows = []
    for i in range(12):
        write_image(root / f"anna{i}.png", i, side=40 + 8 * (i % 2))
        rows.append([f"anna{i}.png", "nv" if i % 3 else "mel", f"mueller{i // 2}", "North" if i < 8 else ""])
    write_table(root / "manifest.csv", ["image", "label", "patient_id", "institution"], rows)
    dataset = DatasetConfig(
        name="table", root=str(root), cache_dir=str(tmp_path / "cache"), classes=["mel", "nv", "bcc"]
    )
    return SimulateConfig(dataset=dataset, model=ModelConfig(image_side=32))


def run(cfg, out, **kwargs):
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    code = inspect(cfg, out, console=console, **kwargs)
    console.file.close()
    return code, console.export_text()


def cells(text, first):
    line = next(line for line in text.splitlines() if line.startswith("│ " + first))
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_counts_groups_and_findings_are_printed_without_names(cfg, tmp_path):
    code, text = run(cfg, tmp_path / "out")
    assert code == 0
    assert cells(text, "mel") == ["mel", "3", "1", "4"]
    assert cells(text, "nv") == ["nv", "5", "3", "8"]
    assert cells(text, "bcc") == ["bcc", "0", "0", "0"]
    assert cells(text, "images ") == ["images", "8", "4", "12"]
    assert cells(text, "groups ") == ["groups", "4", "2", "6"]
    assert "North" in text
    assert "empty-class" in text
    assert "anna" not in text.replace(str(tmp_path), "")
    assert "mueller" not in text


def test_a_table_of_dicom_files_has_sizes_and_pictures_too(cfg, tmp_path):
    root = tmp_path / "dicom"
    root.mkdir()
    rows = [[f"a{i}.dcm", "nv" if i % 2 else "mel"] for i in range(4)]
    for i, (name, _) in enumerate(rows):
        (root / name).write_bytes(content(with_pixels(header(i), ramp(seed=i))))
    write_table(root / "manifest.csv", ["image", "label"], rows)
    dataset = DatasetConfig(name="table", root=str(root), cache_dir=str(tmp_path / "cache"))
    code, _ = run(SimulateConfig(dataset=dataset, model=ModelConfig(image_side=32)), tmp_path / "out")
    assert (
        code == 0 and (tmp_path / "out" / "sizes.png").is_file() and (tmp_path / "out" / "contact_sheet.png").is_file()
    )
    paths = np.array([str(root / rows[0][0]), str(root / "manifest.csv"), str(root / "gone.dcm")], dtype=object)
    assert original_sizes(paths).tolist() == [[44, 40]]


def test_sizes_of_which_none_can_be_read_are_an_empty_picture(cfg, tmp_path):
    data = open_dataset(cfg.dataset, 32, findings_path=None)
    gone = data.manifest.with_table(data.manifest.table.assign(image=str(tmp_path / "gone.png")))
    assert "(0 of 12" in draw_sizes(gone, 32).axes[0].get_title(loc="left")


def test_pictures_and_who_may_read_them(cfg, tmp_path):
    out = tmp_path / "out"
    run(cfg, out)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}
    assert modes == {"findings.csv": 0o600, "classes.png": 0o644, "sizes.png": 0o644, "contact_sheet.png": 0o600}
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    for name in ("classes.png", "sizes.png", "contact_sheet.png"):
        pixels = np.asarray(Image.open(out / name).convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 5


def test_the_contact_sheet_shows_each_class_in_its_row(cfg):
    data = open_dataset(cfg.dataset, 32, findings_path=None)
    axes = draw_contact_sheet(data, seed=3).axes[0]
    sheet = axes.images[0].get_array()
    gap = 2
    tiles = [
        sheet[r * (32 + gap) : r * (32 + gap) + 32, c * (32 + gap) : c * (32 + gap) + 32]
        for r in range(3)
        for c in range(8)
    ]
    images = data.cache.images(data.manifest.table["row"].to_numpy()).numpy().transpose(0, 2, 3, 1)
    shown = [[i for i, image in enumerate(images) if np.array_equal(image, tile)] for tile in tiles]
    labels = data.manifest.labels
    assert sorted(i for found in shown[:8] for i in found) == np.flatnonzero(labels == 0).tolist()
    assert sorted(i for found in shown[8:16] for i in found) == np.flatnonzero(labels == 1).tolist()
    assert all((tile == 255).all() for tile in tiles[16:])
    groups = data.manifest.table["group"].to_numpy()
    first = [groups[found[0]] for found in shown[8:14] if found]
    assert len(set(first)) == len(first), "different groups are shown before a second image of one"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["mel\n4 images", "nv\n8 images", "bcc\n0 images"]


def test_errors_are_shown_with_everything_else_and_give_exit_code_3(cfg, tmp_path):
    (tmp_path / "data" / "anna3.png").write_text("no image")
    code, text = run(cfg, tmp_path / "out")
    assert code == 3
    assert "unreadable-image" in text
    assert cells(text, "images ") == ["images", "7", "4", "11"]
    (tmp_path / "data" / "manifest.csv").write_text("nothing\nhere\n")
    with pytest.raises(DataError, match="missing-column"):
        run(cfg, tmp_path / "out")


def test_a_partition_gives_the_columns(cfg, tmp_path):
    def halves(manifest):
        return {"site-1": manifest.subset(np.arange(5)), "site-2": manifest.subset(np.arange(5, 12))}

    _, text = run(cfg, tmp_path / "out", partition=halves)
    assert "class and site" in text
    assert cells(text, "images ") == ["images", "5", "7", "12"]


def test_unknown_institutions_are_one_column(cfg):
    data = open_dataset(cfg.dataset, 32, findings_path=None)
    parts = by_institution(data.manifest)
    assert {name: len(part) for name, part in parts.items()} == {"North": 8, "unknown": 4}


def test_sizes_come_from_headers_and_bad_files_are_passed_over(tmp_path):
    paths = [
        write_image(tmp_path / "a.png", 0, side=33),
        tmp_path / "none.png",
        write_image(tmp_path / "b.png", 0, side=50),
    ]
    (tmp_path / "none.png").write_text("x")
    assert original_sizes(np.array(paths)).tolist() == [[33, 33], [50, 50]]


def test_a_folder_that_cannot_be_made(cfg, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError):
        inspect(cfg, tmp_path / "file" / "out")
