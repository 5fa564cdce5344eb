import json
from dataclasses import replace
from pathlib import Path

import pytest
from scenes import clip

from raylab.config import DataConfig
from raylab.data.store.manifest import MANIFEST, Manifest, Shard, StoreSettings, Unreadable
from raylab.errors import RaylabError
from raylab.schema import validate

SETTINGS = StoreSettings(frames=(8, 16))
CLIP = clip("c", "v", 10, 60)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "give frames per clip, frames per second"),
        ({"frames": [8], "fps": 5}, "give frames per clip, frames per second"),
        ({"frames": [16, 8]}, r"frames \[16, 8\]: give each count once, in ascending order"),
        ({"frames": [8, 8]}, "give each count once"),
        ({"frames": [0]}, r"frames\.0 = 0: .*greater than or equal to 1"),
        ({"fps": 0}, "fps = 0: .*greater than 0"),
        ({"frames": [8], "quality": 101}, "quality = 101"),
        ({"frames": [8], "short_side": 15}, "short_side = 15"),
        ({"frames": [8], "size": 9}, "unknown setting size"),
    ],
)
def test_bad_settings_are_explained(asked: dict[str, object], message: str) -> None:
    with pytest.raises(RaylabError, match=message):
        validate(StoreSettings, asked, "store settings")


VARIANTS = [
    SETTINGS,
    StoreSettings(frames=(16,)),
    StoreSettings(fps=8),
    StoreSettings(fps=8.5),
    StoreSettings(frames=(8, 16), short_side=128),
    StoreSettings(frames=(8, 16), quality=80),
    StoreSettings(frames=(8, 16), sides=False),
]


def test_stores_of_other_settings_have_other_names_and_keys() -> None:
    assert SETTINGS.name == "8+16f-256px-q90"
    assert StoreSettings(fps=8.5, sides=False).name == "8.5fps-256px-q90-square"
    assert len({settings.name for settings in VARIANTS}) == len(VARIANTS)
    assert len({settings.content_key("ab", CLIP) for settings in VARIANTS}) == len(VARIANTS)
    assert all(Path(settings.name).name == settings.name for settings in VARIANTS)


def test_a_content_key_follows_the_video_and_the_segment_alone() -> None:
    key = SETTINGS.content_key("ab", CLIP)
    assert len(key) == 16
    assert SETTINGS.content_key("ac", CLIP) != key
    for change in ({"start": 0.41}, {"stop": 2.41}, {"start_frame": 12}, {"stop_frame": 62}):
        assert SETTINGS.content_key("ab", replace(CLIP, **change)) != key
    same = replace(CLIP, id="d", video="moved", labels={"verb": 99}, group="P02")
    assert SETTINGS.content_key("ab", same) == key


def test_what_a_store_serves() -> None:
    assert SETTINGS.refusal(DataConfig(frames=16, size=224)) is None
    assert SETTINGS.refusal(DataConfig(frames=8, size=112)) is None
    assert StoreSettings(fps=3).refusal(DataConfig(frames=7)) is None
    assert SETTINGS.refusal(DataConfig(frames=12)) == "holds 8 or 16 frames of a clip, not data.frames = 12"
    assert SETTINGS.refusal(DataConfig(frames=8, size=225)) == "short side 256: data.size = 225 needs 257"


MADE = Manifest(
    settings=SETTINGS,
    index="index-0123456789abcdef.arrow",
    clips=7,
    shards={"0123456789abcdef01234567": Shard(clips=7, bytes=1, digest="ab")},
    unreadable=[Unreadable(id="../ü", video="v", reason='said "no"\n')],
)


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path) is None
    assert Manifest.read(tmp_path / "absent") is None
    MADE.write(tmp_path)
    assert Manifest.read(tmp_path) == MADE
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


@pytest.mark.parametrize("name", ["../0123456789abcdef0123456", "/etc/passwd", "0123456789abcdef01234567/", "a" * 23])
def test_names_that_a_store_would_not_give_are_refused(tmp_path: Path, name: str) -> None:
    content = MADE.model_dump(mode="json")
    for field, value in {"shards": {name: content["shards"].popitem()[1]}, "index": f"{name}.arrow"}.items():
        (tmp_path / MANIFEST).write_text(json.dumps({**MADE.model_dump(mode="json"), field: value}))
        with pytest.raises(RaylabError, match=rf"manifest\.json: {field}"):
            Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"manifest\.json: not JSON"),
        ("[]", r"manifest\.json: format = None: .*move the folder away and run `raylab prepare`"),
        ('{"name": "a web app"}', "format = None"),
        ('{"format": 0}', "format = 0: this version reads clip stores of format 1"),
        ('{"format": 1}', r"manifest\.json: settings"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_explained(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(RaylabError, match=message):
        Manifest.read(tmp_path)
