"""The cache equals plain decoding, survives what machines do to it, and tells nobody who is in it."""

import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import stat
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from fed_diffmic.data import cache as module
from fed_diffmic.data.cache import build_cache, content_key, purge
from fed_diffmic.data.cache_files import SUBFOLDER
from fed_diffmic.data.decode import decode
from fed_diffmic.errors import DataError, MachineError

SIDE = 16


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(folder / f"patient{i}.png")
    shutil.copy(folder / "patient0.png", folder / "patient7.png")
    (folder / "patient8.png").write_bytes(b"no image")
    return [str(folder / f"patient{i}.png") for i in range(9)] + [str(folder / "patient9.png")]


def build(images, folder, **options):
    return build_cache(images, image_side=SIDE, folder=folder, workers=2, **options)


def files(folder: Path) -> dict[str, Path]:
    return {p.suffix.lstrip("."): p for p in (folder / SUBFOLDER).iterdir()}


def check_same(cache, images) -> None:
    good = np.array([i for i in range(len(images)) if i not in cache.bad])
    plain = np.stack([decode(Path(images[i]).read_bytes(), SIDE) for i in good])
    read = cache.images(good)
    assert read.dtype == torch.uint8
    assert (read.numpy() == plain).all()
    assert cache.bad == {8: "unknown_format", 9: "missing"}


def test_equals_plain_decoding_and_reopens(images, tmp_path, monkeypatch):
    cache = build(images, tmp_path / "c")
    check_same(cache, images)
    assert len(cache) == 10
    assert cache.nbytes == 7 * 3 * SIDE * SIDE  # equal contents share one copy
    assert cache.digests[0] == cache.digests[7] and cache.keys[0] == cache.keys[7] == content_key(cache.digests[0])
    assert cache.digests[9] == "" and cache.keys[9] == 0
    monkeypatch.setattr(module, "_build", lambda *a: pytest.fail("built a second time"))
    check_same(build(images, tmp_path / "c"), images)
    with pytest.raises(DataError, match="1 of the images"):
        cache.images([0, 8])


def test_order_of_the_paths_is_the_order_of_rows(images, tmp_path, monkeypatch):
    first = build(images, tmp_path / "c")
    monkeypatch.setattr(module, "_build", lambda *a: pytest.fail("the same contents in another order"))
    second = build(images[::-1], tmp_path / "c")
    assert (second.images([9, 8, 7]) == first.images([0, 1, 2])).all()
    assert second.bad == {0: "missing", 1: "unknown_format"}


def test_another_side_or_content_is_another_cache(images, tmp_path):
    build(images, tmp_path / "c")
    assert build_cache(images, image_side=8, folder=tmp_path / "c").images([0]).shape == (1, 3, 8, 8)
    assert len(list((tmp_path / "c" / SUBFOLDER).glob("*.u8"))) == 2


def test_no_images_at_all(tmp_path):
    cache = build([str(tmp_path / "none.png")], tmp_path / "c")
    assert cache.bad == {0: "missing"} and cache.images([]).shape == (0, 3, SIDE, SIDE)
    assert len(build([], tmp_path / "c")) == 0


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(images, tmp_path, monkeypatch):
    time.sleep(2.1)  # files younger than two seconds are not remembered
    build(images, tmp_path / "c")
    read = []
    original = module.read_content
    monkeypatch.setattr("fed_diffmic.data.memo.read_content", lambda p: read.append(p) or original(p))
    build(images, tmp_path / "c")
    assert read == [images[9]]  # the missing one
    before = os.stat(images[3])
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(images[3])
    os.utime(images[3], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert build(images, tmp_path / "c").images([3]).max() == 0
    memo = files(tmp_path / "c")["bin"]
    memo.write_bytes(memo.read_bytes()[:-1] + b"x")  # torn: forgotten, not trusted
    check_again = build(images, tmp_path / "c")
    assert check_again.images([3]).max() == 0


def test_modes_and_no_names(images, tmp_path):
    build(images, tmp_path / "deep" / "c")
    home = tmp_path / "deep" / "c" / SUBFOLDER
    for folder in (home, home.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in home.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert "patient" not in file.name
        assert b"patient" not in file.read_bytes().replace(b"patients' images", b""), file
    assert (home / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_a_folder_opened_to_others_is_closed_again_and_a_link_is_refused(images, tmp_path):
    build(images, tmp_path / "c")
    (tmp_path / "c" / SUBFOLDER).chmod(0o755)
    build(images, tmp_path / "c")
    assert stat.S_IMODE((tmp_path / "c" / SUBFOLDER).stat().st_mode) == 0o700
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / SUBFOLDER).symlink_to(tmp_path / "c")
    with pytest.raises(MachineError, match="is a link"):
        build(images, tmp_path / "d")


def _truncate(home):
    with open(home["u8"], "r+b") as stream:
        stream.truncate(100)


def _flip(home):
    with open(home["u8"], "r+b") as stream:
        stream.seek(777)
        byte = stream.read(1)[0]
        stream.seek(777)
        stream.write(bytes([byte ^ 1]))


def _swap_rows(home):
    text = json.loads(home["json"].read_text())
    text["rows"] = text["rows"][::-1]
    home["json"].write_text(json.dumps(text))


DAMAGE = {
    "array truncated": _truncate,
    "one bit flipped": _flip,
    "array missing": lambda home: home["u8"].unlink(),
    "seal missing": lambda home: home["json"].unlink(),
    "index truncated": lambda home: home["json"].write_bytes(home["json"].read_bytes()[:50]),
    "index is other JSON": lambda home: home["json"].write_text("[]"),
    "rows of the index exchanged": _swap_rows,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_torn_cache_is_noticed_and_rebuilt(images, tmp_path, damage):
    build(images, tmp_path / "c")
    DAMAGE[damage](files(tmp_path / "c"))
    check_same(build(images, tmp_path / "c"), images)


def in_process(target, *arguments):
    """A real process, forked: it shares nothing with this one but what was imported already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 on: fork beside other threads; no torch runs there
        process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
        process.start()
    return process


def _build_and_tell(images, folder, start, answer):
    start.wait(30)
    answer.put(int(build(images, folder).images(range(7)).numpy().sum(dtype=np.int64)))


def test_several_processes_at_once(images, tmp_path):
    context = multiprocessing.get_context("fork")
    start, answer = context.Event(), context.Queue()
    running = [in_process(_build_and_tell, images, tmp_path / "c", start, answer) for _ in range(6)]
    start.set()
    answers = {answer.get(timeout=60) for _ in running}
    for process in running:
        process.join(30)
        assert process.exitcode == 0
    plain = sum(int(decode(Path(p).read_bytes(), SIDE).sum(dtype=np.int64)) for p in images[:7])
    assert answers == {plain}
    assert len(list((tmp_path / "c" / SUBFOLDER).glob("*.part-*"))) == 0


def _build_and_die(images, folder, point):
    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    calls = iter(range(3))
    original, replace = module.decode, os.replace
    if point == "decode":
        module.decode = lambda *a: original(*a) if next(calls, None) is not None else die()
    elif point == "replace":
        os.replace = lambda a, b: die() if str(b).endswith(".u8") else replace(a, b)
    else:
        module.write_json = die
    build(images, folder)


@pytest.mark.parametrize("point", ["decode", "replace", "seal"])
def test_a_killed_builder_leaves_nothing_that_is_taken_for_a_cache(images, tmp_path, point):
    process = in_process(_build_and_die, images, tmp_path / "c", point)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert "json" not in files(tmp_path / "c")
    check_same(build(images, tmp_path / "c", lock_timeout_s=5), images)
    assert not list((tmp_path / "c" / SUBFOLDER).glob("*.part-*"))


def test_the_wait_for_another_builder_is_bounded(images, tmp_path):
    build(images, tmp_path / "c")
    home = files(tmp_path / "c")
    home["json"].unlink()
    with FileLock(home["lock"]), pytest.raises(MachineError, match="another process"):
        build(images, tmp_path / "c", lock_timeout_s=0.2)


def _build_with_little_room(images, folder, answer):
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    try:
        build(images, folder)
    except MachineError as error:
        answer.put(str(error))


def test_a_write_that_fails_half_way_is_a_machine_error_and_leaves_nothing(images, tmp_path):
    answer = multiprocessing.get_context("fork").Queue()
    process = in_process(_build_with_little_room, images, tmp_path / "c", answer)
    message = answer.get(timeout=60)
    process.join(30)
    assert "FD007" in message and "dataset.cache_dir" in message
    assert set(files(tmp_path / "c")) <= {"TAG", "lock", "bin"}
    check_same(build(images, tmp_path / "c"), images)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or not mount:
        pytest.skip("mounting a small disk needs root")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("filled", [False, True])
def test_a_full_disk(images, small_disk, filled):
    if filled:
        (small_disk / "other").write_bytes(bytes(64 * 1024 - 4096))
        with pytest.raises(MachineError):
            build(images, small_disk / "c")
    else:
        with pytest.raises(MachineError, match=r"needs 0\.2 MB"):
            build_cache(images, image_side=96, folder=small_disk / "c")
    left = [p.name for p in small_disk.rglob("*") if p.is_file()]
    assert not any(re.search(r"part|json|u8$", name) for name in left), left


def test_a_folder_that_may_not_be_written(images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot be made"):
        build(images, tmp_path / "file" / "c")


def test_interrupted_by_ctrl_c(images, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for point in ("decode", "write_json"):
        monkeypatch.setattr(module, point, interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(images, tmp_path / "c")
        monkeypatch.undo()
        assert set(files(tmp_path / "c")) <= {"TAG", "lock", "bin"}
    check_same(build(images, tmp_path / "c"), images)


def test_a_file_that_changes_while_the_cache_is_built_is_an_error(images, tmp_path, monkeypatch):
    original = module.read_content
    monkeypatch.setattr(module, "read_content", lambda path: original(images[1]))
    with pytest.raises(DataError, match="changed while"):
        build(images, tmp_path / "c")
    assert set(files(tmp_path / "c")) <= {"TAG", "lock", "bin"}


def test_sending_it_to_another_process_sends_no_pixels(images, tmp_path):
    cache = build(images, tmp_path / "c")
    sent = pickle.dumps(cache)
    assert cache.images([0]).numpy().tobytes() not in sent and len(sent) < 2500
    assert (pickle.loads(sent).images([2, 0]) == cache.images([2, 0])).all()


def test_progress_is_reported(images, tmp_path):
    seen = []
    build(images, tmp_path / "c", progress=lambda *what: seen.append(what))
    assert seen == [("hashing", 10, 10), ("decoding", 8, 8)]


def test_purge_removes_the_copies_and_nothing_else(images, tmp_path):
    assert purge(tmp_path / "nowhere") == 0
    build(images, tmp_path / "c")
    (tmp_path / "c" / "mine.txt").write_text("keep")
    lock = files(tmp_path / "c")["lock"]
    with FileLock(lock), pytest.raises(MachineError, match="is building"):
        purge(tmp_path / "c")
    assert "u8" in files(tmp_path / "c")
    assert purge(tmp_path / "c") > 7 * 3 * SIDE * SIDE
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["mine.txt"]
    check_same(build(images, tmp_path / "c"), images)


def test_real_images(shared, tmp_path):
    paths = [str(p) for p in sorted((shared / "data/chestxray14/images").iterdir())[:300]]
    cache = build_cache(paths, image_side=32, folder=tmp_path / "c")
    assert cache.bad == {} and cache.images(range(300)).float().std() > 20
