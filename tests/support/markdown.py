"""What a page of Markdown contains: code to run, links to follow."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.processes import ROOT

__all__ = ["PAGES", "anchors", "blocks", "links"]

PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *ROOT.glob("python-sdk/*.md"),
        *ROOT.glob("python-sdk/docs/**/*.md"),
    }
)

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks in a language, in the order of the page."""
    return [code for name, code in _BLOCK.findall(page.read_text()) if name == language]


def links(page: Path) -> list[str]:
    """Return where the links of a page lead, other than to the web."""
    targets = _LINK.findall(_BLOCK.sub("", page.read_text()))
    return [target for target in targets if not target.startswith("http")]


def anchors(page: Path) -> set[str]:
    """Return what `#…` may follow the page's name: its headings."""
    text = _BLOCK.sub("", page.read_text()) if page.suffix == ".md" else ""
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in _HEADING.findall(text)
    }
