"""Which files of an export become images, by stated rules (:mod:`.kinds`); what is left is counted by reason."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fed_diffmic.config.dicom import DicomConfig
from fed_diffmic.data.dicom.bounded import DECODERS
from fed_diffmic.data.dicom.labels import COLUMNS, Labels
from fed_diffmic.data.dicom.look import Look
from fed_diffmic.data.dicom.reasons import REASONS, UnusableError
from fed_diffmic.data.dicom.sources import Item, read_file
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.spelling import alike, is_placeholder

NO_DICOM = "unknown_format"
_WORDS = {
    "localizer": "localizers (scouts)",
    "unprocessed": "images FOR PROCESSING, which are not meant to be looked at",
    "image": "single images",
    "frames": "files of several frames",
    "captured": "secondary captures",
    "report": "structured reports",
    "presentation": "presentation states; what they say of windows is not applied",
    "key_objects": "lists of key images; the images themselves are taken as any other",
    "segmentation": "segmentations and parametric maps",
    "radiotherapy": "objects of radiotherapy",
    "waveform": "waveforms",
    "document": "encapsulated documents",
    "video": "videos",
    "directory": "directories of a medium (DICOMDIR)",
    "no_picture": "other objects without pixels, or files cut off before them",
}
_FILE_WORDS = {
    NO_DICOM: "not DICOM (part 10)",
    "empty": "the file has no content",
    "too_large": "larger than is allowed",
    "truncated": "the file ends too early",
    "unreadable": "the file is damaged",
    "permission": "the file may not be read",
    "missing": "the file went away meanwhile",
    "not_a_file": "a folder or a special file",
    "unknown_range": "floating point or 32-bit values, so that black and white are not known",
    **REASONS,
}


@dataclass(frozen=True)
class Seen:
    """A file that was looked at: its header or the reason why not, and the digest of its content."""

    item: Item
    look: Look | None
    reason: str = ""
    digest: str = ""


def look_at(item: Item, most_bytes: float) -> Seen:
    """Read a file's header, in a process of its own, within a bound on its bytes."""
    try:
        data = read_file(item.path, most_bytes)
        answer, _ = DECODERS.ask({"what": "look"}, data)
    except UnusableError as error:
        return Seen(item, None, error.reason)
    return Seen(item, Look(**answer["look"]), digest=hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Chosen:
    """One frame that is to become an image.

    Attributes:
        file: names the file, whatever it is called: its SOP instance UID, or the digest of its content.
    """

    item: Item
    look: Look
    frame: int
    label: str
    file: str

    @property
    def key(self) -> str:
        """Names the frame."""
        return f"{self.file}#{self.frame}"


class Chooser:
    """Applies the rules one after the other; what a rule leaves is a finding.

    Args:
        config: group ``dicom``.
        labels: none: every image is taken, without a label.
        findings: where what is left is counted.
    """

    def __init__(self, config: DicomConfig, labels: Labels | None, findings: Findings) -> None:
        self.config = config
        self.labels = labels
        self.findings = findings

    def choose(self, seen: Sequence[Seen]) -> list[Chosen]:
        """The frames to render, in the order of the files."""
        self._say_unusable([one for one in seen if one.look is None])
        files = [one for one in seen if one.look is not None]
        files = self._of_taken_kinds(files)
        files = self._once(files)
        self._say_patients(files)
        kept = self._left(
            files,
            lambda one: self.config.burnt_in == "leave" and _look(one).burnt_in == "yes",
            "burnt-in-stated",
            "images whose header says that text is burnt in (BurnedInAnnotation YES); left out",
            "Look at them; dicom.burnt_in=take takes them, marked in the table.",
        )
        kept = self._left(
            kept,
            lambda one: self.config.frames == "all" and _look(one).frames > self.config.max_frames,
            "too-many-frames",
            f"files of more than {self.config.max_frames} frames; left out",
            "Raise dicom.max_frames, or take one frame of each: dicom.frames=one.",
        )
        chosen: list[Chosen] = []
        for one in self._labelled(kept):
            look = _look(one)
            frames = range(look.frames) if self.config.frames == "all" else [look.representative]
            label = "" if self.labels is None else self.labels.of[look.ids[self.labels.join]]
            file = look.ids["sop"] or f"sha256:{one.digest}"
            chosen.extend(Chosen(one.item, look, frame, label, file) for frame in frames)
        return chosen

    def unusable(self, names: Sequence[str], reason: str) -> None:
        """Count files that cannot be used for one reason."""
        code = "not-dicom" if reason == NO_DICOM else "unreadable-image"
        message = f"{len(names)} files left out: {_FILE_WORDS.get(reason, reason)}"
        self.findings.add(code, "warning", message, field=reason, count=len(names), names=names)

    def _say_unusable(self, seen: Sequence[Seen]) -> None:
        for reason in sorted({one.reason for one in seen}):
            self.unusable([one.item.name for one in seen if one.reason == reason], reason)

    def _of_taken_kinds(self, files: Sequence[Seen]) -> list[Seen]:
        left = [one for one in files if _look(one).kind not in self.config.kinds]
        for kind in sorted({_look(one).kind for one in left}):
            names = [one.item.name for one in left if _look(one).kind == kind]
            message = f"{len(names)} files left out: {_WORDS[kind]}"
            self.findings.add("kind-left", "warning", message, field=kind, count=len(names), names=names)
        return [one for one in files if _look(one).kind in self.config.kinds]

    def _once(self, files: Sequence[Seen]) -> list[Seen]:
        """Each SOP instance once; copies that differ contradict each other, and none of them is taken."""
        digests: dict[str, set[str]] = {}
        for one in files:
            digests.setdefault(_look(one).ids["sop"] or one.digest, set()).add(one.digest)
        torn = {sop for sop, found in digests.items() if len(found) > 1}
        kept = self._left(
            files,
            lambda one: _look(one).ids["sop"] in torn,
            "instance-differs",
            "files that share a SOP instance UID and differ; all left out, since nothing says which one is meant",
            "Export these images again.",
        )
        first: set[str] = set()
        repeated = set()
        for place, one in enumerate(kept):
            if one.digest in first:
                repeated.add(place)
            first.add(one.digest)
        if repeated:
            names = [kept[place].item.name for place in sorted(repeated)]
            message = f"{len(repeated)} files hold the same bytes as another; each counts once"
            self.findings.add("copied-image", "warning", message, count=len(repeated), names=names)
        return [one for place, one in enumerate(kept) if place not in repeated]

    def _labelled(self, files: Sequence[Seen]) -> list[Seen]:
        labels = self.labels
        if labels is None:
            message = f"{len(files)} images have no label: no table of labels was given (--labels FILE)"
            self.findings.add("no-label", "warning", message, field="label", count=len(files))
            return list(files)
        keys = [_look(one).ids[labels.join] for one in files]
        unmatched = [one for one, key in zip(files, keys, strict=True) if key not in labels.of]
        if unmatched:
            bare = sum(not _look(one).ids[labels.join] for one in unmatched)
            torn = sum(_look(one).ids[labels.join] in labels.contradicting for one in unmatched)
            message = f"{len(unmatched)} images found no label by {labels.join} and are left out"
            message += f" ({bare} have none in their header, {torn} stand under several labels)" if bare or torn else ""
            names = [one.item.name for one in unmatched]
            self.findings.add(
                "image-without-label",
                "warning",
                message,
                table=labels.table,
                count=len(names),
                remedy=f"Give each image a row in {labels.table} with the {labels.join} that its header holds"
                + (
                    "."
                    if len(names) < len(keys)
                    else f", or join by another number of it (dicom.join; now {labels.join})."
                ),
                names=names,
            )
        unused = sorted(set(labels.of) - set(keys))
        if unused:
            self.findings.add(
                "label-without-image",
                "warning",
                f"{len(unused)} of {len(labels.of)} keys of the table have no image here",
                table=labels.table,
                field=" or ".join(COLUMNS[labels.join][:1]),
                count=len(unused),
                names=unused,
            )
        return [one for one, key in zip(files, keys, strict=True) if key in labels.of]

    def _say_patients(self, files: Sequence[Seen]) -> None:
        patients = [_look(one).ids["patient"] for one in files]
        bare = [one.item.name for one, patient in zip(files, patients, strict=True) if not patient]
        if bare:
            message = (
                f"{len(bare)} files name no patient; those of one study (without one: of one series, or the frames of "
                "one file) are kept together, and no more is known"
            )
            self.findings.add("no-groups", "warning", message, field="PatientID", count=len(bare), names=bare)
        twice = {name for group in alike(patients) for name in group}
        if twice:
            names = [one.item.name for one, patient in zip(files, patients, strict=True) if patient in twice]
            message = (
                f"{len(twice)} numbers of patients differ from another only in how they are written; each counts as a "
                "patient of its own"
            )
            self.findings.add("group-spelt-twice", "warning", message, field="PatientID", count=len(twice), names=names)
        self._say_placeholders(files)
        issuers: dict[str, set[str]] = {}
        for one in files:
            issuers.setdefault(_look(one).ids["patient"], set()).add(_look(one).ids["issuer"])
        several = sum(len(found) > 1 for patient, found in issuers.items() if patient)
        if several:
            message = f"{several} numbers of patients come from several issuers; each counts as one patient"
            self.findings.add("several-issuers", "warning", message, field="IssuerOfPatientID", count=several)

    def _say_placeholders(self, files: Sequence[Seen]) -> None:
        """Said here or nowhere: in the table such a patient is a keyed hash like any other."""
        standing_in = [one for one in files if is_placeholder(_look(one).ids["patient"])]
        if standing_in:
            written = len({_look(one).ids["patient"] for one in standing_in})
            self.findings.add(
                "group-placeholder",
                "warning",
                f"{len(standing_in)} of {len(files)} files name a patient that reads like 'not known'; they count as "
                f"{written} patient(s), all images of one on one side of a split and at one site",
                field="PatientID",
                count=len(standing_in),
                remedy="Export these images with their patients' numbers, or with an empty one: those of one study are "
                "then kept together.",
                names=[one.item.name for one in standing_in],
            )

    def _left(
        self, files: Sequence[Seen], leave: Callable[[Seen], bool], code: str, message: str, remedy: str
    ) -> list[Seen]:
        left = [one.item.name for one in files if leave(one)]
        if left:
            text = f"{len(left)} {message}"
            self.findings.add(code, "warning", text, count=len(left), names=left, remedy=remedy)
        return [one for one in files if not leave(one)]


def _look(one: Seen) -> Look:
    assert one.look is not None
    return one.look
