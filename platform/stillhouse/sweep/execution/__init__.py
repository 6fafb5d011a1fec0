"""Runs trials: one trial from its first step to its record, and the interface to Ray Tune."""
