"""DiffMIC-v2 (Yang et al., IEEE TMI 44(5), 2025), written from its description; see docs/model.md.

Symbols used in every docstring of this room:

====== =========================================================================
``B``  images
``C``  classes or labels
``K``  regions of interest; the diffusion's grid is ``K x K``
``D``  latent channels
``T``  diffusion timesteps in training
``S``  sampling steps
``H``  side of the input image in pixels
``G``  side of the saliency grid in cells
``c``  side of a region's crop in pixels
``W``  width (channels) of an encoder's features
====== =========================================================================
"""
