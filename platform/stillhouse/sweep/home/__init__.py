"""A sweep's folder: its spec, lock, ledger and state, and the commands that manage it from another process."""
