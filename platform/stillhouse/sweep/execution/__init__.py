"""Running trials: one trial from its first step to its record, and how Ray Tune drives it."""
