"""Programs that show how runs hold up: kills, hours of running, a million images."""
