"""From a spec to its trials: checks, sizes, keys, costs, and what is needed from the teachers."""
