"""Teachers: training and loading them, the shared actors, and the trial's client with its three delivery modes."""
