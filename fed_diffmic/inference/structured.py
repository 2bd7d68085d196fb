"""A prediction as a DICOM structured report: one Enhanced SR document an image, by TID 1500 (``predict --dicom-sr``).

The document belongs to the image's study and patient, as the image's own header names them, and holds nothing else
about anybody. It is preliminary and unverified: a machine wrote it. Concepts that no public coding scheme has (a run's
classes, what is said of them) are coded in the private scheme :data:`SCHEME`; a class has the same code in every run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed_diffmic import __version__
from fed_diffmic.data.cache import content_key
from fed_diffmic.data.decode import BadImageError, read_content
from fed_diffmic.data.dicom.bounded import DECODERS
from fed_diffmic.data.dicom.origin import PATIENT, STUDY, Origin
from fed_diffmic.data.dicom.reasons import UnusableError, is_dicom
from fed_diffmic.errors import UsageError
from fed_diffmic.files import atomic_write, private_folder
from fed_diffmic.inference.predictions import Predictions
from fed_diffmic.inference.predictor import NOTICE

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept, EnhancedSR, Measurement, MeasurementReport, QualitativeEvaluation

SCHEME = "99FEDDIFFMIC"
MAKER = "fed_diffmic"
_MEANING = 64  # characters of a code's meaning (VR LO)
_SERIES = 9900
_UNIT = ("1", "UCUM", "no units")
_WORDS = {"present": "present", "either": "present or absent", "neither": "neither present nor absent"}


@dataclass(frozen=True)
class Author:
    """The model that a document is by.

    Attributes:
        run: name of the run.
        digest: of the model's weights.
        signed_by: fingerprint of the key whose signature was verified; empty: nobody signed.
        names: plain names of classes.
    """

    run: str
    digest: str
    signed_by: str
    names: Mapping[str, str]


@dataclass(frozen=True)
class Reports:
    """What was written.

    Attributes:
        written: documents.
        other: images that are no DICOM files.
        unnamed: DICOM files without the UIDs that a document must refer to, or that cannot be read any more.
        changed: files that are not any more what was predicted.
    """

    written: int = 0
    other: int = 0
    unnamed: int = 0
    changed: int = 0

    def sentences(self, folder: Path) -> list[str]:
        """What was written and left, in words."""
        lines = [f"{self.written} structured reports in {folder} (0600; they name patients as the images do)."]
        left = ((self.other, "no DICOM files"), (self.unnamed, "without the UIDs that a report must refer to"))
        lines += [f"No report on {count} images: they are {why}." for count, why in left if count]
        if self.changed:
            lines.append(f"No report on {self.changed} images: they changed while they were predicted.")
        return lines


def check_installed() -> None:
    """Raise before hours of work where no document can be written.

    Raises:
        UsageError: the extra is missing.
    """
    if importlib.util.find_spec("highdicom") is None:
        raise UsageError("--dicom-sr needs a package that is not installed", "Run pip install 'fed-diffmic[dicom]'.")


def write_reports(folder: Path, found: Predictions, author: Author) -> Reports:
    """Write a document for each image that is a DICOM file, ``<its own SOP Instance UID>.dcm``; all in one series.

    A file is read again for its header, and left out where its content is not any more what was predicted.

    Args:
        folder: made (0700).
        found: of files.

    Raises:
        MachineError: the folder or a file cannot be written.
    """
    from pydicom.uid import generate_uid

    private_folder(folder)
    counts, series = dict.fromkeys(("written", "other", "unnamed", "changed"), 0), str(generate_uid(prefix=None))
    for place, name in enumerate(found.names):
        kind, source = _source(name, int(found.keys[place]))
        counts[kind] += 1
        if source is None:
            continue
        document = report(found, place, source, author, series=series, number=counts["written"])
        stream = io.BytesIO()
        document.save_as(stream, enforce_file_format=True)
        atomic_write(folder / f"{document.SOPInstanceUID}.dcm", stream.getvalue(), mode=0o600)
    return Reports(**counts)


def _source(name: str, key: int) -> tuple[str, Origin | None]:
    """What becomes of an image, and where it belongs."""
    try:
        content = read_content(name)
    except BadImageError:
        return "changed", None
    if content_key(content.digest) != key:
        return "changed", None
    if not is_dicom(content.data):
        return "other", None
    try:
        answer, _ = DECODERS.ask({"what": "origin"}, content.data)  # in a process of its own, as every file of others
    except UnusableError:
        return "unnamed", None
    return "written", Origin(answer["elements"], answer["frame"])


def report(found: Predictions, place: int, source: Origin, author: Author, *, series: str, number: int) -> EnhancedSR:
    """The document of one image.

    Args:
        found: predictions.
        place: of the image among them.
        source: where the image belongs.
        series: UID of the documents' series.
        number: of the document in it, from 1.
    """
    from highdicom.sr import EnhancedSR
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    evidence = Dataset.from_json(source.elements)
    for keyword in (*PATIENT, *STUDY):  # type 2: must be there, and may be empty
        if keyword not in evidence:
            setattr(evidence, keyword, "")
    return EnhancedSR(
        evidence=[evidence],
        content=_content(found, place, source, author, evidence)[0],
        series_instance_uid=series,
        series_number=_SERIES,
        sop_instance_uid=str(generate_uid(prefix=None)),
        instance_number=number,
        manufacturer=MAKER,
        series_description="Prediction, for research",
        content_qualification="RESEARCH",
        manufacturer_model_name=author.run[:_MEANING],
        software_versions=__version__,
        device_serial_number=author.digest,
        is_complete=True,
        is_final=False,
        is_verified=False,
        specific_character_set="ISO_IR 192",
    )


def _content(found: Predictions, place: int, source: Origin, author: Author, evidence: Any) -> MeasurementReport:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    model = sr.AlgorithmIdentification(
        name=f"{MAKER} {author.run}"[:_MEANING], version=__version__, parameters=_parameters(found, author)
    )
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=_uid(author.digest), name=MAKER, manufacturer_name=MAKER, model_name=author.run, serial_number=author.digest
    )
    frames = [source.frame] if source.frame else None
    image = sr.SourceImageForMeasurementGroup(evidence.SOPClassUID, evidence.SOPInstanceUID, frames)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_uid(f"{author.digest} {evidence.SOPInstanceUID}"), identifier="prediction"
        ),
        algorithm_id=model,
        measurements=_measurements(found, place, author),
        qualitative_evaluations=_evaluations(found, place, author),
        source_images=[image],
    )
    made = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    for sentence in [NOTICE, *_sentences(found)]:
        item = sr.TextContentItem(codes.DCM.Comment, sentence, relationship_type=sr.RelationshipTypeValues.CONTAINS)
        made[0].ContentSequence.append(item)
    return made


def _measurements(found: Predictions, place: int, author: Author) -> list[Measurement]:
    """Calibrated probabilities of all classes, then what of uncertainty was shown to find errors."""
    from highdicom.sr import CodedConcept, Measurement

    unit = CodedConcept(*_UNIT)
    row = zip(found.classes, found.probabilities[place], strict=True)
    said = [(_coded("P", name, f"Probability: {_plain(name, author)}"), float(value)) for name, value in row]
    doubts = {} if found.sure is None else found.sure.doubts
    said += [(_coded("U", name, f"Uncertainty: {name}"), float(values[place])) for name, values in doubts.items()]
    return [Measurement(name=name, value=float(f"{value:.6f}"), unit=unit) for name, value in said]


def _evaluations(found: Predictions, place: int, author: Author) -> list[QualitativeEvaluation]:
    from highdicom.sr import QualitativeEvaluation
    from pydicom.sr.codedict import codes

    def classes(names: Sequence[str]) -> list[CodedConcept]:
        return [_coded("C", name, _plain(name, author)) for name in names] or [_coded("W", "none", "none")]

    yes = {True: codes.SCT.Yes, False: codes.SCT.No}
    decided = _coded("W", "decided", "Class decided by the run's rule")
    made = [QualitativeEvaluation(decided, value) for value in classes(found.decided_names()[place])]
    sure = found.sure
    if sure is None:
        return made
    inside = sure.set_of(place)
    if isinstance(inside, dict):
        words = {name: said for name, said in inside.items() if said in _WORDS}
        for name, said in words.items():
            label = _coded("S", name, f"Prediction set: {_plain(name, author)}")
            made.append(QualitativeEvaluation(label, _coded("W", said, _WORDS[said])))
    elif inside is not None:
        in_set = _coded("W", "set", "In the prediction set")
        made += [QualitativeEvaluation(in_set, value) for value in classes(inside)]
    flags = (
        ("referred", "Referred to a person", sure.referred),
        ("unlike", "Unlike the site's images", sure.unfamiliar),
    )
    made += [QualitativeEvaluation(_coded("W", n, m), yes[bool(f[place])]) for n, m, f in flags if f is not None]
    return made


def _parameters(found: Predictions, author: Author) -> list[str]:
    signed = f"signed by the key {author.signed_by}" if author.signed_by else "signed by nobody"
    said = [f"run {author.run}", f"weights SHA-256 {author.digest}", signed, f"decision rule {found.rule}"]
    sure = found.sure
    if sure is not None and sure.rule is not None:
        whom = "of each class" if sure.by_class else "overall"
        said.append(f"prediction sets: {sure.rule.method}, level {sure.rule.level:g}, {whom}")
    if sure is not None and sure.point is not None:
        said.append(f"referred: the most uncertain {sure.point.share:.0%} by {sure.measures[0].measure}")
    return said


def _sentences(found: Predictions) -> list[str]:
    return [] if found.sure is None else found.sure.sentences()


def _plain(name: str, author: Author) -> str:
    return author.names.get(name, name)


def _coded(kind: str, name: str, meaning: str) -> CodedConcept:
    """A concept of our own scheme: its code is made of what it names, so that it is the same in every document."""
    from highdicom.sr import CodedConcept

    digest = hashlib.sha256(f"{kind}\0{name}".encode()).hexdigest()[:12].upper()
    return CodedConcept(f"{kind}-{digest}", SCHEME, meaning[:_MEANING])


def _uid(text: str) -> str:
    """A UID made of a digest (PS3.5, B.2): the same for the same model."""
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}"
