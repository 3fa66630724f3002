"""Callbacks: evaluation, predictions, figures, and what keeps a run safe."""
