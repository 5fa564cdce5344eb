from dataclasses import replace
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes import refusals

from raylab.data.clips import Clip, ClipTable
from raylab.data.store import index
from raylab.errors import RaylabError


def numbered(n: int, first: int = 0) -> list[Clip]:
    return [Clip(f"c{i}", f"v{i % 3}", i / 3, i / 3 + 1, i + 1, i + 9, {"verb": i}) for i in range(first, first + n)]


def key_of(clip: Clip, version: int = 0) -> bytes:
    return blake2b(f"{clip.id}/{version}".encode(), digest_size=16).digest()


def rows_of(shard: str, clips: list[Clip], errors: dict[str, str] | None = None, version: int = 0) -> pa.Table:
    return index.rows_of(shard, [(clip, key_of(clip, version)) for clip in clips], errors or {})


def test_rows_of_a_shard_count_the_clips_that_are_in_it() -> None:
    rows = rows_of("abc", numbered(5), {"c0": "no file", "c3": "too short"}).to_pylist()
    assert [(row["id"], row["shard"], row["row"], row["error"]) for row in rows] == [
        ("c0", None, None, "no file"),
        ("c1", "abc", 0, None),
        ("c2", "abc", 1, None),
        ("c3", None, None, "too short"),
        ("c4", "abc", 2, None),
    ]
    assert [(row["video"], row["start"], row["stop_frame"], row["key"]) for row in rows][2] == (
        "v2",
        2 / 3,
        11,
        key_of(numbered(3)[2]),
    )


@given(order=st.permutations(range(8)))
def test_locate_finds_each_clip_in_any_order(order: list[int]) -> None:
    rows, clips = rows_of("abc", numbered(8)), numbered(8)
    assert index.locate(rows, ClipTable.of([clips[i] for i in order])).tolist() == list(order)


@pytest.mark.parametrize(
    "change",
    [{"id": "c9"}, {"video": "v1"}, {"start": 0.1}, {"stop": 1.1}, {"start_frame": 2}, {"stop_frame": 10}],
    ids=lambda change: next(iter(change)),
)
def test_a_clip_of_another_segment_is_not_there(change: dict[str, object]) -> None:
    clips = numbered(4)
    rows = rows_of("abc", clips)
    changed = [replace(clips[0], **change), *clips[1:]]
    assert index.locate(rows, ClipTable.of(changed)).tolist() == [-1, 1, 2, 3]
    assert index.holds(rows, ClipTable.of(changed), list(map(key_of, clips))).tolist() == [False, True, True, True]


def test_labels_and_groups_do_not_matter() -> None:
    clips = numbered(3)
    other = ClipTable.of([replace(clip, labels={"noun": 7}, group="P07") for clip in clips])
    assert index.locate(rows_of("abc", clips), other).tolist() == [0, 1, 2]


def test_holds_only_what_is_readable_and_of_the_same_content() -> None:
    clips = numbered(5)
    rows = rows_of("abc", clips[:4], {"c2": "broken"})
    keys = [key_of(clip, int(clip.id == "c1")) for clip in clips]
    assert index.holds(rows, ClipTable.of(clips), keys).tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("clips", [0, 3])
def test_an_empty_index_holds_nothing(clips: int) -> None:
    table = ClipTable.of(numbered(clips))
    keys = list(map(key_of, table))
    assert index.locate(index.SCHEMA.empty_table(), table).tolist() == [-1] * clips
    assert index.holds(index.SCHEMA.empty_table(), table, keys).tolist() == [False] * clips
    assert index.holds(rows_of("abc", numbered(2)), ClipTable.of([]), []).tolist() == []


def test_merge_keeps_the_last_row_of_each_clip_in_the_order_of_ids() -> None:
    old, new = rows_of("old", numbered(3)), rows_of("new", numbered(3, first=2), version=1)
    merged = index.merge([old, new]).to_pylist()
    assert [(row["id"], row["shard"]) for row in merged] == [
        ("c0", "old"),
        ("c1", "old"),
        ("c2", "new"),
        ("c3", "new"),
        ("c4", "new"),
    ]
    assert index.merge([]).num_rows == 0


@given(cuts=st.lists(st.integers(0, 30), max_size=4), turns=st.randoms())
def test_an_index_does_not_depend_on_the_parts_it_is_merged_from(cuts: list[int], turns: object) -> None:
    clips = numbered(30)
    edges = [0, *sorted(cuts), 30]
    parts = [rows_of("abc", clips)[a:b] for a, b in pairwise(edges)]
    turns.shuffle(parts)
    merged = index.merge(parts)
    whole = index.merge([rows_of("abc", clips)])
    assert merged.equals(whole)
    assert index.digest(merged) == index.digest(whole)


def test_the_digest_follows_the_rows() -> None:
    variants = [
        rows_of("abc", numbered(3)),
        rows_of("abd", numbered(3)),
        rows_of("abc", numbered(4)),
        rows_of("abc", numbered(3), version=1),
        rows_of("abc", numbered(3), {"c1": "broken"}),
        index.SCHEMA.empty_table(),
    ]
    assert len(set(map(index.digest, variants))) == len(variants)


@pytest.mark.parametrize("id", ["../../up", "a/b", "'; drop", '"', "\n", "\0", "ü😀", "", "." * 300])
def test_ids_are_only_text(id: str, tmp_path: Path) -> None:
    clip = replace(numbered(1)[0], id=id, video=id)
    index.write_rows(tmp_path / "i.arrow", rows_of("abc", [clip]))
    rows = index.read_rows(tmp_path / "i.arrow")
    assert rows["id"].to_pylist() == [id]
    assert index.holds(rows, ClipTable.of([clip]), [key_of(clip)]).tolist() == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["i.arrow"]


def test_opening_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    rows = rows_of("0" * 24, numbered(20_000))
    index.write_rows(tmp_path / "i.arrow", rows)
    before = pa.total_allocated_bytes()
    mapped = index.read_rows(tmp_path / "i.arrow")
    assert mapped["row"][17_777].as_py() == 17_777
    assert pa.total_allocated_bytes() - before < rows.nbytes / 100
    (tmp_path / "i.arrow").unlink()
    assert mapped.equals(rows), "it outlives its file"


@pytest.mark.parametrize("content", [None, b"", b"ARROW1", b"id,video\n", b"\0" * 4096])
def test_what_is_not_an_index_is_named_with_the_remedy(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "i.arrow"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RaylabError, match=r"i\.arrow: cannot be read \(.*\): delete it and run `raylab prepare`"):
        index.read_rows(path)


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    index.write_rows(tmp_path / "i.arrow", pa.table({"id": ["c0"]}))
    with pytest.raises(RaylabError, match=r"i\.arrow: cannot be read \(columns id\)"):
        index.read_rows(tmp_path / "i.arrow")


def test_damage_is_an_error_or_another_value_but_never_a_crash(tmp_path: Path) -> None:
    index.write_rows(tmp_path / "i.arrow", rows_of("abc", numbered(9), {"c3": "broken"}))
    imports = "from raylab.data.store.index import read_rows"
    assert refusals(tmp_path / "i.arrow", imports, "read_rows(damaged).to_pylist()") > 300


def test_positions_of_many_clips_are_found_at_once() -> None:
    clips = ClipTable.of(numbered(20_000))
    rows = index.merge([rows_of("abc", list(clips))])
    found = index.locate(rows, clips)
    assert rows["id"].take(found).to_pylist() == clips.table["id"].to_pylist()
    assert len(np.unique(found)) == len(clips)
