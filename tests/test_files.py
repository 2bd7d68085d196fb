"""Durable writes: whole or not at all."""

import errno
import os
import stat
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fed_diffmic import files
from fed_diffmic.errors import MachineError, ModelFileError


def test_atomic_write_replaces_and_sets_mode(tmp_path):
    path = tmp_path / "a.txt"
    files.atomic_write(path, b"one")
    files.atomic_write(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.atomic_write(path, b"one")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        files.atomic_write(path, b"two")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_tensors_round_trip_keeps_bits_shapes_and_dtypes(tmp_path):
    tensors = {
        "scalar": np.array(3, np.int64),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "flag": np.array([True, False]),
    }
    files.save_tensors(tmp_path / "t.safetensors", tensors)
    back = files.load_tensors(tmp_path / "t.safetensors")
    assert files.tensors_digest(back) == files.tensors_digest(tensors)
    assert back["scalar"].shape == ()
    np.testing.assert_array_equal(back["transposed"], tensors["transposed"])


def test_torn_tensors_are_noticed(tmp_path):
    path = files.save_tensors(tmp_path / "t.safetensors", {"a": np.zeros(100, np.float32)})
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ModelFileError, match="not a readable safetensors"):
        files.load_tensors(path)


KINDS = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool", "uint16", ">f4")


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=6).filter(lambda name: name.isprintable() and name != "__metadata__"),
        st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 3), max_size=3)),
        max_size=6,
    ),
    st.one_of(st.none(), st.text(max_size=5).filter(str.isprintable)),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_of_tensors_is_what_the_library_writes(tmp_path, found, said):
    rng = np.random.default_rng(0)
    tensors = {name: (rng.random(shape) * 99).astype(kind) for name, (kind, shape) in found.items()}
    about = None if said is None else {"about": said}
    path = files.save_tensors(tmp_path / "t.safetensors", tensors, about)
    assert path.read_bytes() == save({k: np.asarray(v, order="C") for k, v in tensors.items()}, about)
    back = files.load_tensors(path)
    assert {k: (v.shape, v.tolist()) for k, v in back.items()} == {k: (v.shape, v.tolist()) for k, v in tensors.items()}
    assert all(value.flags.writeable for value in back.values())


def test_writing_and_reading_tensors_copies_no_more_than_it_must(tmp_path):
    tensors = {str(n): np.ones(250_000, np.float32) for n in range(8)}
    size, peaks = 8_000_000, []
    for step in (
        lambda: files.save_tensors(tmp_path / "t.safetensors", tensors),
        lambda: files.load_tensors(tmp_path / "t.safetensors"),
    ):
        tracemalloc.start()
        step()
        peaks.append(tracemalloc.get_traced_memory()[1] / size)
        tracemalloc.stop()
    assert peaks[0] < 0.1  # of what is written; 2 before
    assert peaks[1] < 2.1  # the file's bytes and the tensors; 3 before


@pytest.mark.parametrize("change", ["value", "name", "shape", "dtype"])
def test_digest_sees_every_change(change):
    base = {"a": np.zeros((2, 3), np.float32)}
    other = {
        "value": {"a": np.full((2, 3), 1e-30, np.float32)},
        "name": {"b": base["a"]},
        "shape": {"a": base["a"].reshape(3, 2)},
        "dtype": {"a": np.zeros((2, 3), np.int32)},
    }[change]
    assert files.tensors_digest(other) != files.tensors_digest(base)


@given(st.text(min_size=1), st.text(min_size=1))
def test_safe_names_are_safe_and_distinct(a, b):
    for name in (a, b):
        safe = files.safe_name(name)
        assert safe not in ("", ".", "..") and "/" not in safe and len(safe) <= 64
    if a != b:
        assert files.safe_name(a) != files.safe_name(b)


def test_append_line_appends(tmp_path):
    files.append_line(tmp_path / "l", "one")
    files.append_line(tmp_path / "l", "two\n")
    assert (tmp_path / "l").read_text() == "one\ntwo\n"


def test_new_files_are_written_all_or_none_and_never_over_others(tmp_path, monkeypatch):
    wanted = {tmp_path / name: (name.encode(), 0o600) for name in ("a", "b", "c")}
    (tmp_path / "c").write_bytes(b"mine")
    with pytest.raises(FileExistsError) as refused:
        files.write_all_new(wanted)
    assert refused.value.filename == str(tmp_path / "c")
    assert os.listdir(tmp_path) == ["c"]
    (tmp_path / "c").unlink()
    real, calls = files.os.replace, []

    def fails_at_the_third(*paths):
        calls.append(paths)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", fails_at_the_third)
        with pytest.raises(MachineError, match="No space left"):
            files.write_all_new(wanted)
    assert os.listdir(tmp_path) == []
    files.write_all_new(wanted)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"a", "b": b"b", "c": b"c"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())


def test_a_name_that_appears_meanwhile_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os.path, "lexists", lambda path: False)
    (tmp_path / "b").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        files.write_all_new({tmp_path / "a": (b"a", 0o600), tmp_path / "b": (b"b", 0o600)})
    assert os.listdir(tmp_path) == ["b"]
    assert (tmp_path / "b").read_bytes() == b"mine"


def test_a_private_folder_is_its_owners_alone(tmp_path):
    made = files.private_folder(tmp_path / "deep" / "private")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o755)
    assert files.private_folder(made) == made  # read by others: what is private in it has its own mode
    made.chmod(0o775)
    with pytest.raises(MachineError, match="chmod 700"):
        files.private_folder(made)
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot make the folder"):
        files.private_folder(tmp_path / "file" / "below")


def test_a_link_is_written_through(tmp_path):
    target, link = tmp_path / "deep" / "target.json", tmp_path / "link.json"
    target.parent.mkdir()
    link.symlink_to(target)
    files.atomic_write(link, b"new")  # also where the target is not there yet
    files.atomic_write(link, b"newer")
    assert link.is_symlink() and target.read_bytes() == b"newer"
    assert [p.name for p in target.parent.iterdir()] == ["target.json"]


def test_what_is_no_file_is_written_into_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.atomic_write(pipe, b"through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    before = os.stat(os.devnull)
    files.atomic_write(os.devnull, b"gone")
    assert os.stat(os.devnull).st_ino == before.st_ino
    with pytest.raises(MachineError):
        files.atomic_write(tmp_path, b"a folder")


def test_a_pipe_that_takes_little_at_a_time_gets_everything():
    reader, writer = os.pipe()
    got = []

    def read():
        while data := os.read(reader, 4096):
            got.append(data)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    data = os.urandom(300_000)
    try:
        files.atomic_write(f"/dev/fd/{writer}", data)
    finally:
        os.close(writer)
    thread.join(30)
    os.close(reader)
    assert b"".join(got) == data


def test_a_result_goes_to_a_file_or_to_standard_output(tmp_path, capsys):
    files.write_out("-", b"one\n")
    assert capsys.readouterr().out == "one\n"
    assert files.is_output("-") and not files.is_output(tmp_path / "none")
    files.write_out(tmp_path / "-", b"two", mode=0o600)
    assert (tmp_path / "-").read_bytes() == b"two" and stat.S_IMODE((tmp_path / "-").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["/dev/stdout", "-", "all.txt"])
def test_standard_output_that_is_led_into_a_file_is_written_on(tmp_path, name):
    """Renamed over, the file would lose what is printed after."""
    program = f"from fed_diffmic.files import write_out; write_out({name!r}, b'result\\n'); print('after')"
    with (tmp_path / "all.txt").open("w") as out:
        path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run([sys.executable, "-c", program], stdout=out, cwd=tmp_path, env=path, check=True, timeout=120)
    assert (tmp_path / "all.txt").read_text() == "result\nafter\n"
