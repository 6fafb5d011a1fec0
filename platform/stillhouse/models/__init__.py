"""Student and teacher architectures, access to their features, their size and cost."""
