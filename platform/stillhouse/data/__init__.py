"""Data sets, their splits, and the deterministic views that student and teacher share."""
