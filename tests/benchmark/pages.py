"""Read a written page as a reader sees it."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags with attributes, and the visible text in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.bold: list[str] = []
        self.hidden, self.strong = False, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.hidden = self.hidden or tag in ("head", "style")
        self.strong = tag == "strong"

    def handle_endtag(self, tag):
        self.hidden = self.hidden and tag != "head"
        self.strong = False

    def handle_data(self, data):
        if data.strip() and not self.hidden:
            self.text.append(data.strip())
            if self.strong:
                self.bold.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]
