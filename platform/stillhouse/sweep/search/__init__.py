"""Chooses trials: random draws, adaptive studies, the queue that hands trials out, and the budget."""
