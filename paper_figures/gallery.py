"""The gallery: one self-contained HTML page with every figure, its caption and the origin of its numbers."""

import base64
import dataclasses
import html
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType

from paper_figures.cache import committed_path
from paper_figures.experiments.record import path_of
from paper_figures.results import Results


@dataclasses.dataclass(frozen=True)
class GalleryItem:
    """One figure of the page: its name, module, results and drawn image."""

    name: str
    module: ModuleType
    results: Results
    png: bytes


def page(entries: Sequence[GalleryItem], others: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the HTML of the gallery, with images inside and nothing loaded from elsewhere.

    Args:
      entries: the figures.
      others: figures that are not drawn -> why, and how to draw them.
    """
    links = "".join(f'<a href="#{html.escape(e.name)}">{html.escape(headline(e.module))}</a>' for e in entries)
    body = "\n".join(_section(entry) for entry in entries)
    rest = "".join(f"<li><b>{html.escape(name)}</b>: {html.escape(why)}</li>" for name, why in others.items())
    body += f"\n<section><h2>Not drawn here</h2><ul>{rest}</ul></section>" if rest else ""
    return _PAGE.format(links=links, body=body, count=len(entries), plural="" if len(entries) == 1 else "s")


def headline(module: ModuleType) -> str:
    """Return the first line of the caption."""
    return inspect.cleandoc(module.__doc__ or "").split("\n")[0]


def caption(module: ModuleType, formulas: bool = False) -> list[str]:
    """Return the other paragraphs of the caption; without its display formulas if the page renders no TeX."""
    paragraphs = [re.sub(r"\s+", " ", p).strip() for p in inspect.cleandoc(module.__doc__ or "").split("\n\n")[1:]]
    return [p for p in paragraphs if formulas or not p.startswith(".. math::")]


def origin(entry: GalleryItem) -> str:
    """Return one sentence on where the numbers come from, and how to compute those anew that were not."""
    results, name = entry.results, entry.name
    records = getattr(entry.module, "RECORDS", ()) if results.preset == "full" else ()
    if records := [record for record in records if path_of(record, "json").exists()]:
        return (
            f"Not recomputed: drawn from the committed records of the runs {', '.join(records)}; `python -m "
            f"paper_figures.experiments {records[0]} --out runs/{records[0]}` trains the first anew (hours)."
        )
    path = committed_path(name)
    if results.preset == "full" and path.exists() and Results.load(path).created == results.created:
        return (
            f"Not recomputed: committed numbers of {results.created[:10]}, which took {results.seconds:.0f} s; `deepfusion "
            f"figures {name} --force` computes them anew."
        )
    again = f"`deepfusion figures {name} --force` computes them anew"
    return f"Computed by this code, in {results.seconds:.0f} s; {again}."


def verdict(finding: str) -> str:
    """Return whether one sees what one should, if the finding judges it: by its NOT, or its words of assent."""
    if re.search(r"\bNOT\b", finding):
        return "Not all of it is as one should see"
    return "Seen" if re.search(r"\b[Aa]s predicted\b|\bahead of every\b", finding) else "Measured"


def _section(entry: GalleryItem) -> str:
    results, image = entry.results, base64.b64encode(entry.png).decode()
    title = html.escape(headline(entry.module))
    facts = {
        "preset": results.preset,
        "seed": results.seed,
        "computed": f"{results.created}, in {results.seconds:.1f} s",
        "device": results.device,
        "versions": ", ".join(f"{name} {version}" for name, version in results.versions.items()),
        "commit": results.commit or "not known",
        "config": json.dumps(results.config),
    }
    rows = "".join(f"<tr><th>{key}</th><td>{html.escape(str(value))}</td></tr>" for key, value in facts.items())
    finding = entry.module.finding(results)
    paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in caption(entry.module))
    paragraphs = paragraphs.replace("What one should see:", "<b>What one should see:</b>")
    paragraphs += f"<p class=finding><b>{verdict(finding)}:</b> {html.escape(finding)}</p>"
    drawn_from = re.sub("`(.*?)`", r"<code>\1</code>", html.escape(origin(entry)))
    paragraphs += f"<p class=origin>{drawn_from}</p>"
    return (
        f'<section id="{html.escape(entry.name)}"><h2>{title}</h2>'
        f'<figure><img alt="{title}" src="data:image/png;base64,{image}"><figcaption>{paragraphs}</figcaption></figure>'
        f"<details><summary>Where the numbers came from</summary><table>{rows}</table></details></section>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Deep Fusion: figures</title>
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; color: #1c1c1c; background: #fafafa; margin: 0 auto; max-width: 56rem;
  padding: 2rem 1rem; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .3rem; }}
h2 {{ font-size: 1.15rem; margin: 0 0 1rem; }}
nav a {{ display: block; color: #005b9e; }}
section {{ background: #fff; border: 1px solid #e3e3e3; border-radius: 8px; padding: 1.5rem; margin: 1.5rem 0; }}
figure {{ margin: 0; }}
img {{ width: 100%; height: auto; }}
figcaption {{ color: #444; font-size: .95rem; }}
.finding {{ border-left: 4px solid #005b9e; padding-left: .8rem; color: #1c1c1c; }}
.origin {{ font-size: .9rem; color: #555; }}
summary {{ cursor: pointer; color: #555; font-size: .9rem; }}
table {{ border-collapse: collapse; font-size: .85rem; margin-top: .5rem; }}
th {{ text-align: left; vertical-align: top; padding: .15rem 1rem .15rem 0; font-weight: 600; color: #555; }}
td {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>Deep Fusion: figures</h1>
<p>{count} figure{plural}, each drawn from the numbers in its JSON file.</p>
<nav>{links}</nav>
{body}
</body>
</html>
"""
