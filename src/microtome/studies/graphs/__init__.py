"""Studies of papers on graph networks."""
