"""Digests of what files decode to: the same for every encoding without loss, another for every other picture."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fed_diffmic.data import pixels as module
from fed_diffmic.data.decode import read_content
from fed_diffmic.data.pixels import MEMO, alike, difference_hash, pixel_digest, pixel_digests

RGB = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)


def encoded(pixels, form="PNG", **settings):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **settings)
    return stream.getvalue()


def test_an_encoding_without_loss_changes_nothing():
    files = [encoded(RGB), encoded(RGB, compress_level=0), encoded(RGB, "BMP"), encoded(RGB, "TIFF")]
    files.append(encoded(np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])))  # opaque
    assert len(set(files)) == 5 and len({pixel_digest(data) for data in files}) == 1
    grey = RGB[:, :, 0]
    assert pixel_digest(encoded(grey)) == pixel_digest(encoded(np.dstack([grey] * 3)))
    deep = grey.astype(np.uint16) * 200
    assert pixel_digest(encoded(deep)) == pixel_digest(encoded(deep, "TIFF")) != pixel_digest(encoded(grey))


def test_another_picture_has_another_digest():
    changed = RGB.copy()
    changed[3, 4, 1] ^= 1
    others = [changed, RGB[::-1], RGB[:-1], RGB.transpose(1, 0, 2), RGB.reshape(30, 20, 3)]
    assert len({pixel_digest(encoded(np.ascontiguousarray(p))) for p in [RGB, *others]}) == 6


def test_a_turned_copy_that_says_so_is_the_same():
    upright = Image.fromarray(RGB)
    exif = upright.getexif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(stream, "PNG", exif=exif)
    assert pixel_digest(stream.getvalue()) == pixel_digest(encoded(RGB))


@pytest.mark.parametrize("data", [b"", b"no image", encoded(RGB)[:200]])
def test_what_cannot_be_decoded_has_none(data):
    assert pixel_digest(data) == ""


def test_each_content_is_decoded_once(tmp_path, monkeypatch):
    paths = []
    for name, data in (("a", encoded(RGB)), ("b", encoded(RGB, compress_level=0)), ("c", encoded(RGB[::-1].copy()))):
        (tmp_path / name).write_bytes(data)
        paths.append(str(tmp_path / name))
    (tmp_path / "d").write_bytes(b"no image")
    paths += [str(tmp_path / "d"), paths[0]]
    contents = [read_content(path).digest for path in paths]
    found = pixel_digests(paths, contents, tmp_path / "kept")
    assert found[0] == found[1] == found[4] != found[2] and found[3] == contents[3]
    memo = tmp_path / "kept" / MEMO
    assert memo.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(module, "pixel_digest", None)  # whoever decodes again fails
    assert pixel_digests(paths, contents, tmp_path / "kept") == found
    monkeypatch.undo()
    memo.write_text("{")
    assert pixel_digests(paths, contents, tmp_path / "kept") == found


def test_a_file_that_changed_meanwhile_is_taken_for_its_content(tmp_path):
    (tmp_path / "a").write_bytes(encoded(RGB))
    assert pixel_digests([str(tmp_path / "a")], ["0" * 64], tmp_path / "kept") == ["0" * 64]


def test_copies_in_another_size_or_compression_look_alike():
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:64, :64] / 64

    def scene():
        a, b, c = rng.uniform(1, 6, 3)
        return (127 + 60 * np.sin(a * x + b) + 60 * np.cos(c * y + a * x * y)).astype(np.uint8)

    scenes = [Image.fromarray(scene()).convert("RGB") for _ in range(12)]
    stream = io.BytesIO()
    scenes[0].save(stream, "JPEG", quality=60)
    copies = [Image.open(stream), scenes[1].resize((40, 40)).resize((64, 64))]
    images = torch.from_numpy(np.stack([np.asarray(s).transpose(2, 0, 1) for s in [*scenes, *copies]]))
    hashes = difference_hash(images)
    assert hashes.dtype == np.uint64 and hashes.shape == (14,)
    assert alike(hashes).tolist() == alike(hashes, chunk=5).tolist() == [[0, 12], [1, 13]]
    assert alike(hashes[:0]).shape == (0, 2)
