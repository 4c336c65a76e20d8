"""Layers and networks, each an ordinary ``nn.Module`` to take into your own code."""
