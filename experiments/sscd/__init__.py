"""Programs around SSCD."""
