"""A model in use: load what a run left, predict images, evaluate tables. Knows no coordinator, site or simulation."""
