"""The one error raised for bad input: it names the place, the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RaylabError(Exception):
    """Something the user can mend: a setting, a file, a name.

    The command line prints the message without a traceback and ends with exit code 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> RaylabError:
    """An error for a name that is not in `known`, with the nearest valid name."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(known)
    return RaylabError(f"unknown {kind} {name!r}: {hint}")
