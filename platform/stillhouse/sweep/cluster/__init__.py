"""Uses a Ray cluster: the connection, checks of nodes, placement, teacher actors, and the run of the trials."""
