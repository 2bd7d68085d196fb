"""A model that came, as this site uses it: with the part of it that was trained here and never left.

Under FedBN the normalisation, under Ditto a whole model stay at the site (``states/``), named in the final model by
digest alone. What the coordinator sends is completed with them here, and they are kept with the model that is taken
over, because ``states/`` is purged.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from client.kept import IN_USE, check_part
from client.state import SiteStore
from fed_diffmic.algorithms import Tensors
from fed_diffmic.config.owners import ALGORITHMS
from fed_diffmic.config.plugins import check_trusted
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import load_tensors
from fed_diffmic.release.final import FinalModel
from fed_diffmic.release.personal import check_parts, joined, part_of_state, personal_file


def own_parts(config: SiteConfig, final: FinalModel, folder: Path) -> dict[str, Tensors]:
    """What of a model is this site's own, by stage; empty where the model is the same at every site.

    Args:
        config: of the site.
        final: the model, verified.
        folder: that it was read from; parts lie there, below the site's own folder, if it was taken over before.

    Raises:
        ModelFileError: the site no longer holds its part, or the file of it is torn or was exchanged.
    """
    site, parts = config.site.name, {}
    if any(site in digests for digests in final.personal.values()):  # before its algorithm is built
        check_trusted(ALGORITHMS, final.spec.strategy.name, config.policy.plugins)
    # The coordinator's signature does not cover what lies beside the model: only what was kept here is this site's own.
    ours = folder.resolve().is_relative_to(Path(str(config.site.folder)).resolve())
    own = Path(str(config.site.folder)) / IN_USE
    for stage, digests in sorted(final.personal.items()):
        if site not in digests:
            continue
        kept = personal_file(folder, stage, site)
        if ours and kept.exists():
            parts[stage] = load_tensors(kept)
            if folder.resolve() == own.resolve():
                check_part(config, stage, parts[stage])
            continue
        key = (final.spec.run_id, final.spec.arm, stage)
        state = SiteStore(str(config.site.folder)).site_state(key, digests[site])
        if state is None:
            raise ModelFileError(
                f"this site no longer holds its own part of the model of stage {stage}",
                "It is kept for site.keep_days, and not by a site that withdrew: use a model that was taken over in "
                "time, or train again.",
            )
        parts[stage] = part_of_state(final, stage, state)
    if ours:
        check_parts(folder, site, parts)
    return parts


def complete(final: FinalModel, parts: dict[str, Tensors]) -> FinalModel:
    """The model with this site's own parts in place of the global ones."""
    return replace(final, states={stage: {**state, **joined(parts, stage)} for stage, state in final.states.items()})
