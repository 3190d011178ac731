"""Formulas as MathML, made while the site is built: ``$ ... $``, ``$$ ... $$`` and docstrings' ``.. math::``.

A formula that ends with ``\\tag{1.2}`` has a number and the anchor ``eq-1.2``. Browsers draw MathML by
themselves: no script and no font is loaded.
"""

import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

TAG = re.compile(r"\\tag\{([\w.]+)\}")
_INLINE = r"(?<![\$\\\w])\$(?![\s$])([^$\n]+?)(?<![\s\\])\$(?![\$\w])"
_FENCE = re.compile(r"\s*(```|~~~)")


def display(latex: str) -> str:
    """Return the HTML of one displayed formula, a block that scrolls sideways where it is wider than the page."""
    numbered = TAG.search(latex)
    mathml = convert(TAG.sub("", latex).strip().rstrip("\\").strip(), display="block")
    mathml = mathml.replace("\n", " ").replace("<mo minsize", '<mo stretchy="true" minsize')
    number = numbered[1] if numbered else ""
    anchor = f' id="eq-{number}"' if number else ""
    link = f'<a class="number" href="#eq-{number}" title="Link to this formula">({number})</a>' if number else ""
    return f'<div class="formula"{anchor}><div class="wide">{mathml}</div>{link}</div>'


class _Formulas(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        out: list[str] = []
        i, fenced = 0, False
        while i < len(lines):
            line = lines[i]
            fenced ^= bool(_FENCE.match(line))
            text = line.strip()
            if fenced or not text.startswith(("$$", ".. math::")):
                out.append(line)
                i += 1
                continue
            indent = len(line) - len(line.lstrip())
            if text.startswith("$$"):
                parts = [text[2:]]
                while not parts[-1].rstrip().endswith("$$"):
                    i += 1
                    parts.append(lines[i].strip())
                latex = " ".join(parts).strip().removesuffix("$$")
                i += 1
            else:
                parts = [text.removeprefix(".. math::")]
                i += 1
                while i < len(lines) and lines[i].strip() and len(lines[i]) - len(lines[i].lstrip()) > indent:
                    parts.append(lines[i].strip())
                    i += 1
                latex = " ".join(parts)
            html = self.md.htmlStash.store(display(latex))
            out += ["", " " * indent + html, ""]
        return out


class _Inline(InlineProcessor):
    def handleMatch(self, found: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(convert(found[1]).replace("\n", " ")), found.start(0), found.end(0)


class Formulas(Extension):
    """Markdown with formulas."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Look for formulas before anything else but fenced code is looked for."""
        md.preprocessors.register(_Formulas(md), "formulas", 28)
        # after code (190), before escapes (180)
        md.inlinePatterns.register(_Inline(_INLINE, md), "formula", 185)


def makeExtension(**settings: Any) -> Formulas:
    """Return the extension, as Markdown asks for it."""
    return Formulas(**settings)
