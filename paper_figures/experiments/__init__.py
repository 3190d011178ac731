"""The paper's experiments: plan files, records of what they gave, and statistics over seeds.

``NAME.toml`` is a plan that the one engine runs, ``NAME.json`` beside it the record of its runs, which is committed.
``python -m paper_figures.experiments`` lists, runs, records and tabulates them.
"""

from paper_figures.experiments.record import Record as Record
from paper_figures.experiments.record import load_record as load_record
from paper_figures.experiments.record import record_of as record_of
