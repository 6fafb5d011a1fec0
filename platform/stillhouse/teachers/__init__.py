"""Training and loading teachers, the shared actors, and the client with its three ways to the same knowledge."""
