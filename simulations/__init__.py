"""Virtual sites on one machine: partitions, grids, baselines, the run."""
