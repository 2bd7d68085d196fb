"""A process that works on an experiment's cells: ``python -m simulations.experiments.worker FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from fed_diffmic.console import quiet_libraries
from fed_diffmic.files import read_json
from fed_diffmic.transport.processes import die_with_parent


def main() -> int:
    """Work on the cells that the experiment's ``workers/todo.json`` names."""
    die_with_parent()
    quiet_libraries()
    from simulations.experiments.runner import TODO, work

    out = Path(sys.argv[1])
    work(out, list(read_json(out / "workers" / TODO)["cells"]), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
