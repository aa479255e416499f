"""Detectors as one graph that other programs run: written to files, and read again without torch."""
