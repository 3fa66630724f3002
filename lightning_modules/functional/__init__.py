"""Pure functions of tensors and arrays, shared by methods, datamodules and callbacks: no files, no global state."""
