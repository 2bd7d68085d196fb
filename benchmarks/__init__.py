"""Programs that measure; run from the checkout, never shipped. A package, so that `python -m` finds these."""
