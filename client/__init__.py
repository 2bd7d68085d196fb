"""What a site runs."""

import fed_diffmic.transport  # noqa: F401  # before flwr: no telemetry
