"""The command line. Nothing here imports torch before a verb runs, so that help answers at once."""
