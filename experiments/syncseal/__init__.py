"""Running and reporting SyncSeal."""
