"""``evaluate`` and ``predict`` on a real tiny model: what they print, write and refuse, and that each remedy works."""

import csv
import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fed_diffmic.cli import main
from fed_diffmic.files import read_json
from fed_diffmic.inference import predictions
from tests.commands.using import cells, fails
from tests.inference.tiny import CLASSES, draw_images, write_table, write_tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_tiny_run(tmp_path_factory.mktemp("use") / "run")
    (folder / "config.yaml").write_text(f"dataset:\n  cache_dir: {folder.parent / 'cache'}\n")
    return folder


@pytest.fixture(autouse=True)
def narrow(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


# ---- predict


def test_predict_prints_names_classes_and_decisions_as_they_are(tmp_path, capsys):
    """Square brackets are no markup, in a file's name or in a class's."""
    classes = ("[red]benign[/red]", "[b]", "other")
    run = write_tiny_run(tmp_path / "run", classes=classes)
    [image] = draw_images(tmp_path / "[bold]ward[/bold]", 1)
    assert main(["predict", "--run", str(run), str(image.relative_to(tmp_path))]) == 0
    rows = cells(capsys.readouterr().out)
    assert rows[0] == ["image", "decided", *classes]
    assert rows[1][0] == "[bold]ward[/bold]/image-000.png"
    assert rows[1][1] in classes
    assert sum(map(float, rows[1][2:])) == pytest.approx(1, abs=0.002)


def test_long_names_are_told_apart_at_80_columns(run, tmp_path, capsys):
    deep = tmp_path / "a folder of the ward for outpatients" / "2026-11-29 morning"
    images = draw_images(deep, 2)
    assert main(["predict", "--run", str(run), *map(str, images)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "…" not in out
    assert [row[0].replace(" ", "") for row in cells(out)[1:]] == [str(path).replace(" ", "") for path in images]


def test_many_classes_stand_one_below_the_other(tmp_path, capsys):
    classes = tuple(f"class [{i}] with a name" for i in range(14))
    run = write_tiny_run(tmp_path / "run", task="multilabel", classes=classes)
    draw_images(tmp_path, 1)
    assert main(["predict", "--run", str(run), "image-000.png", "--json", "o.json"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    [row] = read_json("o.json")["images"]
    for name, value in row["probabilities"].items():
        assert f"{value:.3f} {name}" in out
    assert row["decided"] == [name for name, value in row["probabilities"].items() if value > 0.5]


def test_a_name_sends_no_command_to_the_terminal(run, tmp_path, capsys):
    [image] = draw_images(tmp_path, 1)
    image.rename(tmp_path / "a\x1b[31m\nb.png")
    assert main(["predict", "--run", str(run), "a\x1b[31m\nb.png"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and cells(out)[1][0] == r"a\x1b[31m\nb.png"


def test_folders_files_and_what_is_written_of_them(run, tmp_path, capsys):
    draw_images(tmp_path / "in" / "b", 2, seed=1)
    draw_images(tmp_path / "in" / "a" / "deep", 1, seed=2)
    draw_images(tmp_path / "in", 1, seed=3, ending=".bmp")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    draw_images(tmp_path / "one", 1, seed=4)
    assert main(["predict", "--run", str(run), "one/image-000.png", "in", "--json", "o.json", "--csv", "o.csv"]) == 0
    names = ["one/image-000.png", "in/a/deep/image-000.png", "in/b/image-000.png", "in/b/image-001.png"]
    names.append("in/image-000.bmp")
    value = read_json("o.json")
    assert [row["image"] for row in value["images"]] == names
    assert (value["run"], value["classes"], value["unreadable"]) == ("run", list(CLASSES), [])
    assert "not a medical device" in value["notice"]
    rows = list(csv.DictReader(Path("o.csv").read_text().splitlines()))
    for row, stated in zip(rows, value["images"], strict=True):
        assert (row["image"], row["decided"]) == (stated["image"], stated["decided"])
        assert {c: float(row[f"p_{c}"]) for c in CLASSES} == stated["probabilities"]
    for name in ("o.json", "o.csv"):
        assert os.stat(name).st_mode & 0o777 == 0o600  # they name images
    assert not list(tmp_path.glob(".o.*"))


def test_the_decision_is_the_runs_rule_not_the_highest_probability(tmp_path):
    """With ``balanced`` a rare class may win against a more probable one."""
    draw_images(tmp_path / "in", 40)
    decided = {}
    for rule in ("probability", "balanced"):
        run = write_tiny_run(tmp_path / rule, f"stages.decision={rule}")
        assert main(["predict", "--run", str(run), "in", "--json", f"{rule}.json"]) == 0
        value = read_json(f"{rule}.json")
        assert value["decision"] == rule
        prior = read_json(run / "final" / "model.json")["calibration"]["diffusion"]["prior"]
        decided[rule] = [row["decided"] for row in value["images"]]
        for row in value["images"]:
            p = np.array([row["probabilities"][c] for c in CLASSES])
            assert row["decided"] == CLASSES[int((p if rule == "probability" else p / prior).argmax())]
    assert decided["probability"] != decided["balanced"]


def test_unreadable_images_are_named_the_others_predicted_and_the_code_is_3(run, tmp_path, capsys):
    images = draw_images(tmp_path / "in", 3)
    images[1].write_bytes(images[1].read_bytes()[:120])
    (tmp_path / "in" / "patient_4711.png").write_bytes(b"not an image")
    out = ["--json", "o.json", "--csv", "o.csv"]
    assert main(["predict", "--run", str(run), "in", *out]) == 3
    printed = capsys.readouterr()
    assert [row[0] for row in cells(printed.out)[1:]] == ["in/image-000.png", "in/image-002.png"]
    assert "not predicted: in/patient_4711.png: the content is not an image in a known format" in printed.err
    assert "not predicted: in/image-001.png: the image ends before its last row" in printed.err
    error = printed.err[printed.err.index("error FD003") :]
    assert "2 of 4 images" in error and "4711" not in error
    value = read_json("o.json")
    reasons = {row["image"]: row["reason"] for row in value["unreadable"]}
    assert reasons == {"in/patient_4711.png": "unknown_format", "in/image-001.png": "truncated"}
    rows = {row["image"]: row for row in csv.DictReader(Path("o.csv").read_text().splitlines())}
    assert rows["in/image-001.png"]["unreadable"] == "truncated" and rows["in/image-001.png"]["p_benign"] == ""
    assert main(["predict", "--run", str(run), "in/image-000.png", "in/image-002.png", "--json", "good.json"]) == 0
    assert read_json("good.json")["images"] == value["images"]
    images[1].unlink()
    (tmp_path / "in" / "patient_4711.png").unlink()  # as the error says
    assert main(["predict", "--run", str(run), "in"]) == 0


def test_nothing_but_unreadable_images(run, tmp_path, capsys):
    Path("x.png").write_bytes(b"x")
    assert "1 of 1 images" in fails(capsys, "predict", "--run", run, "x.png", code=3)


def test_results_go_to_standard_output_and_devices(run, tmp_path, capsys):
    images = draw_images(tmp_path, 2)
    assert main(["predict", "--run", str(run), *map(str, images), "--csv", "-", "--json", "/dev/null"]) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert [row["image"] for row in rows] == list(map(str, images))
    assert "image-001" in re.sub(r"[\s│┃]", "", printed.err) and Path("/dev/null").is_char_device()
    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True)
    assert main(["predict", "--run", str(run), str(images[0]), "--csv", "pipe"]) == 0
    assert reader.communicate(timeout=20)[0].startswith("image,decided,unreadable,p_benign")
    Path("real.csv").write_text("old")
    Path("link.csv").symlink_to("real.csv")
    assert main(["predict", "--run", str(run), str(images[0]), "--csv", "link.csv"]) == 0
    assert Path("link.csv").is_symlink() and Path("real.csv").read_text().startswith("image,")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.png", "b.png"], "IMAGE b.png: there is no such file"),
        (["empty"], "empty holds no image"),
        ([], "required"),
        (["a.png", "--json", "x/o.json"], "--json x/o.json: its folder does not exist"),
        (["a.png", "--json", "-", "--csv", "-"], "would be mixed"),
        (["a.png", "--json", "o", "--csv", "o"], "would be mixed"),
        (["a.png", "--csv", "empty"], "--csv empty is a folder"),
        (["a.png", "--json", "empty"], "--json empty is a folder"),
        (["a.png", "--csv", "a.png/o.csv"], "/a.png is no folder"),
        (["a.png", "--dicom-sr", "a.png/sub"], "/a.png is no folder"),
        (["a.png", "--batch", "0"], "batch 0 is not allowed; allowed: 1 to 4096"),
        (["a.png", "--site", "b"], "no own part of that site"),
    ],
)
def test_predict_refuses_before_any_work(run, capsys, arguments, words, monkeypatch):
    if "--site" not in arguments and "--batch" not in arguments:
        monkeypatch.setattr("fed_diffmic.inference.finished.final_predictor", None)
    draw_images(Path.cwd(), 1)[0].rename("a.png")
    Path("empty").mkdir()
    assert words in fails(capsys, "predict", "--run", run, *arguments)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("predict table.csv --csv table.csv", "--csv table.csv is also an image or table to predict"),
        ("predict table.csv --csv link.csv", "--csv link.csv is also an image or table to predict"),
        ("predict in/image-000.png --json in/image-000.png", "--json in/image-000.png is also an image"),
        ("predict in --csv in/image-001.png", "--csv in/image-001.png is also an image"),
        ("predict table.csv --csv in/image-001.png", "--csv in/image-001.png is also an image"),
        ("predict in --key key.pub --csv key.pub", "--csv key.pub is also --key"),
        ("predict in --reference own --json own", "--json own is also --reference"),
        ("predict in --json RUN/final/model.json", "among the run's own files"),
        ("predict in --csv RUN/config.yaml", "among the run's own files"),
        ("evaluate --manifest table.csv --csv ./table.csv", "is also --manifest"),
        ("evaluate --manifest table.csv --json link.csv", "is also --manifest"),
        ("evaluate --manifest table.csv --json in", "--json in is a folder"),
        ("reference --manifest table.csv --out table.csv", "is also --manifest"),
        ("reference --manifest table.csv --out in", "--out in is a folder"),
        ("reference --manifest table.csv --out table.csv/own", "/table.csv is no folder"),
    ],
)
def test_nothing_is_written_over_what_is_read_or_where_nothing_can_be(run, tmp_path, capsys, monkeypatch, given, words):
    monkeypatch.setattr("fed_diffmic.inference.finished.final_predictor", None)  # it would be called first of all
    write_table(tmp_path, draw_images(tmp_path / "in", 2)).rename("table.csv")
    Path("link.csv").symlink_to("table.csv")
    for name in ("key.pub", "own"):
        Path(name).write_text(name)
    kept = {path: path.read_bytes() for folder in (tmp_path, run) for path in folder.rglob("*") if path.is_file()}
    command, *rest = given.replace("RUN", str(run)).split()
    assert words in fails(capsys, command, "--run", run, *rest)
    assert all(path.read_bytes() == data for path, data in kept.items())


def test_batches_ask_for_no_more_memory_and_the_remedy_for_too_little_works(run, tmp_path, capsys, monkeypatch):
    draw_images(tmp_path / "in", 6)
    usual = predictions.decoded_files

    def tight(files, side, batch, bad):
        if batch > 2:
            raise MemoryError
        return usual(files, side, batch, bad)

    monkeypatch.setattr(predictions, "decoded_files", tight)
    assert "a smaller --batch" in fails(capsys, "predict", "--run", run, "in", code=6)
    assert main(["predict", "--run", str(run), "in", "--batch", "2"]) == 0


def test_a_changed_final_model_is_refused(run, tmp_path, capsys):
    shutil.copytree(run / "final", tmp_path / "run" / "final")
    path = tmp_path / "run" / "final" / "diffusion.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    draw_images(tmp_path, 1)
    assert "does not hold the weights" in fails(capsys, "predict", "--run", "run", "image-000.png", code=4)


# ---- how sure


@pytest.fixture
def sure_run(tmp_path):
    """The tiny run with thresholds and a measure that finds errors in its model."""
    from dataclasses import replace

    from fed_diffmic.release.final import load_final, write_final
    from tests.inference.test_sure import known

    folder = write_tiny_run(tmp_path / "sure")
    write_final(folder, replace(load_final(folder), sureness={"diffusion": known()}))
    return folder


def test_predict_shows_sets_uncertainty_and_referral_with_what_they_rest_on(sure_run, tmp_path, capsys):
    draw_images(tmp_path / "in", 3)
    out = ["--json", "o.json", "--csv", "o.csv"]
    assert main(["predict", "--run", str(sure_run), "in", "--refer", "0.15", *out]) == 0
    printed = capsys.readouterr().out
    assert {"90% set", "entropy", "refer"} <= set(cells(printed)[0])
    value = read_json("o.json")
    assert value["prediction_sets"]["level"] == 0.9 and value["referral"]["share"] == 0.15
    assert {"set", "uncertainty", "referred"} <= set(value["images"][0])
    rows = list(csv.DictReader(Path("o.csv").read_text().splitlines()))
    assert [row["set"].split("|") if row["set"] else [] for row in rows] == [row["set"] for row in value["images"]]
    flat = " ".join(printed.split())
    for sentence in value["sure"]:
        assert sentence in flat
    fails(capsys, "predict", "--run", sure_run, "in", "--level", "0.91")
    fails(capsys, "predict", "--run", sure_run, "in", "--refer", "0.17")


def test_a_model_of_an_earlier_version_is_said_to_know_nothing_of_that(run, tmp_path, capsys):
    draw_images(tmp_path / "in", 1)
    assert main(["predict", "--run", str(run), "in"]) == 0
    assert "Nothing is known of how sure this model is" in " ".join(capsys.readouterr().out.split())
    assert "can be referred by" in fails(capsys, "predict", "--run", run, "in", "--refer", "0.15")


def test_names_come_on_standard_input_and_from_a_table(run, tmp_path, capsys, monkeypatch):
    images = draw_images(tmp_path / "in", 3)
    monkeypatch.setattr("sys.stdin", io.StringIO("in/image-001.png\n\nin/gone.png\n"))
    assert main(["predict", "--run", str(run), "-", "--json", "o.json"]) == 3
    value = read_json("o.json")
    assert [row["image"] for row in value["images"]] == ["in/image-001.png"]
    assert [row["image"] for row in value["unreadable"]] == ["in/gone.png"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "no name came" in fails(capsys, "predict", "--run", run, "-")
    table = write_table(tmp_path, images)
    assert main(["predict", "--run", str(run), str(table), "--json", "t.json"]) == 0
    assert [row["image"] for row in read_json("t.json")["images"]] == list(map(str, images))


def test_what_goes_to_a_file_or_a_pipe_is_never_folded(run, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    [image] = draw_images(tmp_path / ("a long name of a folder " * 6), 1)
    assert main(["predict", "--run", str(run), str(image)]) == 0
    assert str(image) in capsys.readouterr().out


def test_a_sites_own_images_make_a_reference_that_predict_uses(run, tmp_path, capsys):
    table = write_table(tmp_path, draw_images(tmp_path / "in", 60))
    made = ["reference", "--run", str(run), "--manifest", str(table), "--out", "own.safetensors"]
    assert main([*made, f"dataset.cache_dir={tmp_path / 'cache'}"]) == 0
    assert "like those of this site" in " ".join(capsys.readouterr().out.split())
    assert os.stat("own.safetensors").st_mode & 0o777 == 0o600
    assert main(["predict", "--run", str(run), "in", "--reference", "own.safetensors", "--json", "o.json"]) == 0
    assert all("unfamiliar" in row and "set" in row for row in read_json("o.json")["images"])
    fails(capsys, *made[:-1], tmp_path / "none" / "x")
