"""The targets: a function from bytes for every parser, which lets through only errors that are documented.

A target writes the bytes as a file into the folder of the case, reads it as a user's would be read, and uses what came of it
a little, so that a value that is wrong is met. ``TARGETS`` has them all, by name.
"""

from tests.fuzz import on_files, on_runs
from tests.fuzz.frame import TARGETS as TARGETS
from tests.fuzz.frame import cases_in as cases_in

assert on_files
assert on_runs
