"""MaskSim: generated images found by masked spectra of their noise residual."""
