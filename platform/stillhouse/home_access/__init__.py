"""How a process on any node reaches the home: as a shared folder, or as copies through the keeper actor."""
