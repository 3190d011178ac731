"""``python -m paper_figures``: list the figures, or draw some of them into a folder."""

import argparse
import json
import sys

from fusion_core.errors import InputError
from paper_figures.builder import build, drawable
from paper_figures.gallery import headline
from paper_figures.registry import FIGURES, PRESETS
from paper_figures.results import ResultsError

EXAMPLES = """examples:
  python -m paper_figures                                        list the figures
  python -m paper_figures order_of_accuracy --preset smoke       draw one, in seconds
  python -m paper_figures --all --out runs/figures               draw all, as in the paper
"""


def main(arguments: list[str] | None = None) -> int:
    """Draw figures; return the exit code: 0, or 2, after a line with the reason, if the input is at fault."""
    parser = argparse.ArgumentParser(
        prog="python -m paper_figures",
        description="Draw the figures of the paper from code. Without names, list them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures to draw")
    parser.add_argument(
        "--all", action="store_true", help="draw every figure whose numbers are committed, or take minutes"
    )
    parser.add_argument("--preset", choices=PRESETS, default="full", help="how much to compute (default: full)")
    parser.add_argument(
        "--out", default="runs/figures", metavar="FOLDER", help="folder to write into (default: runs/figures)"
    )
    parser.add_argument("--force", action="store_true", help="compute again what is cached or committed")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of lines")
    options = parser.parse_args(arguments)
    if options.all and options.names:
        parser.error("--all draws every figure: leave the names out, or leave out --all")
    if not options.all and not options.names:
        figures = {name: headline(module) for name, module in FIGURES.items()}
        lines = [f"{name}  {line}" for name, line in figures.items()]
        print(json.dumps({"figures": figures}) if options.json else "\n".join(lines))
        return 0
    try:
        files = build(
            drawable(options.preset) if options.all else options.names, options.preset, options.out, options.force
        )
    except (InputError, ResultsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"files": [str(f) for f in files]}) if options.json else "\n".join(map(str, files)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
