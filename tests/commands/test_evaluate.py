"""``evaluate`` on a real tiny model: what it prints, writes and refuses, and that each remedy works."""

import csv
import re
import shutil
from pathlib import Path

import pytest

from fed_diffmic.cli import main
from fed_diffmic.data.cache_files import SUBFOLDER, no_space
from fed_diffmic.files import read_json
from tests.commands.using import fails
from tests.inference.tiny import draw_images, write_table, write_tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_tiny_run(tmp_path_factory.mktemp("use") / "run")
    (folder / "config.yaml").write_text(f"dataset:\n  cache_dir: {folder.parent / 'cache'}\n")
    return folder


@pytest.fixture(autouse=True)
def narrow(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


# ---- evaluate


def test_evaluate_writes_what_it_prints(run, tmp_path, capsys):
    table = write_table(tmp_path, draw_images(tmp_path / "in", 12))
    arguments = ["evaluate", "--run", str(run), "--manifest", str(table), "--json", "o.json", "--csv", "o.csv"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    value = read_json("o.json")
    assert (value["run"], value["n"]) == ("run", 12)
    rows = list(csv.DictReader(Path("o.csv").read_text().splitlines()))
    accuracy = value["figures"]["accuracy"]
    assert rows[0] == {k: str(v) for k, v in {"figure": "accuracy", "class": "", **accuracy}.items() if k != "classes"}
    assert f"{accuracy['value']:.3f}" in out and f"{accuracy['low']:.3f} to {accuracy['high']:.3f}" in out
    [malignant] = [row for row in rows if (row["figure"], row["class"]) == ("auroc", "malignant")]
    cell = value["figures"]["per_class"]["malignant"]
    assert float(malignant["value"]) == cell["auroc"] and int(malignant["n"]) == 12
    assert [float(malignant[k]) for k in ("low", "high")] == cell["intervals"]["auroc"]
    assert main([*arguments[:-3], "-", "--csv", "o.csv"]) == 0
    assert capsys.readouterr().out == Path("o.json").read_text()


def test_class_names_with_brackets_are_printed_as_they_are(tmp_path, capsys):
    classes = ("[red]a[/red]", "[b]", "[/c]")
    run = write_tiny_run(tmp_path / "run", classes=classes)
    table = write_table(tmp_path, draw_images(tmp_path / "in", 4), classes[:2])
    assert main(["evaluate", "--run", str(run), "--manifest", str(table), "dataset.cache_dir=cache"]) == 0
    assert "every macro figure: [/c]" in capsys.readouterr().out


def test_decoded_copies_lie_where_the_run_keeps_them_and_purge_leaves_nothing(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    table = write_table(tmp_path, draw_images(tmp_path / "in", 4))
    for settings, folder in (([], run.parent / "cache"), (["dataset.cache_dir=mine"], tmp_path / "mine")):
        assert main(["evaluate", "--run", str(run), "--manifest", str(table), *settings]) == 0
        assert str(folder) in capsys.readouterr().out.replace("\n", "")
        assert list((folder / SUBFOLDER).glob("*.u8"))
        assert main(["data", "purge", f"dataset.cache_dir={folder}"]) == 0
        assert list(folder.iterdir()) == []
    assert not (tmp_path / "home").exists()
    assert main(["evaluate", "--run", str(run), "--manifest", str(table), "dataset.cache_dir=null"]) == 0
    assert (tmp_path / "home" / ".cache" / "fed_diffmic" / SUBFOLDER).is_dir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "none", "--manifest", "m.csv"], "--run none: there is no such folder"),
        (["--run", "run", "--manifest", "none"], "--manifest none: there is no such file"),
        (["--run", "run", "--manifest", "m.csv", "--json", "x/o.json"], "does not exist"),
        (["--run", "run", "--manifest", "m.csv", "--csv", "x/o.csv"], "does not exist"),
        ([], "required: --run, --manifest"),
        (["--run", "run", "--manifest", "m.csv", "more"], "cannot use 'more'"),
        (["--run", "run", "--manifest", "m.csv", "dataset.classes=[a,b]"], "its classes, task and image side"),
        (["--run", "run", "--manifest", "m.csv", "dataset.on_bad_image=ignore"], "error, skip"),
    ],
)
def test_evaluate_refuses(run, tmp_path, capsys, arguments, words):
    (tmp_path / "m.csv").touch()
    (tmp_path / "run").symlink_to(run)
    assert words in fails(capsys, "evaluate", *arguments)


def bad_image(images, table):
    images[0].write_bytes(b"no image")


def missing_image(images, table):
    images[0].unlink()


@pytest.mark.parametrize("fault", [bad_image, missing_image])
def test_the_remedy_of_a_bad_image_is_taken_literally(run, tmp_path, capsys, fault):
    images = draw_images(tmp_path / "in", 6)
    table = write_table(tmp_path, images)
    fault(images, table)
    command = ["evaluate", "--run", str(run), "--manifest", str(table)]
    said = fails(capsys, *command, code=3)
    [setting] = set(re.findall(r"dataset\.\w+=\w+", said))
    assert main([*command, setting, "--json", "o.json"]) == 0
    assert read_json("o.json")["n"] == 5
    draw_images(tmp_path / "in", 6)  # or put them there
    assert main(command) == 0


def test_the_remedy_of_unknown_labels_asks_for_no_other_classes(run, tmp_path, capsys):
    images = draw_images(tmp_path / "in", 6)
    table = write_table(tmp_path, images, ("benign", "malignnt"))
    command = ["evaluate", "--run", str(run), "--manifest", str(table)]
    said = fails(capsys, *command, code=3)
    assert "dataset.classes" not in said and "leave these rows out" in said and "'malignant'" in said
    good = [line for line in table.read_text().splitlines() if "malignnt" not in line]
    table.write_text("\n".join(good) + "\n")
    assert main(command) == 0


def test_the_remedy_of_a_table_far_from_its_images_is_taken_literally(run, tmp_path, capsys):
    images = draw_images(tmp_path / "in", 6)
    table = write_table(tmp_path, images)
    (tmp_path / "elsewhere").mkdir()
    far = shutil.move(table, tmp_path / "elsewhere" / "table.csv")
    said = fails(capsys, "evaluate", "--run", run, "--manifest", far, code=3)
    assert "dataset.root" not in said and "Put the table into the folder that its image paths start from" in said
    shutil.move(far, table)
    assert main(["evaluate", "--run", str(run), "--manifest", str(table)]) == 0


def test_the_remedy_of_a_cache_that_cannot_be_made_is_taken_literally(tmp_path, capsys):
    run = write_tiny_run(tmp_path / "run")
    (tmp_path / "taken").write_text("a file where the run had its folder")
    (run / "config.yaml").write_text(f"dataset:\n  cache_dir: {tmp_path / 'taken'}\n")
    command = ["evaluate", "--run", str(run), "--manifest", str(write_table(tmp_path, draw_images(tmp_path / "in", 6)))]
    said = fails(capsys, *command, code=6)
    assert "dataset.cache_dir=..." in said
    assert main([*command, "dataset.cache_dir=other"]) == 0
    assert (tmp_path / "other" / SUBFOLDER).is_dir()
    (run / "config.yaml").write_text("dataset: [")
    assert "dataset.cache_dir=..." in fails(capsys, *command, code=4)
    assert main([*command, "dataset.cache_dir=other"]) == 4  # nor can its pinned key be read


def test_no_remedy_for_space_asks_a_finished_model_for_another_image_side(tmp_path):
    assert "a run with a smaller model.image_side" in no_space(tmp_path, 1, "full").remedy
