"""What of a model is a virtual site's own: kept with the run, used for figures.

In a consortium these parts never leave the sites. Here the sites are folders of the run, whose state is removed when
the run ends, so the parts that belong to the final model are copied to ``personal/<stage>/<site>.safetensors`` first.
"""

from __future__ import annotations

from pathlib import Path

from client.state import SiteStore
from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import safe_name
from fed_diffmic.release.final import FinalModel
from fed_diffmic.release.personal import part_of_state, personal_file, save_part


def keep_personal(final: FinalModel, folder: Path, run_dir: Path) -> None:
    """Copy the sites' own parts of a finished arm's model out of their state, which the next trial replaces.

    Raises:
        ModelFileError: a site no longer holds the state that the final model names.
    """
    for stage, states in sorted(final.personal.items()):
        for site, digest in sorted(states.items()):
            if personal_file(folder, stage, site).exists():
                continue
            store = SiteStore(run_dir / "sites" / safe_name(site))
            state = store.site_state((final.spec.run_id, final.spec.arm, stage), digest)
            if state is None:
                raise ModelFileError(
                    f"site {site} no longer holds its own part of the model of stage {stage}",
                    "Start the run again in another run.dir.",
                )
            save_part(folder, stage, site, part_of_state(final, stage, state))
