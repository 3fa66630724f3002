"""A persistent index of descriptors: segments that never change, and a manifest that is replaced whole."""
