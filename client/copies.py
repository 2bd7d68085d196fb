"""How many decoded copies of its images a site keeps: one for each run in use, within ``policy.limits.cache_mib``.

A run has one image side, so a run that asks for another gives up the copy that it had. A new copy is made only if it
fits beside those that other runs use; what no run uses goes first, the one used longest ago before the others. Who
uses what lies in ``copies.json`` of the site's folder: names of runs and digests, nothing of an image.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fed_diffmic.config.site import SiteConfig
from fed_diffmic.data.cache_files import SUBFOLDER, Copy, copies, remove_copy, remove_unfinished
from fed_diffmic.errors import ModelFileError, SpaceLimitError
from fed_diffmic.files import read_json, write_json

FILE = "copies.json"
ACTIVE_S = 86400.0
"""A run that asked for nothing for so long keeps its copy only while there is room; it is decoded again otherwise."""
_MOST_RUNS = 256
_MIB = 2**20


class Copies:
    """The decoded copies of one site.

    Args:
        folder: the site's own.
        cache: where copies lie (``dataset.cache_dir``, or ``cache`` in the site's folder).
        most_mib: ``policy.limits.cache_mib``.
    """

    def __init__(self, folder: Path, cache: Path, most_mib: float) -> None:
        self._file = folder / FILE
        self._home = cache / SUBFOLDER
        self._own = cache.resolve().is_relative_to(folder.resolve())
        self._most = most_mib * _MIB

    def room(self, run: str, let_go: Callable[[str], None]) -> Callable[[str, int], None]:
        """What makes room for a new copy of a run, before it is written.

        Args:
            run: that asks; empty: a person at the site.
            let_go: told the name of each copy that is about to be removed, to close it here.
        """

        def make(name: str, needed: int) -> None:
            if needed > self._most:
                raise SpaceLimitError(*_words(needed, self._most))
            remove_unfinished(self._home, but=name)
            uses = self._uses()
            now = time.time()
            kept = {u["copy"] for r, u in uses.items() if r != run and now - u["at"] < ACTIVE_S}
            found = [copy for copy in self._counted(uses) if copy.name != name]
            total = sum(copy.bytes for copy in found)
            for copy in sorted(found, key=lambda copy: copy.used):
                before = uses.get(run, {}).get("copy") == copy.name  # what this run had is given up in any case
                if copy.name in kept or (total + needed <= self._most and not before):
                    continue
                let_go(copy.name)
                total -= remove_copy(self._home, copy.name) or 0
            if total + needed > self._most:
                raise SpaceLimitError(*_words(total + needed, self._most))

        return make

    def use(self, run: str, name: str) -> None:
        """Write down that a run uses a copy.

        Raises:
            MachineError: it cannot be written.
        """
        uses, now = self._uses(), time.time()
        before = uses.get(run)
        if before is not None and before["copy"] == name and now - before["at"] < ACTIVE_S / 24:
            return
        uses[run] = {"copy": name, "at": now}
        newest = sorted(uses.items(), key=lambda item: item[1]["at"])[-_MOST_RUNS:]
        write_json(self._file, dict(newest), mode=0o600)

    def forget(self, older_than: float | None = None) -> int:
        """Remove copies that are not in use by another process.

        Args:
            older_than: only those last used before this time, seconds since the epoch; none: all of this site's.

        Returns:
            Bytes removed.

        Raises:
            MachineError: one cannot be removed.
        """
        uses = self._uses()
        removed = 0
        remove_unfinished(self._home)
        for copy in self._counted(uses):
            if older_than is None or copy.used < older_than:
                removed += remove_copy(self._home, copy.name) or 0
        if older_than is None and not self._counted(uses):  # what was left must be known when this is done again
            self._file.unlink(missing_ok=True)
        return removed

    def count(self) -> int:
        """How many decoded copies of this site there are."""
        return len(self._counted(self._uses()))

    def _counted(self, uses: dict[str, Any]) -> list[Copy]:
        """Copies of this site: all where the folder is its own, else those that its runs used."""
        named = {use["copy"] for use in uses.values()}
        return [copy for copy in copies(self._home) if self._own or copy.name in named]

    def _uses(self) -> dict[str, Any]:
        try:
            found = dict(read_json(self._file)) if self._file.exists() else {}
            return {str(run): {"copy": str(u["copy"]), "at": float(u["at"])} for run, u in found.items()}
        except (ModelFileError, TypeError, ValueError, KeyError):
            return {}  # torn: then nothing is known to be in use, and what is removed is decoded again


def _words(needed: float, most: float) -> tuple[str, str]:
    return (
        f"decoded copies of the images would take {needed / _MIB:,.0f} MiB; policy.limits.cache_mib is "
        f"{most / _MIB:,.0f}",
        "Raise policy.limits.cache_mib if the disk has room, or agree on a smaller model.image_side.",
    )


def copies_folder(config: SiteConfig) -> Path:
    """Where decoded copies lie: in the site's folder, unless another place was chosen."""
    chosen = config.dataset.cache_dir
    return Path(chosen).expanduser().absolute() if chosen else Path(str(config.site.folder)).absolute() / "cache"


def site_copies(config: SiteConfig) -> Copies:
    """The decoded copies of the site's images."""
    return Copies(Path(str(config.site.folder)), copies_folder(config), config.policy.limits.cache_mib)
