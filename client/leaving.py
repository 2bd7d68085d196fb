"""What a site that withdraws removes of its own folder and cache, and what it keeps.

Removed: decoded copies of images, bases, weights, states, updates, and the reply to the request in hand. Kept: the
audit log, the privacy ledger and its witness, the memory of the floors and of masked sums, accepted peers, the studies
and who approved them: they say what was done with the data, and are needed to answer for it, or to take part again
without a budget that begins anew.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from client.copies import site_copies
from client.watch import ENDED
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.transport.supernode import INBOX

KEPT = ("bases", "weights", "states", "updates", ENDED)


@dataclass(frozen=True)
class Removed:
    """What a withdrawal removed.

    Attributes:
        files: of bases, weights, states and updates.
        image_bytes: of decoded images.
        copies_left: decoded copies that another process uses, which were left.
        parts_left: folders that could not be removed.
    """

    files: int
    image_bytes: int
    copies_left: int
    parts_left: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing was left."""
        return not self.copies_left and not self.parts_left

    def __str__(self) -> str:
        text = (
            f"removed: {self.files} kept files of updates, states and bases, {self.image_bytes / 1e6:.1f} MB of decoded"
            " images, and what was computed for the request in hand; kept: audit log, privacy ledger, studies"
        )
        if self.parts_left:
            text += f". NOT removed: {', '.join(self.parts_left)}: check their owner and mode, then withdraw again"
        if self.copies_left:
            text += (
                f". NOT removed: {self.copies_left} decoded copies that another process uses: end it, then withdraw "
                "again"
            )
        return text


def forget(config: SiteConfig, folder: Path) -> Removed:
    """Remove what a site that withdraws does not keep; to be called again where something was left.

    The request in hand, which holds nothing of this site's, stays until it is answered, with the code of the site's
    decision: a coordinator that hears nothing would wait until the round's deadline.

    Raises:
        MachineError: decoded images cannot be removed.
    """
    from fed_diffmic.transport.spool import Spool  # loads Flower

    files = 0
    for part in KEPT:
        files += sum(path.is_file() for path in (folder / part).rglob("*"))
        shutil.rmtree(folder / part, ignore_errors=True)
    Spool(folder / INBOX).drop_reply()
    copies = site_copies(config)
    freed = copies.forget()
    return Removed(files, freed, copies.count(), tuple(part for part in KEPT if (folder / part).exists()))
