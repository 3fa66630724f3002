"""Visible-watermark segmentation: which pixels of a picture belong to a logo or text laid over it."""
