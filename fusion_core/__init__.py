"""Fusion operators, a lean T5, its data pipeline and a minimal trainer."""
