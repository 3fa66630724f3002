"""SSCD: a fingerprint of a picture that survives editing."""
