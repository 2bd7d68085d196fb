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
from fed_diffmic.data.cache_files import SUBFOLDER, no_space
from fed_diffmic.files import read_json
from fed_diffmic.inference import predictions
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


def fails(capsys, *arguments, code=2):
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err and (out == "" or code == 3)
    return err


def cells(out):
    """The table's rows, each cell's folded lines joined."""
    rows, open_row = [], None
    for line in out.splitlines():
        if not line.startswith(("│", "┃")):
            open_row = None
            continue
        parts = [part.strip() for part in re.split("[│┃]", line)[1:-1]]
        if open_row is not None and "" in parts[1:]:
            open_row[:] = [a + b for a, b in zip(open_row, parts, strict=True)]
        else:
            open_row = parts
            rows.append(open_row)
    return rows


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
        (["a.png", "--batch", "0"], "batch 0 is not allowed; allowed: 1 to 4096"),
        (["a.png", "--site", "b"], "no own part of that site"),
    ],
)
def test_predict_refuses_before_any_work(run, capsys, arguments, words):
    draw_images(Path.cwd(), 1)[0].rename("a.png")
    Path("empty").mkdir()
    assert words in fails(capsys, "predict", "--run", run, *arguments)


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
