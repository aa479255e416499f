"""The tools behind the commands, as functions."""
