"""Training at a site and what is measured: stages, local update, losses, figures, calibration. No Flower here."""
