"""Every figure and table, regenerated from code."""
