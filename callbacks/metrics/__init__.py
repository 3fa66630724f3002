"""Metrics with state, as torchmetrics classes."""
