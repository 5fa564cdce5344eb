import multiprocessing
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.data.clips import Annotations, Clip, ClipTable, Issue, IssueTable
from raylab.errors import RaylabError

WHOLE = st.integers(-(2**63), 2**63 - 1)
SECONDS = st.floats(allow_nan=False)


def clips_of(*heads: str) -> st.SearchStrategy[list[Clip]]:
    labels = st.fixed_dictionaries(dict.fromkeys(heads, WHOLE))
    text = st.text(max_size=8)
    return st.lists(st.builds(Clip, text, text, SECONDS, SECONDS, WHOLE, WHOLE, labels, text), max_size=12)


LISTS = st.sampled_from([(), ("verb",), ("verb", "noun")]).flatmap(lambda heads: clips_of(*heads))


def numbered(n: int) -> list[Clip]:
    return [Clip(f"P01_{i}", f"P{i % 7:02}", i / 3, i / 3 + 1, i, i + 9, {"verb": i % 97, "noun": i}) for i in range(n)]


@pytest.fixture
def mapped(tmp_path: Path) -> ClipTable:
    ClipTable.of(numbered(50)).write(tmp_path / "clips.arrow")
    return ClipTable.open(tmp_path / "clips.arrow")


# A sequence like any other.


@settings(deadline=None)
@given(LISTS)
def test_a_table_holds_the_clips_it_is_made_of(clips: list[Clip]) -> None:
    table = ClipTable.of(clips)
    assert list(table) == clips
    assert len(table) == len(clips)
    assert [table[i - len(clips)] for i in range(len(clips))] == clips
    assert list(reversed(table)) == clips[::-1]
    assert ClipTable.of(iter(clips)) == table
    assert ClipTable.of(table) is table


@settings(deadline=None)
@given(LISTS, st.slices(12))
def test_slices_are_those_of_a_list(clips: list[Clip], part: slice) -> None:
    assert list(ClipTable.of(clips)[part]) == clips[part]


@settings(deadline=None)
@given(clips_of("verb"), st.data())
def test_take(clips: list[Clip], data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, len(clips) - 1), max_size=20) if clips else st.just([]))
    table = ClipTable.of(clips)
    taken = table.take(indices)
    assert list(taken) == [clips[i] for i in indices]
    assert taken == table.take(np.array(indices, np.int64))


def test_values_are_plain_python_whatever_the_index() -> None:
    table = ClipTable.of(numbered(20_000))  # more than one chunk while it is made
    clip = table[np.int64(-1)]
    assert clip == numbered(20_000)[-1]
    values = [clip.id, clip.start, clip.start_frame, clip.labels, clip.labels["noun"]]
    assert [type(value) for value in values] == [str, float, int, dict, int]
    assert all(column.num_chunks == 1 for column in table.table.columns)


@pytest.mark.parametrize("index", [3, -4, 10**9])
def test_past_the_end(index: int) -> None:
    table = ClipTable.of(numbered(3))
    with pytest.raises(IndexError):
        table[index]
    with pytest.raises(IndexError):
        table.take([index])


def test_tables_differ_by_any_value_and_from_anything_else() -> None:
    clips = numbered(3)
    table = ClipTable.of(clips)
    assert table == ClipTable.of(numbered(3))
    assert table != ClipTable.of(clips[:2])
    assert table != ClipTable.of([*clips[:2], numbered(9)[8]])
    assert table != clips
    assert IssueTable.of([]) != ClipTable.of([])


def test_all_clips_have_the_same_heads() -> None:
    odd = Clip("odd", "v", 0.0, 1.0, 1, 2, {"verb": 1})
    with pytest.raises(RaylabError, match="clip odd: labels for verb, where the clips before it have verb, noun"):
        ClipTable.of([*numbered(20_000), odd])


def test_values_that_are_missing_are_refused() -> None:
    with pytest.raises(ValueError, match="no nulls"):
        ClipTable.of([Clip("a", None, 0.0, 1.0, 1, 2, {})])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no nulls"):
        ClipTable.of([Clip("a", "v", 0.0, 1.0, 1, 2, {"verb": None})])  # type: ignore[dict-item]


@settings(deadline=None)
@given(clips_of())
def test_videos_with_the_group_of_their_first_clip(clips: list[Clip]) -> None:
    expected = {clip.video: clip.group for clip in reversed(clips)}
    videos = ClipTable.of(clips).videos
    assert videos == expected
    assert list(videos) == list(dict.fromkeys(clip.video for clip in clips))


def test_the_summary_counts_issues_of_both_kinds() -> None:
    issues = [Issue("a.csv", line, kind, "…") for line, kind in enumerate(["late", "empty", "late"], start=2)]
    annotations = Annotations(ClipTable.of(numbered(1_000)), IssueTable.of(issues[:1]), IssueTable.of(issues[1:]))
    assert annotations.summary() == "1,000 clips, 1 empty, 2 late"
    assert Annotations(ClipTable.of(numbered(1))).summary() == "1 clip"


# On disk.


@settings(deadline=None)
@given(clips=LISTS)
def test_written_and_mapped(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("table") / "clips.arrow"
    ClipTable.of(clips).write(path)
    table = ClipTable.open(path)
    assert list(table) == clips
    assert table == ClipTable.of(clips)
    assert pickle.loads(pickle.dumps(table)) == table  # noqa: S301
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_opening_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "clips.arrow"
    ClipTable.of(numbered(100_000)).write(path)
    before = pa.total_allocated_bytes()
    table = ClipTable.open(path)
    assert table[77_777] == numbered(77_778)[-1]
    assert pa.total_allocated_bytes() - before < path.stat().st_size / 1_000


def test_a_mapped_table_is_pickled_as_its_path(mapped: ClipTable, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(mapped)
    assert len(content) < 500
    monkeypatch.chdir("/")
    again = pickle.loads(content)  # noqa: S301
    assert again == mapped
    assert again.path == mapped.path


def test_another_table_is_pickled_by_value(mapped: ClipTable) -> None:
    part = mapped.take([3, 1])
    mapped.path.unlink()
    assert list(pickle.loads(pickle.dumps(part))) == [mapped[3], mapped[1]]  # noqa: S301


def test_a_spawned_process_maps_the_same_file(mapped: ClipTable) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(list, (mapped,)) == numbered(50)


def test_an_open_table_outlives_its_file(mapped: ClipTable) -> None:
    ClipTable.of(numbered(2)).write(mapped.path)
    assert list(mapped) == numbered(50)
    mapped.path.unlink()
    assert list(mapped) == numbered(50)


def test_a_relative_path_is_remembered_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ClipTable.of(numbered(2)).write(Path("clips.arrow"))
    assert ClipTable.open(Path("clips.arrow")).path == tmp_path / "clips.arrow"


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"id,video\n", b"\0" * 4096])
def test_files_that_are_not_tables(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clips.arrow"
    path.write_bytes(content)
    with pytest.raises(RaylabError, match=r"clips\.arrow: not a table of Clip \(.*\); write it again"):
        ClipTable.open(path)


def test_an_absent_file_and_a_table_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(RaylabError, match=r"clips\.arrow: not a table of Clip \(.*No such file"):
        ClipTable.open(tmp_path / "clips.arrow")
    IssueTable.of([]).write(tmp_path / "clips.arrow")
    with pytest.raises(RaylabError, match=r"columns file string, .*, where ClipTable has id string, video string"):
        ClipTable.open(tmp_path / "clips.arrow")


def test_damage_is_an_error_or_another_value_but_never_a_crash(mapped: ClipTable) -> None:
    whole = mapped.path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for position in rng.sample(range(len(whole)), 500):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        mapped.path.write_bytes(damaged)
        try:
            list(ClipTable.open(mapped.path))
        except RaylabError:
            refused += 1
    for length in rng.sample(range(len(whole)), 100):
        mapped.path.write_bytes(whole[:length])
        with pytest.raises(RaylabError):
            ClipTable.open(mapped.path)
    assert refused > 50


def test_a_write_that_fails_leaves_the_old_file(mapped: ClipTable) -> None:
    (mapped.path.parent / "folder").mkdir()
    with pytest.raises(OSError):
        mapped.write(mapped.path.parent / "folder")
    assert sorted(entry.name for entry in mapped.path.parent.iterdir()) == ["clips.arrow", "folder"]


def test_reading_clips_does_not_import_pandas(mapped: ClipTable) -> None:
    code = (
        "import pickle, sys; from pathlib import Path; from raylab.data.clips import ClipTable\n"
        "table = pickle.loads(pickle.dumps(ClipTable.open(Path(sys.argv[1]))))\n"
        "print(table[7].id, len(table.videos), 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, mapped.path], capture_output=True, text=True, check=True)
    assert done.stdout == "P01_7 7 False\n"
