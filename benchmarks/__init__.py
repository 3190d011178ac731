"""Benchmarks, one script for each question, run as ``python -m benchmarks.<name>``; they print tables and write JSON."""
