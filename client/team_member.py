"""A further device of a site: a process that computes its part of each step, and knows nothing else.

Started by :mod:`client.team` as ``python -m client.team_member DEVICE FOLDER RANK SIZE``. It reads tasks from its
standard input, ends with it, and dies with the worker. It has the network, and the images of the step in hand; it has
no key, no noise, no list of who is drawn, no optimizer and no algorithm: those are the leading process's.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import IO, NoReturn

from fed_diffmic.transport.processes import die_with_parent

logger = logging.getLogger(__name__)


def main() -> NoReturn:
    """The child: work until the leading process is gone, or something fails."""
    die_with_parent()
    from fed_diffmic.reporting.logs import set_up_logs

    set_up_logs()
    try:
        serve(sys.stdin.buffer, sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    except Exception:
        logger.exception("this device's part of a step failed")  # the site's own file (0600), as the worker's
        logging.shutdown()
        os._exit(1)
    os._exit(0)


def serve(tasks: IO[bytes], name: str, folder: Path, rank: int, size: int) -> None:
    """Do tasks until there are none.

    Args:
        tasks: where they come from.
        name: of the device.
        folder: where the processes find each other.
        rank, size: which of them this is.
    """
    import torch

    from client.team_wire import Group, part_of, read_task, rows_of
    from fed_diffmic.config.spec import RunSpec
    from fed_diffmic.privacy.ghost.sum import add_clipped, nothing
    from fed_diffmic.privacy.per_sample import Units, trained
    from fed_diffmic.training.parts import part_loss
    from fed_diffmic.training.precision import casts
    from fed_diffmic.training.stage import StageModule
    from fed_diffmic.training.stages import build_module

    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.zeros(1, device=device)
    (folder / f"ready-{rank}").touch()
    group = Group(folder, rank, size)
    module: StageModule | None = None
    total: dict[str, torch.Tensor] | None = None
    while (task := read_task(tasks)) is not None:
        if task.kind == "begin":
            module = build_module(RunSpec.from_json(task.facts["spec"]), task.facts["stage"])
            torch.set_num_threads(module.spec.threads)
            module.to(device).train()
            group.broadcast(list(module.network.state_dict().values()))
            continue
        assert module is not None  # the leading process begins with that
        parameters = list(trained(module).values())
        if task.kind == "gradients":
            group.broadcast(parameters)
            module.zero_grad(set_to_none=True)
            part, loss = part_of(task, device), torch.zeros((), device=device)
            if len(part):
                with casts(device, task.facts["precision"]):
                    loss = part_loss(module, part)
                loss.backward()
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            group.reduce([loss.detach().float(), *found])
        elif task.kind == "weights":
            group.broadcast(parameters)
            total = nothing(module)
        elif task.kind == "units":
            assert total is not None
            inputs, draws, rest = rows_of(task, device)
            units = Units(inputs, rest["labels"], draws, rest["mask"], rest.get("offset"))
            add_clipped(total, module, units, task.facts["bound"])
        elif task.kind == "sum":
            assert total is not None
            group.reduce(list(total.values()))
            total = None


if __name__ == "__main__":
    main()
