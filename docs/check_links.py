"""Check the links within a built site: ``python docs/check_links.py docs/_build/html``.

Every page, picture and anchor that a page leads to must be there, and every page must be reached from the first one.
Nothing is fetched; a page that would load a script, style or picture from elsewhere is an error.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

UNLINKED = {"genindex.html", "py-modindex.html", "search.html"}


class Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag leads to, loads, and is called."""
        given = {name: value for name, value in attrs if value}
        self.anchors.update(value for name, value in given.items() if name == "id" or (tag == "a" and name == "name"))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("img", "script", "source", "iframe") and "src" in given:
            self.loaded.append(given["src"])
        elif tag == "link" and "href" in given and given.get("rel") != "canonical":
            self.loaded.append(given["href"])


def check(site: Path) -> list[str]:
    """Return what is wrong with the links of a site."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    wrong, reached = [], {(site / "index.html").resolve()}
    for path, page in pages.items():
        for link in page.links + page.loaded:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                if link in page.loaded and url.scheme != "data":
                    wrong.append(f"{path.relative_to(site)}: loads {link}")
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            anchor = unquote(url.fragment)
            if not target.exists():
                wrong.append(f"{path.relative_to(site)}: no file {link}")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                wrong.append(f"{path.relative_to(site)}: no anchor {link}")
            if target != path:
                reached.add(target)
    lost = [path for path in pages if path not in reached and path.name not in UNLINKED]
    return wrong + [f"{path.relative_to(site)}: no page leads here" for path in lost]


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    found = check(folder)
    print("\n".join(found) or f"All links of the {len(list(folder.rglob('*.html')))} pages in {folder.name} hold.")
    sys.exit(bool(found))
