"""Student and teacher architectures: their features, size, cost and weights."""
