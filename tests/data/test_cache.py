import json
import os
import threading

import pytest

from aid_d2.data import cache
from aid_d2.data.cache import cached_coco_json, fingerprint


def test_built_once_for_each_key(tmp_path):
    path, built = tmp_path / "set.json", []

    def ask(key):
        cached_coco_json(path, key, lambda: built.append(key) or {"made with": key})
        return json.loads(path.read_text())["made with"]

    assert [ask("a"), ask("a"), ask("b"), ask("a")] == ["a", "a", "b", "a"]
    assert built == ["a", "b", "a"]


def test_deleted_file_is_made_again(tmp_path):
    path = cached_coco_json(tmp_path / "set.json", "a", lambda: {})
    path.unlink()
    assert cached_coco_json(path, "a", lambda: {"again": 1}).read_text() == '{"again": 1}'


def test_failed_build_leaves_the_old_file_and_no_litter(tmp_path):
    path = cached_coco_json(tmp_path / "set.json", "a", lambda: {})
    before = sorted(tmp_path.iterdir())

    def fail():
        raise ValueError("bad label")

    with pytest.raises(ValueError, match="bad label"):
        cached_coco_json(path, "b", fail)
    assert sorted(tmp_path.iterdir()) == before
    assert cached_coco_json(path, "a", fail).read_text() == "{}"


def test_one_of_several_builds_while_the_others_wait(tmp_path):
    path, built, read = tmp_path / "set.json", [], []
    together = threading.Barrier(4)

    def ask():
        together.wait()
        cached_coco_json(path, "a", lambda: built.append(1) or {"images": [0] * 100_000})
        read.append(len(json.loads(path.read_text())["images"]))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1] and read == [100_000] * 4


def test_fingerprint_notices_every_change(tmp_path):
    file = tmp_path / "000000.txt"
    file.write_text("abc")
    os.utime(file, ns=(0, 1_000))
    keys = [fingerprint([1], [file]), fingerprint([2], [file]), fingerprint([1], [])]
    os.utime(file, ns=(0, 2_000))
    keys.append(fingerprint([1], [file]))
    file.write_text("abcd")
    os.utime(file, ns=(0, 1_000))
    keys.append(fingerprint([1], [file]))
    assert len(set(keys)) == 5
    file.write_text("abc")
    os.utime(file, ns=(0, 1_000))
    assert fingerprint([1], [file]) == keys[0]


@pytest.fixture
def fresh_cache_dir(monkeypatch):
    cache.cache_dir.cache_clear()
    yield monkeypatch
    cache.cache_dir.cache_clear()


def test_cache_directory_is_the_users(tmp_path, fresh_cache_dir):
    fresh_cache_dir.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "aid_d2"


def test_unwritable_cache_directory_is_replaced_with_a_warning(tmp_path, fresh_cache_dir, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    fresh_cache_dir.setenv("XDG_CACHE_HOME", str(blocked))
    fresh_cache_dir.setattr(cache.tempfile, "tempdir", str(tmp_path / "tmp"))
    directory = cache.cache_dir()
    assert directory.is_dir() and directory.is_relative_to(tmp_path / "tmp")
    assert f"Cannot write to the cache directory {blocked / 'aid_d2'}" in caplog.text
