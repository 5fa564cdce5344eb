"""Folders and text files that readers of data sets look into, with errors that name them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raylab.errors import RaylabError


def scan(folder: Path, keep: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    """The entries of a folder to keep, by name; none where there is no such folder.

    Raises:
        RaylabError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if keep(entry))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RaylabError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever keeps a text file from being read becomes a `RaylabError` that names it."""
    try:
        yield
    except OSError as error:
        raise RaylabError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise RaylabError(f"{path}: not UTF-8 text ({error.reason}); save it as CSV in UTF-8") from None
