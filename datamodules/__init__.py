"""Datamodules, named after the data they serve."""
