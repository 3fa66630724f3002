"""Per-sample work on the CPU: compositing, copy edits, compression, views."""
