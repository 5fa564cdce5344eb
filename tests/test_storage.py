import pytest

from raylab.errors import RaylabError
from raylab.storage import Folder, private_folder


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    folder = Folder.open(tmp_path / "a" / "b")
    folder.write_text("x.json", "one")
    folder.write_text("x.json", "two")
    assert folder.read_text("x.json") == "two"
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["x.json"]


def test_a_new_folder_appears_only_when_it_is_complete(tmp_path):
    folder = Folder.open(tmp_path)
    with folder.new_folder("done", seal="seal") as path:
        (path / "seal").write_text("")
        assert folder.folders() == []
    assert folder.folders() == ["done"]
    assert (tmp_path / "done" / "seal").exists()


def test_a_failed_write_leaves_the_old_folder_alone(tmp_path):
    folder = Folder.open(tmp_path)
    with folder.new_folder("x", seal="seal") as path:
        (path / "seal").write_text("old")
    with pytest.raises(KeyError), folder.new_folder("x", seal="seal"):
        raise KeyError
    assert (folder / "x").read_text("seal") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_remove_and_move(tmp_path):
    folder = Folder.open(tmp_path)
    (folder / "a").write_text("f", "1")
    folder.move("a", "b")
    assert folder.folders() == ["b"]
    folder.remove("b")
    folder.remove("b")
    assert folder.folders() == []


def test_missing_folders_are_empty_and_bad_addresses_are_named(tmp_path):
    assert Folder.open(tmp_path / "absent").folders() == []
    with pytest.raises(RaylabError, match="ftp://"):
        Folder.open("ftp://host/results")


def test_a_private_folder_is_ours_alone_or_refused(tmp_path):
    folder = private_folder(tmp_path / "mine", "remove it")
    folder.chmod(0o755)
    assert private_folder(folder, "remove it").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").touch()
    for name in ("link", "file"):  # a link may lead to a folder of ours today and elsewhere tomorrow
        with pytest.raises(RaylabError, match=f"{name} is not a folder of yours: remove it"):
            private_folder(tmp_path / name, "remove it")
