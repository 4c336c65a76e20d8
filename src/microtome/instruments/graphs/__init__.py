"""Questions about networks on graphs."""
