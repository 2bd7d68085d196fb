"""Virtual sites on one machine: partitions, grids, baselines, the run."""

import fed_diffmic.transport  # noqa: F401  # before flwr: no telemetry
