"""What `detkit benchmark` measures: the three generations side by side, on the user's own machine."""
