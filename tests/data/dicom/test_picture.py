"""Pictures of every transfer syntax and kind of pixels, against values that the tests know and against pydicom."""

import copy
import io
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut
from pydicom.uid import JPEG2000Lossless

from fed_diffmic.data.dicom.parse import colour_transform
from fed_diffmic.data.dicom.picture import picture_of
from fed_diffmic.data.dicom.reasons import UnusableError
from tests.data.dicom.written import LOSSLESS_WRITTEN, baseline, content, header, ramp, saved, with_pixels

PACKAGED = Path(pydicom.data.__file__).parent / "test_files"
MOST = 10**7


def picture(data, **more):
    return picture_of(data, most_pixels=MOST, **more)


def reason(data, **more):
    with pytest.raises(UnusableError) as caught:
        picture(data, **more)
    return caught.value.reason


@pytest.mark.parametrize("syntax", LOSSLESS_WRITTEN)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_every_lossless_syntax_gives_the_values_that_were_written(syntax, bits):
    values = ramp(bits)
    stored = values.astype(np.uint8) if bits == 8 else values
    found = picture(content(with_pixels(header(), stored, bits=bits), syntax), window="header")
    np.testing.assert_array_equal(found.pixels, np.rint(values / ((1 << bits) - 1) * 65535))
    assert found.stated.how == "range"


@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpeg_ls", "jpeg2000"])
def test_signed_values(syntax):
    values = ramp(12).astype(np.int16) - 2048
    ds = with_pixels(header(RescaleSlope=2, RescaleIntercept=10), values, bits=12)
    found = picture(content(ds, syntax), window="header")
    np.testing.assert_array_equal(found.pixels, np.rint((values.astype(np.int64) + 2048) / 4095 * 65535))
    assert (found.stated.low, found.stated.high) == (-4086, 4104)


def test_monochrome1_is_turned_back():
    values = ramp(12)
    plain = picture(content(with_pixels(header(), values, bits=12)), window="header")
    turned = picture(content(with_pixels(header(), values, bits=12, photometric="MONOCHROME1")), window="header")
    np.testing.assert_array_equal(turned.pixels, 65535 - plain.pixels)


@pytest.mark.parametrize("syntax", ["explicit", "big_endian", "deflated", "rle", "jpeg_ls", "jpeg2000"])
@pytest.mark.parametrize("planar", [0, 1])
def test_colour_by_pixel_and_by_plane(syntax, planar):
    if planar and syntax in ("jpeg_ls", "jpeg2000", "rle"):  # these name the order themselves
        return
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    ds = with_pixels(header(), pixels, photometric="RGB")
    if planar:
        ds.PlanarConfiguration, ds.PixelData = 1, pixels.transpose(2, 0, 1).tobytes()
    np.testing.assert_array_equal(picture(content(ds, syntax)).pixels, pixels)


def test_uncompressed_ybr_is_colour():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    ybr = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    found = picture(content(with_pixels(header(), ybr, photometric="YBR_FULL"))).pixels
    assert np.abs(found.astype(int) - pixels).max() <= 3  # rounded twice


@pytest.mark.parametrize("transformed", [0, 1])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_RCT"])
def test_colours_of_jpeg_2000_are_turned_back_once_or_the_frame_is_refused(photometric, transformed):
    """The frame says whether its decoder turns them, the header whether what is behind it does."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    ybr = photometric == "YBR_FULL"
    stored = np.asarray(Image.fromarray(pixels).convert("YCbCr")) if ybr else pixels
    stream = io.BytesIO()
    Image.fromarray(stored).save(stream, format="JPEG2000", no_jp2=True, irreversible=False, mct=transformed)
    assert colour_transform(stream.getvalue()) is bool(transformed)
    ds = with_pixels(header(), stored, photometric=photometric)
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.PixelData = encapsulate([stream.getvalue()])
    ds["PixelData"].VR = "OB"
    if (photometric, transformed) in (("YBR_FULL", 1), ("YBR_RCT", 0)):
        assert reason(saved(ds)) == "dicom_contradiction"
    else:
        assert np.abs(picture(saved(ds)).pixels.astype(int) - pixels).max() <= (3 if ybr else 0)


@pytest.mark.parametrize(
    "stream",
    [b"", b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\xff\x4f\xff\x51\x00\x02\xff\x90\x00\x02\xff\x52" + bytes(9)],
)
def test_a_frame_that_does_not_say_whether_its_colours_are_transformed(stream):
    assert colour_transform(stream) is None


@pytest.mark.parametrize("colour", [False, True])
def test_jpeg_baseline_is_near_what_was_written(colour):
    y, x = np.mgrid[:64, :80]
    pixels = np.stack([x * 3, y * 3, x + y], axis=2).astype(np.uint8) if colour else (x + y).astype(np.uint8)
    found = picture(baseline(header(), pixels)).pixels
    shown = found if colour else np.rint(found / 257)
    assert np.abs(shown.astype(int) - pixels).max() <= (12 if colour else 4)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_looked_up(bits):
    values = ramp(8).astype(np.uint8)
    ds = with_pixels(header(), values, photometric="PALETTE COLOR")
    for place, name in enumerate(("Red", "Green", "Blue")):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
        table = np.roll(np.arange(256), 40 * place).astype(np.uint8 if bits == 8 else np.uint16)
        setattr(ds, f"{name}PaletteColorLookupTableData", (table << (bits - 8)).tobytes())
    found = picture(content(ds)).pixels
    np.testing.assert_array_equal(found, np.stack([(values.astype(int) - 40 * c) % 256 for c in range(3)], axis=2))
    np.testing.assert_array_equal(found, apply_color_lut(values, ds) >> (bits - 8))


def test_older_overlays_in_the_upper_bits_are_no_part_of_the_picture():
    values = ramp(12)
    ds = with_pixels(header(), values | 0x8000, bits=12)
    assert reason(content(ds)) == "dicom_contradiction"
    ds.add_new(0x60000010, "US", ds.Rows)
    ds.add_new(0x60000102, "US", 15)
    np.testing.assert_array_equal(picture(content(ds), window="header").pixels, np.rint(values / 4095 * 65535))


def test_the_frame_that_stands_for_several():
    values = np.stack([ramp(12, seed=i) for i in range(5)])
    ds = with_pixels(header(), values, bits=12)
    for named, frame in ((None, 2), (5, 4), (9, 2)):
        if named is not None:
            ds.RepresentativeFrameNumber = named
        found = picture(saved(ds), window="header").pixels
        np.testing.assert_array_equal(found, np.rint(values[frame] / 4095 * 65535))
    assert reason(saved(ds), frame=5) == "dicom_contradiction"


def test_an_enhanced_object_has_a_window_for_each_frame():
    values = np.stack([ramp(12), ramp(12)])
    ds = with_pixels(header(), values, bits=12)
    groups = []
    for centre in (500, 2500):
        group, look, scale = Dataset(), Dataset(), Dataset()
        look.WindowCenter, look.WindowWidth = centre, 100
        scale.RescaleSlope, scale.RescaleIntercept = 1, 0
        group.FrameVOILUTSequence, group.PixelValueTransformationSequence = [look], [scale]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    for frame, centre in enumerate((500, 2500)):
        found = picture(saved(ds), frame=frame)
        assert found.stated.low == centre - 50
        assert (found.pixels[values[frame] > centre + 60] == 65535).all()
        assert (found.pixels[values[frame] < centre - 60] == 0).all()


def test_twelve_bits_in_sixteen_are_recognised():
    assert picture(content(with_pixels(header(), ramp(12)))).narrow
    assert not picture(content(with_pixels(header(), ramp(12), bits=12))).narrow
    assert not picture(content(with_pixels(header(), ramp(16)))).narrow


def test_what_cannot_be_a_picture_has_its_reason():
    plain = with_pixels(header(), ramp(12), bits=12)
    for change, expected in (
        ({"BitsStored": 17}, "dicom_contradiction"),
        ({"HighBit": 15}, "dicom_contradiction"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, "dicom_unsupported"),
        ({"SamplesPerPixel": 2}, "dicom_unsupported"),
        ({"Rows": 0}, "unreadable"),
        ({"Rows": 60000, "Columns": 60000}, "too_large"),
        ({"Rows": 50}, "truncated"),
        ({"BitsAllocated": 32}, "unknown_range"),
        ({"NumberOfFrames": 0}, "unreadable"),
    ):
        ds = copy.deepcopy(plain)
        for name, value in change.items():
            setattr(ds, name, value)
        assert reason(saved(ds)) == expected, change
    assert reason(saved(header())) == "dicom_no_picture"
    assert reason(b"no DICOM") == "unknown_format"


PACKAGED_REASONS = {
    "JPEG-lossy.dcm": "unreadable",
    "JPEG2000-embedded-sequence-delimiter.dcm": "dicom_contradiction",
    "MR_truncated.dcm": "truncated",
    "SC_rgb_rle_32bit.dcm": "unknown_range",
    "liver_1frame.dcm": "dicom_unsupported",
    "rtdose.dcm": "dicom_no_picture",
    "test-SR.dcm": "dicom_no_picture",
    "waveform_ecg.dcm": "dicom_no_picture",
    "no_meta.dcm": "unknown_format",
}


@pytest.mark.parametrize("name", PACKAGED_REASONS)
def test_packaged_files_that_hold_no_usable_picture(name):
    assert reason((PACKAGED / name).read_bytes()) == PACKAGED_REASONS[name]


def test_packaged_copies_of_one_image_are_one_picture():
    whole = picture((PACKAGED / "MR_small.dcm").read_bytes())
    for syntax in ("RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"):
        found = picture((PACKAGED / f"MR_small_{syntax}.dcm").read_bytes())
        np.testing.assert_array_equal(found.pixels, whole.pixels)
    first = pydicom.dcmread(PACKAGED / "MR_small.dcm")
    centre, width = float(first.WindowCenter), float(first.WindowWidth)
    share = np.clip((first.pixel_array - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    assert np.abs(whole.pixels / 65535 - share).max() < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_rgb_rle.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_small_odd_jpeg.dcm",
    ],
)
def test_packaged_colour_is_what_another_decoder_says(name):
    """GDCM or Pillow, whichever of them decodes it; both are other programs than ours (libjpeg of T. Richter)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(PACKAGED / name)
        decoder = pydicom.pixels.get_decoder(ds.file_meta.TransferSyntaxUID)
        others = [plugin for plugin in decoder.available_plugins if plugin != "pylibjpeg"]
        expected, _ = decoder.as_array(ds, index=0, decoding_plugin=others[0] if others else "")
    found = picture((PACKAGED / name).read_bytes()).pixels
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_packaged_twelve_bit_jpeg_is_decoded():
    found = picture((PACKAGED / "JPGExtended.dcm").read_bytes())
    assert found.pixels.shape == (1024, 256)
    assert found.stated.high == 112
