"""Shows a plan without running it (`sweep --dry-run`): its trials, hours and disk space."""
