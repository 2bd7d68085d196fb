"""What a program that imports the package, or a file that it left, is told: done as the message says, it works."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fed_diffmic.api.models import Model
from fed_diffmic.api.runs import Run, load_run
from fed_diffmic.api.settings import configuration
from fed_diffmic.config.compose import compose
from fed_diffmic.data.cache import _decode_one, build_cache
from fed_diffmic.data.cache_files import SUBFOLDER
from fed_diffmic.data.datasets.pmg2000 import _bytes_of
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.inspect import inspect
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.data.medmnist import write_medmnist
from fed_diffmic.data.phantoms import write_phantoms
from fed_diffmic.data.splits import split_site
from fed_diffmic.data.tables import read_text
from fed_diffmic.files import load_tensors, private_folder, read_json, save_tensors, write_json
from fed_diffmic.inference.images import as_arrays, image_files
from fed_diffmic.reporting.events import read_events
from fed_diffmic.reporting.examples import FILE as EXAMPLES
from fed_diffmic.reporting.examples import load_examples
from fed_diffmic.training.familiar import familiar
from simulations.drawn_from import FILE as DRAWN_FROM
from simulations.drawn_from import hold_to, keep_or_check
from simulations.external import open_external
from simulations.partitioners import load_partition, save_partition
from simulations.sites import VirtualSites
from tests.data.test_medmnist import arrays
from tests.inference.tiny import draw_images, tiny_predictor, write_table
from tests.remedies.places import remedy_in, tries
from tests.simulations.test_drawn_from import data_set

CACHE = "fed_diffmic/data/cache.py::"


@tries(
    "fed_diffmic/api/models.py::Model.predict",
    "fed_diffmic/api/models.py::_listed",
    "fed_diffmic/inference/images.py::as_arrays",
)
def test_images_in_memory() -> None:
    model, [path, _] = Model(tiny_predictor(stage="guidance")), draw_images(Path("images"), 2)
    grey, picture = np.zeros((40, 40)), Image.open(path)
    for wrong in (picture, [picture, picture]):
        remedy_in(lambda wrong=wrong: model.predict(wrong), r"np\.array\(image\.convert\('RGB'\)\)")
    remedy_in(lambda: model.predict([path, grey]), "Give paths, or arrays")
    assert len(model.predict([path, str(path)]).probabilities) == 2
    said = remedy_in(
        lambda: model.predict(grey), r"Scale intensities to 0 to 255; repeat what is grey: (np\.repeat.*)\.$"
    )
    scaled = eval(said[1], {"np": np, "grey": grey.astype(np.uint8)})
    assert len(as_arrays(scaled)) == 1
    given = np.array(picture.convert("RGB"))
    assert np.array_equal(model.predict(given).probabilities, model.predict(path).probabilities)


@tries("fed_diffmic/api/settings.py::configuration", "fed_diffmic/api/runs.py::Run.metrics")
def test_settings_and_runs() -> None:
    begun = compose(None, ["seed=3"])
    remedy_in(lambda: configuration(begun, {"seed": 4}), r"Change the configuration \(dataclasses\.replace\), or give")
    assert configuration(replace(begun, seed=4), {}).seed == configuration({"seed": 3}, {"seed": 4}).seed == 4
    for name in ("coordinators", "simulated"):
        Path(name).mkdir()
        Path(name, "summary.json").write_text("{}")
    Path("simulated", "metrics.csv").write_text("round,metric,value\n1,auroc,0.5\n")
    remedy_in(lambda: Run(Path("coordinators")).metrics, "Name a run of `simulate` that has ended")
    assert len(load_run("simulated").metrics) == 1


@tries(
    "fed_diffmic/files.py::read_json",
    "fed_diffmic/files.py::load_tensors",
    "fed_diffmic/files.py::private_folder | Run `chmod 7",
)
def test_files_and_folders() -> None:
    write_json(Path("copy.json"), {"a": 1})
    save_tensors(Path("copy.safetensors"), {"a": np.ones(2)})
    for read, name in ((read_json, "it.json"), (load_tensors, "it.safetensors")):
        for torn in (None, b"{"):
            if torn:
                Path(name).write_bytes(torn)
            remedy_in(lambda read=read, name=name: read(name), "put back from a copy")
        shutil.copy(name.replace("it", "copy"), name)
        assert read(name)
    Path("open").mkdir()
    Path("open").chmod(0o777)
    [mode, path] = remedy_in(lambda: private_folder("open"), r"Run `chmod (\d+) (\S+)`").groups()
    Path(path).chmod(int(mode, 8))
    private_folder("open")


@tries(
    f"{CACHE}ImageCache.images", f"{CACHE}_decode_one", "fed_diffmic/data/cache_files.py::prepare_folder | Name another"
)
def test_decoded_copies() -> None:
    paths = draw_images(Path("images"), 2)
    paths[1].write_bytes(b"none")
    digest = build_cache([str(paths[0])], image_side=32, folder=Path("c")).digests[0]
    cache = build_cache(list(map(str, paths)), image_side=32, folder=Path("c"))
    remedy_in(lambda: cache.images([0, 1]), "Leave out the positions in `bad`")
    assert len(cache.images([row for row in (0, 1) if row not in cache.bad])) == 1
    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole[:-20])  # as while it is copied
    remedy_in(lambda: _decode_one(str(paths[0]), digest, 32), "Let the copying end, then start again")
    paths[0].write_bytes(whole)
    assert isinstance(_decode_one(str(paths[0]), digest, 32), np.ndarray)
    Path("theirs").mkdir()
    Path("ours").mkdir()
    Path("ours", SUBFOLDER).symlink_to(Path("theirs").absolute())
    [key] = remedy_in(
        lambda: build_cache([str(paths[0])], image_side=32, folder=Path("ours")), r"another folder: (\S+)=\.\.\."
    ).groups()
    assert str(compose(None, [f"{key}=d"]).dataset.cache_dir).endswith("/d")
    build_cache([str(paths[0])], image_side=32, folder=Path("d"))


@tries("fed_diffmic/data/inspect.py::inspect")
def test_where_drawings_of_a_data_set_go(capsys) -> None:
    write_table(Path(), draw_images(Path("images"), 6))
    config = compose(None, ["dataset=table", "dataset.root=table.csv", "dataset.cache_dir=c", "model.image_side=32"])
    Path("file").touch()
    remedy_in(lambda: inspect(config, Path("file")), "Choose another folder")
    assert inspect(config, Path("folder")) == 0


@tries("fed_diffmic/data/manifest.py::Manifest.__post_init__", "fed_diffmic/data/manifest.py::Manifest._check")
def test_a_manifest_of_ones_own() -> None:
    def made(**columns: list[object]) -> Manifest:
        return Manifest(pd.DataFrame({"image": ["/a", "/b"], **columns}), ("x", "y"), "multiclass", "own")

    [missing] = remedy_in(lambda: made(label=[0, 1]), r"missing: (\w+)\n.*these columns").groups()
    remedy_in(lambda: made(label=[0, 2], **{missing: ["p", "q"]}), r"1 row\(s\) of 'label'.*Correct these rows")
    assert len(made(label=[0, 1], **{missing: ["p", "q"]})) == 2


@tries("fed_diffmic/data/splits.py::_check_given | {remedy}")
def test_a_split_of_some_images_only() -> None:
    whole = data_set()
    some = whole.with_table(whole.table.assign(split=["train", "test", ""] * 20))
    remedy_in(lambda: split_site(some, "a", 0, 0.2, 0.2), "Fill the split column for every image, or")
    split_site(whole.with_table(whole.table.assign(split=["train", "test", "val"] * 20)), "a", 0, 0.2, 0.2)
    split_site(whole, "a", 0, 0.2, 0.2)


@tries("fed_diffmic/data/medmnist.py::_read")
def test_a_file_of_medmnist() -> None:
    whole = arrays("breastmnist")
    train = whole["train_labels"]
    wrong = [
        {"train_images": whole["train_images"].astype(float)},
        {"train_labels": train[:-1]},
        {"train_labels": train + 9},
    ]
    for change in ({}, *wrong):
        np.savez("it.npz", **(whole | change if change else {"x": train}))
        remedy_in(
            lambda: write_medmnist("breastmnist", Path("new"), file=Path("it.npz")), r"Give the \.npz of this data set"
        )
    for content in (b"PK", b"no"):
        Path("it.npz").write_bytes(content)
        remedy_in(lambda: write_medmnist("breastmnist", Path("new"), file=Path("it.npz")), r"Give the \.npz")
    np.savez("it.npz", **whole)
    write_medmnist("breastmnist", Path("new"), file=Path("it.npz"))


@tries(
    "fed_diffmic/data/phantoms/writer.py::write_phantoms | {', '.join(L",
    "fed_diffmic/data/phantoms/writer.py::write_phantoms | at least 1 i",
)
def test_phantoms_that_are_asked_for() -> None:
    [known] = remedy_in(lambda: write_phantoms(Path("new"), "mri", 1, 0), r"allowed: .*(ultrasound)").groups()
    [least] = remedy_in(lambda: write_phantoms(Path("new"), known, 0, 0), r"at least (\d) image").groups()
    write_phantoms(Path("new"), known, int(least), 0, sites=1)


@tries("fed_diffmic/data/datasets/pmg2000.py::_bytes_of", "fed_diffmic/data/tables.py::read_text")
def test_lists_that_are_not_there() -> None:
    for read in (_bytes_of, lambda path: read_text(path, Findings())):
        remedy_in(lambda read=read: read(Path("none.csv")), "Check that the file is there and readable")
        Path("there.csv").write_text("image,label\n")
        assert read(Path("there.csv"))


@tries(
    "simulations/drawn_from.py::_differences",
    "simulations/drawn_from.py::keep_or_check",
    "simulations/drawn_from.py::hold_to",
)
def test_what_a_run_was_drawn_from() -> None:
    run, before = Path("run"), data_set()
    for name in ("run", "another"):
        Path(name).mkdir()
    keep_or_check(run, before)
    (run / "config.yaml").touch()
    changed = before.with_table(before.table.assign(label=1 - before.table["label"]))
    remedy_in(
        lambda: keep_or_check(run, changed), r"Put the table and the images back.*another run in another run\.dir"
    )
    keep_or_check(run, before)
    keep_or_check(Path("another"), changed)
    write_json(run / DRAWN_FROM, {"images": 3})
    remedy_in(lambda: keep_or_check(run, before), r"Start the run again in another run\.dir")
    keep_or_check(Path("third"), before) if Path("third").mkdir() is None else None
    remedy_in(
        lambda: hold_to(Path("another"), Path("third"), "it"),
        r"Put the table and the images back.*the same command again, or start the experiment anew in another --out",
    )
    keep_or_check(Path("another"), before)
    hold_to(Path("another"), Path("third"), "it")


@tries("simulations/partitioners/saved.py::load_partition")
def test_a_partition_of_other_images() -> None:
    parts = {"s": split_site(data_set(), "s", 0, 0.2, 0.2)}
    save_partition(Path("p.csv"), parts)
    remedy_in(lambda: load_partition("p.csv", data_set(50)), "Use it with the data set that it was saved for")
    assert set(load_partition("p.csv", data_set())) == {"s"}


@tries("simulations/external.py::open_external")
def test_a_table_from_elsewhere_that_shares_an_image() -> None:
    images = draw_images(Path("images"), 6)
    table, run = write_table(Path(), images), Path("run")
    run.mkdir()
    keys = build_cache([str(images[0])], image_side=32, folder=Path("c")).keys
    write_json(run / DRAWN_FROM, {"images": {str(keys[0]): []}})
    config = compose(None, [f"external.away={table}", "dataset.cache_dir=c", "model.image_side=32"])
    sites = VirtualSites({}, ("benign", "malignant", "other"), "multiclass", (), {})
    remedy_in(lambda: open_external(config, sites, run), "take them out of the table and continue with --resume")
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:1] + table.read_text().splitlines(True)[2:]))
    assert set(open_external(config, sites, run)) == {"away"}


@tries(
    "fed_diffmic/inference/images.py::image_files | fed-diffmic predict --ru",
    "fed_diffmic/inference/images.py::image_files | find DIR -na",
)
def test_names_of_images(monkeypatch) -> None:
    images = draw_images(Path("images"), 2)
    remedy_in(lambda: image_files([]), r"predict --run DIR IMAGE \[IMAGE")
    assert len(image_files(images)) == 2
    [pattern] = remedy_in(
        lambda: image_files(["-"], []), r"find DIR -name '([^']+)' \| fed-diffmic predict - "
    ).groups()
    assert len(image_files(["-"], [f"{path}\n" for path in Path("images").glob(pattern)])) == 2


@tries(
    "fed_diffmic/reporting/events.py::read_events | Give the fol", "fed_diffmic/reporting/examples.py::load_examples"
)
def test_files_of_a_run() -> None:
    for name in ("none", "run"):
        Path(name).mkdir()
    Path("run", "events.jsonl").write_text(json.dumps({"code": "x"}) + "\n")
    remedy_in(lambda: read_events(Path("none", "events.jsonl")), "Give the folder of a run")
    read_events(Path("run", "events.jsonl"))
    save_tensors(Path("run", EXAMPLES), {"images": np.zeros((1, 3, 2, 2), np.uint8)})
    remedy_in(lambda: load_examples(Path("run")), "or remove it: the report is written without")
    Path("run", EXAMPLES).unlink()
    assert load_examples(Path("run")) is None


@tries("fed_diffmic/training/familiar.py::familiar")
def test_how_many_images_say_what_is_usual() -> None:
    rng = np.random.default_rng(0)

    def of(count: int, most: int, seed: int = 0) -> None:
        groups = np.arange(count) // most
        familiar(rng.normal(size=(count, 3)), np.arange(count) % 2, groups, "multiclass", seed)

    remedy_in(lambda: of(60, 50), "no more than one in")
    said = remedy_in(lambda: of(4, 1), r"Give (\d+) images or more, .* no more than one in (\d+) of them of the same")
    enough, share = map(int, said.groups())
    for seed in range(20):  # who is drawn first decides how many are left
        of(enough, enough // share, seed)
