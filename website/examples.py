"""The blocks of code of the pages, and which public names they show."""

import ast
import functools
import pathlib
import re
from typing import NamedTuple

from website import pages

ROOT = pathlib.Path(__file__).parent.parent
_BLOCK = re.compile(
    r"^```(python|sh|toml)(?: title=\"([\w.]+)\")?\n(.*?)^```\n(?:\n?prints\n+```\n(.*?)^```)?",
    flags=re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """One block of code of a page: its kind, its text, what it prints ("" if the page does not say), its file, its heading."""

    kind: str
    code: str
    printed: str
    heading: str
    file: str = ""


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page, in their order."""
    found = []
    for match in _BLOCK.finditer(text):
        headings = re.findall(
            r"^#+ (.+)$",
            re.sub(r"^```.*?^```", "", text[: match.start()], flags=re.DOTALL | re.MULTILINE),
            flags=re.MULTILINE,
        )
        found.append(Block(match[1], match[3], match[4] or "", headings[-1] if headings else "", match[2] or ""))
    return found


def used(code: str) -> set[str]:
    """Return the dotted names that code uses, with imported names and abbreviations written out."""
    tree = ast.parse(code)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {
                alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            head, _, rest = ast.unparse(node).partition(".")
            if head in known:
                found.add(f"{known[head]}.{rest}".rstrip("."))
    return found


def in_docstring(code: str) -> bool:
    """Return whether a docstring has an example."""
    return ">>> " in code


def slug(heading: str) -> str:
    """Return the anchor of a heading, as Markdown's table of contents makes it."""
    from markdown.extensions.toc import slugify

    return slugify(re.sub(r"[`*]", "", heading), "-")


@functools.cache
def sections() -> dict[str, tuple[str, str]]:
    """Return dotted name -> (page, anchor) of the first section, those of docs/examples first, whose block uses it."""
    found: dict[str, tuple[str, str]] = {}
    everything = pages.example_pages()
    for place in sorted(everything, key=lambda place: (not place.startswith("examples/"), place)):
        imports = ""
        for block in blocks(everything[place]):
            if block.kind != "python":
                continue
            for name in used(imports + block.code):
                found.setdefault(name, (place, slug(block.heading)))
            imports += "".join(f"{line}\n" for line in block.code.splitlines() if re.match(r"(import|from) ", line))
    return found
