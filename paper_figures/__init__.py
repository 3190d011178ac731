"""Every figure and table, regenerated from code."""

from paper_figures.builder import build as build
from paper_figures.builder import drawable as drawable
from paper_figures.builder import not_computed as not_computed
from paper_figures.registry import FIGURES as FIGURES
from paper_figures.registry import PRESETS as PRESETS
from paper_figures.results import Results as Results
from paper_figures.results import ResultsError as ResultsError
from paper_figures.style import style as style
