"""The method contract, the trainer and its checkpoints: plain PyTorch, usable in a notebook without a cluster."""
