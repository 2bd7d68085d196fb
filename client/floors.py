"""What a real site remembers so that a sequence of answers tells no more than its floors allow (``policy.floors``).

In ``floors/`` of the site's folder, never purged: keyed digests of the images and patients behind what left, and how
often each image was in each update of a stage. Digests alone tell nobody which images they are.

The order is load-bearing: a set or an update is written down before the reply leaves, so that a site that is killed in
between has counted one release too many and never one too few.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from safetensors import SafetensorError, safe_open

from fed_diffmic.config.policy_floors import Floors
from fed_diffmic.data.site import Examples, SiteData
from fed_diffmic.errors import LedgerError, MachineError, ModelFileError
from fed_diffmic.exchange.failures import FLOOR_CHANGED, FLOOR_ISOLATED, SiteError
from fed_diffmic.exchange.floors import Exposure, check_exposure, check_reuse, check_share, is_few
from fed_diffmic.files import load_tensors, private_folder, save_tensors, write_new
from fed_diffmic.privacy.isolation import measure_isolation
from fed_diffmic.privacy.units import UnitSet, load_units, save_units, unit_digests, unit_set
from fed_diffmic.training.stage import StageModule

FOLDER = "floors"
SPLITS = ("train", "val", "test")
KEPT_SETS = 100
_DIGESTS: WeakKeyDictionary[Examples, tuple[bytes, tuple[np.ndarray, np.ndarray]]] = WeakKeyDictionary()


class SiteFloors:
    """The floors of one site and its memory of what left.

    Args:
        folder: the site's own.
        floors: group ``policy.floors``.

    Raises:
        MachineError: the folder cannot be made.
    """

    def __init__(self, folder: Path, floors: Floors) -> None:
        self.floors = floors
        self.folder = private_folder(Path(folder) / FOLDER)
        for part in ("updates", *SPLITS):
            private_folder(self.folder / part)
        self._secret = _secret(self.folder)

    # ---- sets of images behind metrics and updates ---------------------------------------------
    def settled(self, data: SiteData, splits: tuple[str, ...]) -> SiteData:
        """The data as they may be used: as they are, or, where too few changed, as they were.

        Two answers about sets that differ in few patients tell about these patients. So while fewer than
        ``changed_patients`` have come, the set of before is used; where fewer have gone, others are left out until as
        many have.

        Args:
            splits: those that the answer will be about.

        Raises:
            SiteError: there is no set that differs enough from all that were used before.
            MachineError: what was used before cannot be read.
        """
        if not self.floors.changed_patients:
            return data
        found: dict[str, Any] = {split: self._settled(split, getattr(data, split)) for split in splits}
        return replace(data, **found)

    def _settled(self, split: str, examples: Examples) -> Examples:
        earlier = self._sets(split)
        own = unit_set(examples, self._secret)
        if not len(own) or any(own.name == units.name for units in earlier):
            return examples
        if self._apart(own, earlier):
            return examples
        images, patients = self._digests(examples)
        for units in earlier:
            inside = np.isin(images, units.images) & np.isin(patients, units.patients)
            if int(inside.sum()) == len(units):
                return examples.subset(np.flatnonzero(inside))
        for left_out in range(1, 2 * self.floors.changed_patients + 1):
            fewer = examples.subset(np.flatnonzero(~np.isin(patients, np.unique(patients)[:left_out])))
            if len(fewer) and self._apart(unit_set(fewer, self._secret), earlier):
                return fewer
        raise SiteError(FLOOR_CHANGED, f"{split}: see policy.floors.changed_patients")

    def _apart(self, own: UnitSet, earlier: list[UnitSet]) -> bool:
        return all(changed_patients(own, units) >= self.floors.changed_patients for units in earlier)

    def record_sets(self, data: SiteData, splits: tuple[str, ...]) -> None:
        """Write down which images an answer is about, before it leaves.

        Raises:
            MachineError: it cannot be written.
        """
        for split in splits if self.floors.changed_patients else ():
            examples: Examples = getattr(data, split)
            if len(examples):
                save_units(self.folder / split, unit_set(examples, self._secret))

    def _sets(self, split: str) -> list[UnitSet]:
        """Sets used before, the latest first."""
        found = sorted((self.folder / split).glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        try:
            return [load_units(path.parent, path.stem) for path in reversed(found[-KEPT_SETS:])]
        except LedgerError as error:
            raise _damaged(self.folder / split) from error

    def draws(self, run: str) -> str:
        """What the site's random draws in training depend on beside the run's seed; empty: nothing.

        Whoever knows which image was in which step knows with what weight: steps weigh differently in momentum, in a
        changing rate of learning and in running statistics, so that whole passes, which tell nothing by the number of
        times that an image is in them, could be solved for single images. Another run draws anew, whatever its seed:
        batches of two sizes from one order would differ by single images.
        """
        if not self.floors.secret_draws:
            return ""
        return hmac.new(self._secret, f"draws\0{run}".encode(), hashlib.sha256).hexdigest()

    # ---- updates -------------------------------------------------------------------------------
    def check_update(self, key: tuple[str, str, str], request: str, train: Examples, planned: Exposure) -> None:
        """Refuse an update that rests on too little, by itself or together with those of before.

        Args:
            key: run, arm and stage.
            request: name of the request; one that was answered before tells nothing new.

        Raises:
            SiteError: a floor is not reached.
            MachineError: what left before cannot be read.
        """
        check_exposure(self.floors, planned)
        names, history = self._history(key)
        if request in names or not self._remembers:
            return
        images, patients = self._digests(train)
        check_reuse(self.floors, planned, _of(self._uses(), images, "uses"))
        joined = _joined(history, images, patients, planned.counts)
        check_share(self.floors, joined["counts"], _numbers(joined["patients"]))

    def check_isolation(
        self, module: StageModule, train: Examples, device: str, of_round: Mapping[str, object]
    ) -> None:
        """Refuse weights that let single images stand out in an update.

        Which images are looked at follows from the round and the site's secret: nothing that the sender could know,
        and the same for whatever is asked in that round, so that asking again does not draw more fortunate ones.

        Args:
            of_round: run, arm, stage and round.

        Raises:
            SiteError: says what was measured, for the site's own log.
        """
        if not self.floors.isolation or len(train) < 2:
            return
        seed = hmac.new(self._secret, json.dumps(of_round, sort_keys=True).encode(), hashlib.sha256).digest()
        found = measure_isolation(module, train, device, np.random.default_rng(list(seed)))
        if found.found:
            raise SiteError(FLOOR_ISOLATED, f"{found}; policy.floors.isolation")

    def record_update(self, key: tuple[str, str, str], request: str, train: Examples, planned: Exposure) -> None:
        """Write down an update, before it leaves.

        Raises:
            MachineError: it cannot be written.
        """
        names, history = self._history(key)
        if request in names or not self._remembers:
            return
        images, patients = self._digests(train)
        if is_few(self.floors, planned):
            uses = self._uses()
            every = np.unique(np.concatenate([uses["images"], images]))
            total = _of(uses, every, "uses")
            total[np.isin(every, images[planned.counts > 0])] += 1
            save_tensors(self._uses_file, {"images": _bytes(every), "uses": total})
        joined = _joined(history, images, patients, planned.counts)
        joined["counts"] = np.unique(joined["counts"], axis=0)  # the same row again says nothing new
        tensors = {name: _bytes(value) if name != "counts" else value for name, value in joined.items()}
        save_tensors(self._updates_file(key), tensors, {"requests": json.dumps([*names, request])})

    @property
    def _remembers(self) -> bool:
        return self.floors.largest_share < 1 or self.floors.few_images > 0

    @property
    def _uses_file(self) -> Path:
        return self.folder / "uses.safetensors"

    def _updates_file(self, key: tuple[str, str, str]) -> Path:
        return self.folder / "updates" / f"{hashlib.sha256(chr(0).join(key).encode()).hexdigest()[:32]}.safetensors"

    def _uses(self) -> dict[str, np.ndarray]:
        if not self._uses_file.exists():
            return {"images": np.empty(0, "V16"), "uses": np.empty(0, np.int64)}
        return _read(self._uses_file)

    def _history(self, key: tuple[str, str, str]) -> tuple[list[str], dict[str, np.ndarray]]:
        """Names of the requests that were answered, and how often each image was in each update."""
        path = self._updates_file(key)
        if not path.exists():
            empty = np.empty(0, "V16")
            return [], {"images": empty, "patients": empty, "counts": np.empty((0, 0), np.int32)}
        found = _read(path)
        try:
            with safe_open(path, framework="numpy") as stream:
                names = json.loads((stream.metadata() or {})["requests"])
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise _damaged(path) from error
        return list(names), found

    def _digests(self, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Digests of images and patients ``(n,)`` in the order of the examples."""
        kept = _DIGESTS.get(examples)
        if kept is None or kept[0] != self._secret:
            kept = (self._secret, unit_digests(examples, self._secret))
            _DIGESTS[examples] = kept
        return kept[1]


def changed_patients(one: UnitSet, other: UnitSet) -> int:
    """Patients who have an image in one of the sets and not in the other."""
    gone = one.patients[~np.isin(one.images, other.images)]
    come = other.patients[~np.isin(other.images, one.images)]
    return len(np.unique(np.concatenate([gone, come])))


def _joined(
    history: dict[str, np.ndarray], images: np.ndarray, patients: np.ndarray, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """The history with one more row, over all images of both."""
    every, first = np.unique(np.concatenate([history["images"], images]), return_index=True)
    owners = np.concatenate([history["patients"], patients])[first]
    rows = np.zeros((len(history["counts"]) + 1, len(every)), dtype=np.int32)
    rows[:-1, np.searchsorted(every, history["images"])] = history["counts"]
    np.add.at(rows[-1], np.searchsorted(every, images), counts)  # an image may be there twice
    return {"images": every, "patients": owners, "counts": rows}


def _of(uses: dict[str, np.ndarray], images: np.ndarray, name: str) -> np.ndarray:
    """Numbers kept for images, 0 where there are none."""
    known = dict(zip((d.tobytes() for d in uses["images"]), uses[name].tolist(), strict=True))
    return np.array([known.get(d.tobytes(), 0) for d in images], dtype=np.int64)


def _numbers(digests: np.ndarray) -> np.ndarray:
    return np.unique(digests, return_inverse=True)[1]


def _bytes(digests: np.ndarray) -> np.ndarray:
    return np.frombuffer(digests.tobytes(), dtype=np.uint8).reshape(-1, 16)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        found = load_tensors(path)
        return {n: np.frombuffer(v.tobytes(), "V16") if v.dtype == np.uint8 else v for n, v in found.items()}
    except (ModelFileError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> MachineError:
    return MachineError(f"what this site let out before cannot be read: {path}", "Restore the file from the backup.")


def _secret(folder: Path) -> bytes:
    path = folder / "secret"
    if not path.exists() and next(folder.rglob("*.safetensors"), None) is not None:
        raise _damaged(path)  # under a new secret nothing of what is remembered would be recognised
    with contextlib.suppress(FileExistsError):
        write_new(path, os.urandom(32).hex().encode(), 0o600)
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if len(secret) != 32:
        raise _damaged(path)
    return secret
