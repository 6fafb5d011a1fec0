"""Runs sweeps: from the spec through the plan and the trials to the results. Ray and Ray Tune are used here."""
