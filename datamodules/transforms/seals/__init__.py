"""Drawn seals: designs, their stamps with exact labels, and the ink that a press leaves on paper."""
