"""Data sets, their splits, and the views that student and teacher share."""
