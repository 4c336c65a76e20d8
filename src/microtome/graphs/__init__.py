"""What microtome adds to PyTorch Geometric, in its conventions."""
