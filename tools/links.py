#!/usr/bin/env python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that each relative link in the pages below a directory leads to a file there, and its anchor to a heading.

Usage: tools/links.py [DIRECTORY]      prints a line for each link that leads nowhere; exit status 1 if there is one.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
TARGET = re.compile(r"\]\(\s*<?([^)\s>]+)|^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:")


def anchors(text: str) -> set[str]:
    """The anchors that forges make of headings: lower case, without punctuation, a hyphen for each space."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def links(text: str) -> Iterator[str]:
    """Targets of links and images; what is shown as code has none."""
    for inline, reference in TARGET.findall(CODE.sub("", FENCE.sub("", text))):
        target = inline or reference
        if not ABSOLUTE.match(target):
            yield target


def broken(root: Path, page: Path) -> Iterator[str]:
    for target in links(page.read_text(encoding="utf-8")):
        name, anchor = target.partition("#")[::2]
        file = (page.parent / name).resolve() if name else page
        if not file.is_relative_to(root) or not file.exists():
            yield f"{page.relative_to(root)}: {target}: there is no such file"
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text(encoding="utf-8"))):
            yield f"{page.relative_to(root)}: {target}: there is no such heading"


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    found = [line for page in sorted(root.rglob("*.md")) for line in broken(root, page)]
    print("".join(line + "\n" for line in found), end="")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
