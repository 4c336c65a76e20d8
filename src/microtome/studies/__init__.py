"""Studies: one file a paper, ``<room>/<slug>.py``; each tests the paper's central claim by measurement."""
