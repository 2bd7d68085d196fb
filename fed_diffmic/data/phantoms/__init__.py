"""Phantoms: drawn images with known signs, in the published layouts, so that everything runs with no download.

A phantom shows the modality and the signs of its class as a clinician would point them out, larger and
plainer than life: a tiny network learns them in a minute. It says nothing about how a method does on patients.
"""

from fed_diffmic.data.phantoms.layouts import LAYOUTS
from fed_diffmic.data.phantoms.writer import MARKER, draw, write_phantoms

__all__ = ["LAYOUTS", "MARKER", "draw", "write_phantoms"]
