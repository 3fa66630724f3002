"""What happens to pictures after they were marked, for a batch at once and with a parameter a sample."""
