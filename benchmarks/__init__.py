"""Programs that measure; run from the checkout, never shipped. A package: another one of this name may be installed."""
