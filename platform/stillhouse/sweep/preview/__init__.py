"""What `sweep --dry-run` shows: the plan, its hours and the disk space that it needs."""
