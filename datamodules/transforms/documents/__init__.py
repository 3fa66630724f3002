"""Documents with seals on them: pages, seals in place, capture, and the ground truth of all of it."""
