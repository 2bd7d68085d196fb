"""fed_diffmic: federated multi-site training of the DiffMIC-v2 medical image classifier."""

__version__ = "0.1.0"
