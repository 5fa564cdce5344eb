"""Messages between the server and the processes that look at videos: a line of JSON with bytes behind it.

Nothing pickled: what has read a hostile file can at most say something wrong.
"""

from __future__ import annotations

import json
import struct
from typing import Any

HEAD = struct.Struct(">II")
LONGEST = 64_000_000  # bytes of either part


def pack(message: dict[str, Any], content: bytes = b"") -> bytes:
    text = json.dumps(message).encode()
    return HEAD.pack(len(text), len(content)) + text + content


def lengths(head: bytes) -> tuple[int, int]:
    """Of the two parts that follow a head.

    Raises:
        ValueError: they cannot be.
    """
    text, content = HEAD.unpack(head)
    if max(text, content) > LONGEST:
        raise ValueError(f"a message of {max(text, content):,} bytes")
    return text, content
