"""Programs that measure; run from the checkout, never shipped. A package: Opacus installs another one of this name."""
