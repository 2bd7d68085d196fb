"""Every form an image may have comes out as the RGB square a person would see, or as a reason code."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fed_diffmic.data import decode as module
from fed_diffmic.data.decode import REASONS, BadImageError, decode, read_content, stretched

SIDE = 8


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def reason(data: bytes) -> str:
    with pytest.raises(BadImageError) as caught:
        decode(data, SIDE)
    assert caught.value.reason in REASONS
    return caught.value.reason


def constant(mode: str, colour) -> Image.Image:
    return Image.new(mode, (20, 12), colour)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (constant("L", 90), (90, 90, 90)),
        (constant("1", 1), (255, 255, 255)),
        (constant("RGB", (10, 20, 30)), (10, 20, 30)),
        (constant("RGBA", (200, 100, 50, 255)), (200, 100, 50)),
        (constant("RGBA", (200, 100, 50, 0)), (0, 0, 0)),  # what lies under full transparency is not shown
        (constant("LA", (200, 255)), (200, 200, 200)),
        (constant("P", 3), None),
    ],
)
def test_modes(image, expected):
    pixels = decode(encode(image), SIDE)
    assert pixels.shape == (3, SIDE, SIDE) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    expected = expected or image.convert("RGB").getpixel((0, 0))
    assert (pixels == np.array(expected, np.uint8)[:, None, None]).all()


def test_half_transparent_pixels_are_darkened_towards_black():
    pixels = decode(encode(constant("RGBA", (200, 100, 50, 128))), SIDE)
    assert np.abs(pixels[:, 0, 0].astype(int) - np.array([100, 50, 25])).max() <= 1


def test_palette_with_transparency_and_rgb_with_a_transparent_colour():
    palette = Image.new("P", (20, 12), 1)
    palette.putpalette([0, 0, 0, 250, 0, 0])
    assert decode(encode(palette), SIDE)[0].min() == 250
    assert decode(encode(palette, transparency=1), SIDE).max() == 0
    assert decode(encode(constant("RGB", (1, 2, 3)), transparency=(1, 2, 3)), SIDE).max() == 0


def test_cmyk_jpeg():
    pixels = decode(encode(constant("CMYK", (0, 255, 255, 0)), "JPEG", quality=95), SIDE)
    assert np.abs(pixels[:, 4, 4].astype(int) - np.array([255, 0, 0])).max() <= 12


def test_sixteen_bit_grey_is_scaled_from_its_full_range():
    values = np.full((16, 16), 32896, np.uint16)  # 128/255 of 65535
    values[0, 0] = 40000
    pixels = decode(encode(Image.fromarray(values)), SIDE)
    assert pixels.shape == (3, SIDE, SIDE)
    assert pixels[0, -1, -1] == 128
    assert (pixels[0] == pixels[2]).all()
    ends = np.zeros((16, 16), np.uint16)
    ends[:, 8:] = 65535
    pixels = decode(encode(Image.fromarray(ends)), SIDE)
    assert pixels.min() == 0 and pixels.max() == 255


def test_sixteen_bit_equals_its_eight_bit_twin():
    eight = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    twin = decode(encode(Image.fromarray(eight)), SIDE).astype(int)
    assert np.abs(decode(encode(Image.fromarray(eight.astype(np.uint16) * 257)), SIDE) - twin).max() <= 1


def test_exif_orientation_is_applied():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # bright above
    exif = Image.Exif()
    exif[274] = 3  # turned by 180 degrees
    upright = decode(encode(Image.fromarray(pixels), "JPEG", quality=95), SIDE)
    turned = decode(encode(Image.fromarray(pixels), "JPEG", quality=95, exif=exif), SIDE)
    assert upright[0, 0, 0] > 200 > 50 > upright[0, -1, 0]
    assert turned[0, 0, 0] < 50 < 200 < turned[0, -1, 0]
    exif[274] = 6  # to be turned a quarter clockwise
    assert np.abs(decode(encode(Image.fromarray(pixels), "TIFF", exif=exif), SIDE)[:, :, 0].astype(int) - 0).max() < 20
    assert decode(encode(Image.fromarray(pixels), "PNG", exif=exif), SIDE)[:, :, -1].min() > 235


def test_resize_is_antialiased():
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    pixels = decode(encode(Image.fromarray(stripes)), SIDE)
    assert np.abs(pixels.astype(int) - 127).max() <= 2  # nearest or plain bilinear would alias to 0 or 255


@pytest.mark.parametrize("size", [(900, 700), (901, 703), (1100, 640)])
def test_large_jpeg_is_shrunk_by_the_decoder_to_the_same_picture(size):
    """The decoder leaves twice the side at least, and the last pixel's share of an odd size is not stretched."""
    rng = np.random.default_rng(1)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    data = encode(smooth, "JPEG", quality=95)
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
    assert np.abs(decode(data, 32).transpose(1, 2, 0).astype(int) - plain).max() <= 4


def test_fine_stripes_in_a_large_jpeg_become_grey():
    """What has no place in the target is averaged away: a decoder that shrinks to the target itself would alias it."""
    rows = np.arange(512)
    stripes = np.repeat((127.5 + 100 * np.sin(2 * np.pi * rows / 11))[None], 512, axis=0).astype(np.uint8)
    data = encode(Image.fromarray(stripes), "JPEG", quality=95)
    plain = np.asarray(Image.open(io.BytesIO(data)).resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(decode(data, 64)[0].astype(int) - plain).max() <= 4


def test_reasons_of_damaged_content(tmp_path):
    whole = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    assert reason(whole[: len(whole) // 2]) == "truncated"
    assert reason(b"this is no image") == "unknown_format"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n") == "unknown_format"  # would start a program
    png = bytearray(encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))))
    png[80:120] = bytes(40)
    assert reason(bytes(png)) in ("unreadable", "truncated")
    assert reason(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")) == "unknown_range"


def test_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    assert reason(bomb) == "too_large"
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    assert reason(encode(constant("L", 0))) == "too_large"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_no_bytes_make_it_raise_anything_else():
    rng = np.random.default_rng(0)
    for file_format in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"):
        data = encode(Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)), file_format)
        for _ in range(40):
            damaged = bytearray(data)
            for position in rng.integers(0, len(data), 6):
                damaged[position] = rng.integers(0, 256)
            outcome = outcome_of(bytes(damaged))
            assert outcome in REASONS or outcome == (3, SIDE, SIDE)


def outcome_of(data: bytes):
    try:
        return decode(data, SIDE).shape
    except BadImageError as error:
        return error.reason


def test_read_content(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"abc")
    assert read_content(str(file)).digest == hashlib.sha256(b"abc").hexdigest()
    (tmp_path / "empty.png").write_bytes(b"")
    for path, expected in [
        (tmp_path / "none.png", "missing"),
        (tmp_path, "not_a_file"),
        (tmp_path / "empty.png", "empty"),
        ("nul\0byte.png", "unreadable"),
    ]:
        with pytest.raises(BadImageError) as caught:
            read_content(str(path))
        assert caught.value.reason == expected


def tiff(bits: int, photometric: int, values: np.ndarray) -> bytes:
    """An uncompressed grey TIFF of one strip, written by hand: Pillow writes none in which 0 is white."""
    height, width = values.shape
    data = values.astype("<u2" if bits == 16 else "<u1").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_in_which_zero_is_white_is_turned_back(bits):
    top = 2**bits - 1
    values = np.linspace(0, top, 12 * 20).reshape(12, 20).round()
    black_is_zero, white_is_zero = decode(tiff(bits, 1, values), SIDE), decode(tiff(bits, 0, top - values), SIDE)
    assert np.array_equal(black_is_zero, white_is_zero)
    assert black_is_zero[0, 0, 0] < 20 and black_is_zero[0, -1, -1] > 235


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage that is no TIFF", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0"])
def test_a_sound_jpeg_with_a_broken_exif_is_read(exif):
    plain = encode(constant("L", 90), "JPEG")
    broken = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert np.array_equal(decode(broken, SIDE), decode(plain, SIDE))


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_a_png_with_megabytes_of_text_is_read(kind):
    plain = encode(constant("L", 90))
    text = b"x" * (2 * 2**20)
    body = {
        b"tEXt": b"k\0" + text,
        b"zTXt": b"k\0\0" + zlib.compress(text),
        b"iTXt": b"k\0\1\0\0\0" + zlib.compress(text),
    }
    chunk = kind + body[kind]
    long = plain[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + plain[33:]
    if kind != b"tEXt":
        with pytest.raises(ValueError, match="too large"):  # Pillow itself
            Image.open(io.BytesIO(long)).load()
    assert np.array_equal(decode(long, SIDE), decode(plain, SIDE))


@pytest.mark.parametrize("size", [(20, 12), (8, 8), (3, 50)])
def test_pixels_in_memory_are_stretched_as_those_of_a_file(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    expected = decode(encode(Image.fromarray(pixels)), SIDE)
    np.testing.assert_array_equal(stretched(pixels, SIDE), expected)
    np.testing.assert_array_equal(stretched(np.asfortranarray(pixels), SIDE), expected)  # however it lies in memory


def test_pixels_in_memory_are_bounded_as_those_of_a_file(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 99)
    for pixels, why in ((np.zeros((10, 10, 3), np.uint8), "too_large"), (np.zeros((0, 9, 3), np.uint8), "empty")):
        with pytest.raises(BadImageError) as caught:
            stretched(pixels, SIDE)
        assert caught.value.reason == why
