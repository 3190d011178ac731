"""One script a question; each prints a table and writes JSON. Run them as ``python -m benchmarks.<name>``."""
