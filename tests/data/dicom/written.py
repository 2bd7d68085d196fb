"""DICOM files that the tests write: one for each transfer syntax and kind of pixels."""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

DX = "1.2.840.10008.5.1.4.1.1.1.1"
LOSSLESS_WRITTEN = (
    "implicit",
    "explicit",
    "big_endian",
    "deflated",
    "rle",
    "jpeg_ls",
    "jpeg2000",
    "jpeg_lossless",
    "jpeg_lossless_sv1",
)
_PLAIN = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "big_endian": ExplicitVRBigEndian,
}
_PYDICOM = {"rle": RLELossless, "jpeg_ls": JPEGLSLossless, "jpeg2000": JPEG2000Lossless}
_GDCM = {"jpeg_lossless": "JPEGLosslessProcess14", "jpeg_lossless_sv1": "JPEGLosslessProcess14_1"}


def header(number: int = 1, patient: str = "4711", sop_class: str = DX, **more: object) -> Dataset:
    """A header without pixels."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"1.2.3.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.4.{number}", f"1.2.5.{number}"
    ds.PatientID, ds.AccessionNumber, ds.Modality = patient, f"A{number:05d}", "DX"
    for name, value in more.items():
        setattr(ds, name, value)
    return ds


def with_pixels(ds: Dataset, values: np.ndarray, *, bits: int = 0, photometric: str = "MONOCHROME2") -> Dataset:
    """Pixels of a header: ``(h, w)`` grey or ``(h, w, 3)`` colour, ``(n, h, w)`` frames."""
    colour = values.shape[-1] == 3
    frames = values.shape[0] if values.ndim == (4 if colour else 3) else 0
    ds.Rows, ds.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3 if colour else 1), photometric
    ds.BitsAllocated = 8 * values.dtype.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(values.dtype.kind == "i")
    if colour:
        ds.PlanarConfiguration = 0
    if frames:
        ds.NumberOfFrames = frames
    ds.PixelData = values.tobytes()
    ds["PixelData"].VR = "OW" if values.dtype.itemsize == 2 else "OB"
    return ds


def content(ds: Dataset, syntax: str = "explicit") -> bytes:
    """The file, in a transfer syntax that loses nothing."""
    if syntax in _GDCM:
        return _by_gdcm(ds, _GDCM[syntax])
    if syntax in _PYDICOM:
        ds.compress(_PYDICOM[syntax], generate_instance_uid=False)
    else:
        ds.file_meta.TransferSyntaxUID = _PLAIN[syntax]
        if syntax == "big_endian" and ds.BitsAllocated == 16:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    return saved(ds)


def baseline(ds: Dataset, pixels: np.ndarray) -> bytes:
    """The file with 8-bit pixels, grey or colour, as JPEG baseline of Pillow (YCbCr, colour halved)."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=95)
    with_pixels(ds, pixels, photometric="YBR_FULL_422" if pixels.ndim == 3 else "MONOCHROME2")
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([stream.getvalue()])
    ds["PixelData"].VR = "OB"
    return saved(ds)


def saved(ds: Dataset) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def _by_gdcm(ds: Dataset, name: str) -> bytes:
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.dcm"), Path(folder, "b.dcm")
        source.write_bytes(saved(ds))
        reader = gdcm.ImageReader()
        reader.SetFileName(str(source))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return target.read_bytes()


def ramp(bits: int = 12, side: int = 40, seed: int = 0) -> np.ndarray:
    """``(side, side + 4)`` uint16 values over the whole range of ``bits``, none of them symmetrical."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, (side, side + 4))
    values.flat[0], values.flat[1] = 0, (1 << bits) - 1
    return values.astype(np.uint16)
