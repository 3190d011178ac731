"""What MkDocs builds the site of, beside the pages of docs/: see ``website.pages``."""

import pathlib
import re
from typing import Any

from mkdocs.structure.files import File, Files

from website import pages

ROOT = pathlib.Path(__file__).parent.parent


def on_config(config: Any) -> Any:
    """Put the notebooks into the navigation, before the how-tos."""
    found = [{title: place} for place, title in pages.notebooks()]
    if found:
        config.nav.insert(2, {"Notebooks": found})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made of files outside docs/."""
    on_files.made = pages.made()
    for place, text in on_files.made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to files of the repository to the pages that show them."""
    place = page.file.src_uri
    if place in on_files.made:
        return markdown
    markdown = re.sub(r"^(Code: .* Test: .*)$", r"\1\n{: .evidence }", markdown, flags=re.MULTILINE)
    return pages.with_links(markdown, f"docs/{place}", place)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Lead the numbers of formulas in docstrings back to the formulas, and their "docs/x.md" to pages."""
    if not page.file.src_uri.startswith("api/"):
        return html
    number = r"(?<!\w)\((\d\.\d+)\)"
    sources = re.compile(rf"theory\.md,\s+{number}(?:(?:,\s+|\s+and\s+){number})*")
    link = lambda found: f'<a href="../theory.html#eq-{found[1]}">({found[1]})</a>'
    return sources.sub(lambda found: re.sub(number, link, found[0]), html)
