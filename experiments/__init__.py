"""The command and everything that runs: the only place that imports all three packages."""
