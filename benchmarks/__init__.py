"""Side by side with peers and with bare PyTorch, in one process, as ratios of medians."""
