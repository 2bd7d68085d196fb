"""The site's data: readable, labels those of the consortium, duplicates, groups, orientation and intensity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from client.preflight.check import Check, failed, of_error, passed, warning
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.data.findings import Finding
from fed_diffmic.data.manifest import OWN_GROUP, Manifest
from fed_diffmic.data.open import OpenDataset, open_dataset
from fed_diffmic.data.outliers import AGREEMENT, LEAST_IMAGES, Outliers, find_outliers, report_outliers
from fed_diffmic.data.splits import split_site
from fed_diffmic.errors import DataError, FedDiffmicError, PartitionError
from fed_diffmic.provision.kit import Kit

FINDINGS = "preflight-findings.csv"
FEW_IMAGES = 50
_SEEN = f"The images concerned are named in {FINDINGS} in site.folder."
_TURNED = "turned-"


@dataclass(frozen=True)
class Images:
    """What was opened, for the checks behind."""

    opened: OpenDataset
    split: Manifest


def open_images(config: SiteConfig, side: int) -> tuple[list[Check], Images | None]:
    """Read, decode and split as the client does; findings with names go to a file of the site's own.

    Args:
        config: of the site.
        side: H, pixels.
    """
    site, dataset, folder = config.site, config.dataset, Path(str(config.site.folder))
    if not dataset.cache_dir:
        dataset = replace(dataset, cache_dir=str(folder / "cache"))  # where the client will look for them
    try:
        opened = open_dataset(dataset, side, findings_path=folder / FINDINGS, raise_errors=False)
    except FedDiffmicError as error:
        return [of_error("data.read", error)], None
    errors = opened.findings.errors
    checks = [_of_finding(item) for item in opened.findings]
    if errors:
        return checks, None
    try:
        split = split_site(opened.manifest, site.name, site.split_seed, site.val_fraction, site.test_fraction)
    except PartitionError as error:
        return [*checks, of_error("data.split", error)], None
    count = len(opened.manifest)
    checks.append(passed("data.read", f"{count:,} images can be read", images=count))
    checks.append(_sizes(split))
    return checks, Images(opened, split)


def _of_finding(item: Finding) -> Check:
    name = f"data.{item.code}"
    cause = f"{item.where}{': ' if item.where else ''}{item.message} (count {item.count})"
    remedy = " ".join(part for part in (item.remedy, _SEEN if item.names else "") if part)
    if item.severity == "error":
        return failed(name, cause, remedy, exit_code=DataError.exit_code, count=item.count)
    return warning(name, cause, remedy, count=item.count)


def _sizes(split: Manifest) -> Check:
    parts = split.table["split"]
    sizes: dict[str, Any] = {name: int((parts == name).sum()) for name in ("train", "val", "test")}
    words = f"{sizes['train']:,} images for training, {sizes['val']:,} for validation, {sizes['test']:,} for the test"
    if sizes["train"] < FEW_IMAGES:
        return warning("data.split", f"{words}: few to learn from", **sizes)
    return passed("data.split", words, **sizes)


def check_labels(config: SiteConfig, manifest: Manifest, kit: Kit | None) -> Iterator[Check]:
    """Classes and task against the consortium's, as the kit says them."""
    classes, task = list(manifest.classes), manifest.task
    counts = dict(zip(classes, (int(n) for n in manifest.class_counts()), strict=True))
    if kit is None or (kit.classes is None and kit.task is None):
        said = "dataset.classes" if config.dataset.classes else "what was found here"
        words = f"{len(classes)} classes, from {said}; the consortium's list is not known here"
        if config.dataset.classes:
            yield passed("data.labels", words, counts=counts)
        else:
            yield warning("data.labels", words, "Set dataset.classes to the consortium's, in its order.", counts=counts)
        return
    wrong = []
    if kit.classes is not None and kit.classes != classes:
        wrong.append(f"classes are {', '.join(classes)}; the consortium's are {', '.join(kit.classes)}, in this order")
    if kit.task is not None and kit.task != task:
        wrong.append(f"the task is {task}; the consortium's is {kit.task}")
    if wrong:
        yield failed(
            "data.labels", "; ".join(wrong), "Set dataset.classes and dataset.task to the consortium's.", exit_code=3
        )
    else:
        yield passed("data.labels", f"{len(classes)} classes and the task are the consortium's", counts=counts)


def check_groups(manifest: Manifest) -> Check:
    """Whether images of one patient can be kept together."""
    groups = manifest.table["group"]
    known = int((~groups.str.startswith(OWN_GROUP)).sum())
    if known < len(groups):
        return warning(
            "data.groups",
            f"the patient (or lesion) of {len(groups) - known:,} of {len(groups):,} images is not known",
            "Fill the column patient_id: else images of one patient may be in training and test, and metrics too good.",
            known=known,
        )
    return passed("data.groups", f"{groups.nunique():,} patients (or lesions) are told apart", groups=groups.nunique())


def check_outliers(images: Images, modality: str) -> Iterator[Check]:
    """Orientation and intensity, compared with the site's own images; names go to the findings file."""
    opened = images.opened
    manifest = opened.manifest
    found = find_outliers(opened.cache.images, manifest.table["row"].to_numpy(np.int64), modality=modality)
    if found is None:
        cause = f"not checked: fewer than {LEAST_IMAGES} images do not say what is usual here"
        yield warning("data.orientation", cause)
        yield warning("data.intensity", cause)
        return
    before = len(opened.findings)
    report_outliers(found, manifest, opened.findings)
    opened.findings.write()
    new = list(opened.findings)[before:]
    looked = f"of {len(found.position):,} images"
    turned = [item for item in new if item.code.startswith(_TURNED)]
    yield _orientation(found, turned, looked)
    yield _intensity(found, [item for item in new if item not in turned], looked)


def _orientation(found: Outliers, turned: list[Finding], looked: str) -> Check:
    name = "data.orientation"
    check = found.orientation
    if check is None:
        return passed(name, "not checked: images of this modality have no up or down", checked=False)
    facts = {"checked": check.checked, "agreement": round(check.agreement, 3)}
    if not check.checked:
        return passed(
            name,
            f"not checked: these images have no common orientation ({100 * check.agreement:.0f} % of them look most "
            f"usual as they are; {100 * AGREEMENT:.0f} % are needed, and hardly any doubtful)",
            **facts,
        )
    trust = ", ".join(
        f"{angle} degrees {100 * share:.0f} %" for angle, share in zip((90, 180, 270), check.recall, strict=True)
    )
    trust = f"turned by us, these would be found: {trust}"
    if turned:
        said = "; ".join(f"{item.count} {item.message}" for item in turned)
        remedy = f"{turned[0].remedy} {_SEEN}"
        return warning(name, f"{looked}, {said} ({trust})", remedy, turned=sum(i.count for i in turned), **facts)
    return passed(name, f"{looked}, none lies otherwise than the others ({trust})", turned=0, **facts)


def _intensity(found: Outliers, odd: list[Finding], looked: str) -> Check:
    name = "data.intensity"
    check = found.inversion
    facts = {"checked": check.checked, "agreement": round(check.agreement, 3)}
    if odd:
        said = "; ".join(f"{item.count} {item.message}" for item in odd)
        remedy = " ".join(dict.fromkeys([*(item.remedy for item in odd if item.remedy), _SEEN]))
        return warning(name, f"{looked}, {said}", remedy, **facts)
    if not check.checked:
        return passed(
            name,
            f"{looked}, none is flat or far from the others; whether some are inverted could not be checked: these "
            "images differ too much in brightness",
            **facts,
        )
    words = f"{looked}, none is inverted, flat or far from the others"
    return passed(name, f"{words} (inverted by us, {100 * check.recall[0]:.0f} % would be found)", **facts)
