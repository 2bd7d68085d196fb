"""A bad file is a reason: damaged, too large, crashing, hanging. The process that asks goes on."""

import concurrent.futures
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pydicom.data
import pytest

from fed_diffmic.data.decode import REASONS, BadImageError, decode, stretched
from fed_diffmic.data.dicom import bounded, parse, reasons
from fed_diffmic.data.dicom.bounded import DECODERS, Decoders, rendered
from fed_diffmic.data.dicom.export import png
from fed_diffmic.data.dicom.picture import picture_of
from fed_diffmic.data.dicom.reasons import UnusableError
from fed_diffmic.data.pixels import pixel_digest
from tests.data.dicom.written import LOSSLESS_WRITTEN, baseline, content, header, ramp, with_pixels

PACKAGED = Path(pydicom.data.__file__).parent / "test_files"


def one_of_each():
    found = {name: content(with_pixels(header(), ramp(12), bits=12), name) for name in LOSSLESS_WRITTEN}
    found["jpeg_baseline"] = baseline(header(), np.full((40, 50, 3), 120, dtype=np.uint8))
    found["jpeg_12_bit"] = (PACKAGED / "JPGExtended.dcm").read_bytes()
    found["jpeg_ls_lossy"] = (PACKAGED / "JPEGLSNearLossless_16.dcm").read_bytes()
    return found


def test_a_random_corruption_of_each_syntax_is_a_reason_or_a_picture():
    """Bytes changed, a stretch zeroed, an end cut off: never an exception of a library, never a wait."""
    rng = np.random.default_rng(7)
    outcomes = set()
    began = time.monotonic()
    for data in one_of_each().values():
        for _ in range(6):
            torn = bytearray(data)
            for _ in range(int(rng.integers(1, 6))):
                torn[int(rng.integers(132, len(torn)))] = int(rng.integers(256))
            if rng.random() < 0.3:
                start = int(rng.integers(132, len(torn)))
                torn[start : start + 64] = bytes(len(torn[start : start + 64]))
            if rng.random() < 0.3:
                del torn[int(rng.integers(140, len(torn))) :]
            try:
                pixels, _ = rendered(bytes(torn), most_pixels=10**6, seconds=10)
                outcomes.add("picture")
                assert pixels.size
            except UnusableError as error:
                outcomes.add(error.reason)
    assert {"picture", "unreadable"} <= outcomes <= {"picture", *REASONS}
    assert time.monotonic() - began < 120


def test_a_decoder_that_breaks_down_or_hangs_is_a_reason_and_the_next_file_is_opened(monkeypatch):
    monkeypatch.setattr(bounded, "_MODULE", "tests.data.dicom.bad_child")
    decoders = Decoders()
    for what, expected in (("abort", "dicom_crashed"), ("hang", "dicom_too_slow"), ("memory", "too_large")):
        began = time.monotonic()
        with pytest.raises(UnusableError) as caught:
            decoders.ask({"what": what}, b"x", seconds=0.5)
        if what == "memory":  # an exception that nothing caught ends the process
            expected = "dicom_crashed"
        assert caught.value.reason == expected
        assert time.monotonic() - began < 30
    assert decoders.ask({"what": "fine"}, b"12345") == ({"done": 5, "bytes": 0}, b"")
    decoders.close()


def test_threads_ask_at_once():
    files = list(one_of_each().values())[:4] * 4
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda data: rendered(data, most_pixels=10**6)[0], files))
    for data, pixels in zip(files, found, strict=True):
        np.testing.assert_array_equal(pixels, picture_of(data, most_pixels=10**6).pixels)
    DECODERS.close()
    assert rendered(files[0], most_pixels=10**6)[0].size


def test_a_frame_that_announces_another_size_than_its_header_is_not_decoded():
    for name in ("jpeg_ls", "jpeg2000", "jpeg_lossless"):
        data = bytearray(content(with_pixels(header(), ramp(12), bits=12), name))
        if name == "jpeg2000":
            place = data.find(b"\xff\x4f\xff\x51") + 8
            data[place : place + 8] = struct.pack(">2I", 60_000, 60_000)
        else:
            marker = data.find(b"\xff\xf7" if name == "jpeg_ls" else b"\xff\xc3", data.find(b"\xff\xd8")) + 5
            data[marker : marker + 4] = struct.pack(">2H", 60_000, 60_000)
        with pytest.raises(UnusableError, match="dicom_contradiction"):
            picture_of(bytes(data), most_pixels=10**7)


def test_a_deflated_file_may_not_grow_without_end(monkeypatch):
    ds = with_pixels(header(), np.zeros((400, 400), np.uint16), bits=12)
    data = content(ds, "deflated")
    assert picture_of(data, most_pixels=10**6).pixels.shape == (400, 400)
    monkeypatch.setattr(parse, "MOST_INFLATED", 100_000)
    with pytest.raises(UnusableError, match="too_large"):
        picture_of(data, most_pixels=10**6)


def element(group, number, vr, value):
    value += b"\0" * (len(value) % 2)
    length = b"\0\0" + struct.pack("<I", len(value)) if vr == b"OB" else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + vr + length + value


def deflated(mib, padding=b"\0\1", before=b"", lie=False):
    """A file whose pixels take ``mib`` MiB when they are inflated; an empty deflate stream stands at its end.

    ``padding``: of the file's own group. ``before``: elements between it and what is deflated. ``lie``: the length of
    the group leads to the end of the file.
    """
    meta = element(2, 1, b"OB", padding) + element(2, 2, b"UI", b"1.2.840.10008.5.1.4.1.1.1.1")
    meta += element(2, 3, b"UI", b"1.2.3") + element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1.99")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflater.compress(struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, mib << 20) + bytes(mib << 20))
    body += deflater.flush()
    length = len(meta) + (len(before + body) if lie else 0)
    start = bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", length))
    return start + meta + before + body + b"\x03\x00"


# an element of the command group that is an empty deflate stream for whoever starts there: 00 00 00 ff ff, 03 00
COMMAND = struct.pack("<HHI", 0, 0xFF00, 0x3FF) + bytes(0x3FF)


@pytest.mark.parametrize(
    "how",
    [{}, {"padding": b"\0\1" * 2500}, {"lie": True}, {"before": COMMAND}],
    ids=["plain", "late", "lie", "command"],
)
def test_no_header_hides_what_is_inflated(monkeypatch, how):
    """pydicom inflates each of these; the bound looks at the same bytes, wherever the header says that they begin."""
    data = deflated(4, **how)
    assert len(parse.parse(data).PixelData) == 4 << 20
    monkeypatch.setattr(parse, "MOST_INFLATED", 2**20)
    with pytest.raises(UnusableError, match="too_large"):
        parse.parse(data)


@pytest.mark.parametrize(("gib", "cores", "most"), [(9, 8, 2), (1, 8, 1), (64, 3, 3), (float("inf"), 5, 5)])
def test_decoders_fit_into_the_machine(monkeypatch, gib, cores, most):
    monkeypatch.setattr(bounded.os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(bounded, "_memory", lambda: gib * 2**30)
    assert bounded.most_at_once() == Decoders()._at_once == most


def test_no_more_decoders_than_that_run_whoever_asks(monkeypatch):
    lock, alive = threading.Lock(), []

    class Slow:
        most = 0

        def __init__(self):
            with lock:
                alive.append(self)
                Slow.most = max(Slow.most, len(alive))

        def lives(self):
            return True

        def ask(self, head, data, seconds):
            time.sleep(0.02)
            if data == b"bad":
                raise UnusableError("dicom_crashed")
            return {}, data

        def end(self):
            with lock:
                alive.remove(self)

    def ask(data):
        try:
            return decoders.ask({}, data)[1]
        except UnusableError as error:
            return error.reason

    monkeypatch.setattr(bounded, "_Process", Slow)
    decoders = Decoders(2)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, [b"a", b"bad"] * 8)) == [b"a", "dicom_crashed"] * 8
    assert Slow.most == 2
    decoders.close()


def test_a_decoder_is_told_no_secret_of_the_environment(monkeypatch):
    monkeypatch.setattr(bounded, "_MODULE", "tests.data.dicom.bad_child")
    monkeypatch.setenv("A_TOKEN", "opensesame")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    decoders = Decoders(1)
    names = set(decoders.ask({"what": "environment"}, b"")[0]["names"])
    decoders.close()
    assert not names & {"A_TOKEN", "HOME", "USER"}
    assert {"LC_ALL", "PATH", "PYTHONPATH", "OMP_NUM_THREADS"} <= names


def test_without_the_packages_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.setattr(bounded, "readers", lambda: "")
    with pytest.raises(BadImageError) as caught:
        decode(content(with_pixels(header(), ramp(12), bits=12)), 32)
    assert "fed-diffmic[dicom]" in reasons.REASONS[caught.value.reason]


def test_a_dicom_file_in_a_table_is_what_its_png_is():
    grey = content(with_pixels(header(WindowCenter=2000, WindowWidth=3000), ramp(12), bits=12), "jpeg2000")
    colour = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    for data in (grey, content(with_pixels(header(), colour, photometric="RGB"))):
        pixels, _ = rendered(data, most_pixels=10**6)
        np.testing.assert_array_equal(decode(data, 32), decode(png(pixels), 32))
        assert pixel_digest(data) == pixel_digest(png(pixels)) != ""
    np.testing.assert_array_equal(decode(data, 32), stretched(colour, 32))
