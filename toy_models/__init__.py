"""Models small enough to check the theory by hand."""
