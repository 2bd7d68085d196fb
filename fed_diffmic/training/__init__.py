"""Training at a site and what is measured: stages, local update, losses, metrics, calibration. No Flower here."""
