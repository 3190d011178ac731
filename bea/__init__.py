"""Backward error analysis: the modified fields and losses that discrete training follows."""

from bea import symbolic as symbolic
