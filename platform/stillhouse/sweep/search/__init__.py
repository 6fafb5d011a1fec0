"""Which trials to run: draws, adaptive studies, the queue that hands trials out, the budget."""
