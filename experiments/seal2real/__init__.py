"""Programs around Seal2Real."""
