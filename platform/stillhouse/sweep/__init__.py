"""Sweeps: the plan, the trials, the ledger, Ray Tune."""
