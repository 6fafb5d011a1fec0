"""Plans a sweep: checks the spec, and derives the trials, their sizes, keys and costs, and what teachers must provide."""
