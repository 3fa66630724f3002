"""Programs around MaskSim."""
