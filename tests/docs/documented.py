"""What the documentation tells people to type: every fenced block of the guides, and its commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "cluster/README.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./-]+\.\w+)\n")
_HEREDOC = re.compile(r"<<'?(\w+)'?")


class Block(NamedTuple):
    """A fenced block: its page and line, its language, its text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The path that its first line names: the page asks to save it there."""
        named = _FILE.match(self.text)
        return named[1] if named else None


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page, or those of some languages."""
    text = page.read_text(encoding="utf-8")
    found = [Block(page, text.count("\n", 0, m.start()) + 2, m[1], m[2]) for m in _FENCE.finditer(text)]
    return [block for block in found if not languages or block.language in languages]


def commands(block: Block) -> list[str]:
    """The commands of a bash block, without remarks; one with a here-document has all its lines."""
    return list(_commands(iter(block.text.splitlines())))


def _commands(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        command = re.sub(r"(^|\s+)#\s.*$", "", line).removesuffix("…").strip()
        while command.endswith("\\"):
            command = command[:-1] + next(lines).strip()
        if end := _HEREDOC.search(command):
            body = [command]
            while body[-1] != end[1]:
                body.append(next(lines))
            command = "\n".join(body)
        if command:
            yield command


def all_commands() -> dict[str, str]:
    """Every documented command → where it stands first."""
    found: dict[str, str] = {}
    for page in PAGES:
        for block in blocks(page, "bash"):
            for command in commands(block):
                found.setdefault(command, f"{page.relative_to(PROJECT)}:{block.line}")
    return found
