"""The built site: nothing from elsewhere, every link leads somewhere, and a browser opens and searches it."""

import asyncio
import functools
import html.parser
import re
import urllib.parse

import pytest

from tests.site.chromium import FOUND, Browser

# attributes from which a browser loads by itself
LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
OPENED = (
    "index.html",
    "theory.html",
    "results.html",
    "gallery.html",
    "api/bea.html",
    "examples/bea.html",
    "notebooks/when_to_grow.html",
)


class Page(html.parser.HTMLParser):
    """What a page loads, what it links to, and its anchors."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        elif attrs.get(LOADS.get(tag, "")):
            self.loads.append(attrs[LOADS[tag]])
        elif tag == "link" and attrs.get("rel") not in ("canonical", "next", "prev", "edit"):
            self.loads.append(attrs["href"])


@functools.cache
def page_of(file):
    return Page(file.read_text(encoding="utf-8"))


def test_nothing_is_loaded_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for file in pages:
        loads = page_of(file).loads
        assert len(loads) > 2, file  # a style and scripts at least
        assert not [load for load in loads if re.match(r"(https?:)?//", load)], file
    for file in site.rglob("*.css"):
        text = file.read_text(encoding="utf-8")
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]*", text), file


def test_every_link_leads_to_a_page_and_an_anchor(site):
    wrong, anchors = [], 0
    for file in site.rglob("*.html"):
        if file.name == "404.html":  # its links are those of a server
            continue
        for link in page_of(file).links:
            place, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            to = (file.parent / urllib.parse.unquote(place)).resolve() if place else file
            if not to.is_file():
                wrong.append(f"{file.relative_to(site)}: {link}")
            elif anchor and to.suffix == ".html":
                anchors += 1
                if urllib.parse.unquote(anchor) not in page_of(to).anchors:
                    wrong.append(f"{file.relative_to(site)}: {link}")
    assert not wrong, "\n".join(wrong[:40])
    assert anchors > 1000


def test_formulas_are_mathml(site):
    text = (site / "theory.html").read_text(encoding="utf-8")
    assert text.count("<math") > 20
    assert text.count("<math") == text.count("</math>")
    for file in [*(site / "api").glob("*.html"), site / "theory.html"]:
        assert "math::" not in re.sub(r"<math.*?</math>", "", file.read_text(encoding="utf-8")), file


@pytest.mark.skipif(FOUND is None, reason="no chromium on this machine opens the site")
def test_a_browser_opens_and_searches_the_site_without_an_error(site, tmp_path):
    asyncio.run(opens(site, tmp_path))


async def opens(site, folder):
    async with Browser(folder) as browser:
        for width in (360, 1440):
            for place in OPENED:
                await browser.open((site / place).as_uri(), width)
                assert await browser.evaluate("document.querySelectorAll('article h1').length") == 1, place
                wide = await browser.evaluate("document.documentElement.scrollWidth - window.innerWidth")
                assert wide <= 0, f"{place} is {wide} pixels wider than a window of {width}"
            await browser.open((site / "index.html").as_uri() + "?q=modified_loss", width)
            results = "[...document.querySelectorAll('.md-search-result__item a')].map(a => a.href).join(' ')"
            assert "api/bea.html" in await browser.until(results)
        assert browser.errors == []
        await browser.open((site / "index.html").as_uri(), 360)
        await browser.evaluate("console.error('heard')")
        assert "heard" in "".join(browser.errors)
