"""Training methods as plain PyTorch pieces for a loop of one's own."""
