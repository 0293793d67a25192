"""Is what lies in a storage whole, found again, and is a storage that refuses waited for?"""

import errno
import os
from pathlib import Path

import pytest
from upath import UPath

from workbench import storage
from workbench.errors import InputError
from workbench.sweeping.tasks import runs_for


@pytest.fixture(params=["folder", "memory", "address of a folder"])
def root(request, tmp_path):
    if request.param == "memory":
        return storage.place(f"memory://{tmp_path.name}/runs")
    return storage.place(str(tmp_path / "runs") if request.param == "folder" else f"file://{tmp_path}/runs")


def test_what_was_written_is_read_and_listed(root):
    assert storage.read(root / "a.json") is None
    assert storage.names(root, ".json") == set()
    for name, content in (("a", b"one"), ("b", b""), ("a", b"two")):
        storage.write(root / f"{name}.json", content)
    storage.write(root / "c.txt", b"other")
    assert storage.read(root / "a.json") == b"two"
    assert storage.names(root, ".json") == {"a", "b"}


def test_an_address_of_a_folder_is_a_folder(tmp_path):
    assert storage.place(f"file://{tmp_path}") == tmp_path
    assert isinstance(storage.place("memory://x"), UPath)
    assert storage.place("runs") == Path("runs")


def test_the_memory_of_a_process_is_no_place_that_lasts():
    assert storage.lasting("s3://bucket/runs") == "s3://bucket/runs"
    with pytest.raises(InputError, match="memory://x is the memory of one process, and gone with it"):
        storage.lasting("memory://x")
    with pytest.raises(InputError, match="is the memory of one process"):
        runs_for("memory://x", "ray")


def test_an_unknown_protocol_is_refused():
    with pytest.raises(InputError, match="nowhere://x cannot be used as a storage"):
        storage.place("nowhere://x")


def failing(monkeypatch, times, number=errno.ENOSPC):
    """Let the disk be full so many times."""
    tried, real = [], os.fsync

    def fsync(file):
        tried.append(file)
        if len(tried) <= times:
            raise OSError(number, os.strerror(number))
        real(file)

    monkeypatch.setattr("workbench.files.os.fsync", fsync)
    monkeypatch.setattr(storage, "_PAUSES", (0.01,))
    return tried


def test_a_full_storage_is_waited_for_and_that_is_said_once(tmp_path, monkeypatch, caplog):
    tried = failing(monkeypatch, 5)
    storage.write(tmp_path / "a", b"x", patience=30)
    assert len(tried) == 6
    assert caplog.messages == [f"cannot write {tmp_path / 'a'}: No space left on device; trying again for 30 s"]
    assert storage.read(tmp_path / "a") == b"x"


def test_a_storage_that_stays_full_is_told_and_keeps_what_it_had(tmp_path, monkeypatch):
    storage.write(tmp_path / "a", b"old")
    tried = failing(monkeypatch, 10**6)
    with pytest.raises(InputError, match="No space left on device; what was there before is intact"):
        storage.write(tmp_path / "a", b"new", patience=0.2)
    assert len(tried) > 3
    assert storage.read(tmp_path / "a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("number", "said"), [(errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only file system")])
def test_what_no_waiting_mends_is_told_at_once(tmp_path, monkeypatch, number, said):
    tried = failing(monkeypatch, 10**6, number)
    with pytest.raises(InputError, match=said):
        storage.write(tmp_path / "a", b"new", patience=600)
    assert len(tried) == 1


def test_what_a_driver_raises_is_a_refusal(monkeypatch):
    class EndpointConnectionError(Exception):
        """As drivers of object stores have them."""

    path = storage.place("memory://away/a")
    left, real = [1, 1], type(path).exists

    def exists(self):
        if left:
            left.pop()
            raise EndpointConnectionError("Could not connect to the endpoint URL\nand more")
        return real(self)

    monkeypatch.setattr(type(path), "exists", exists)
    monkeypatch.setattr(storage, "_PAUSES", (0.01,))
    assert storage.names(path.parent, ".json", patience=30) == set()
    left.append(1)
    with pytest.raises(InputError, match=r"^cannot list memory://away/a: Could not connect to the endpoint URL; what was finished before is intact$"):
        storage.names(path, ".json")


def test_a_storage_that_comes_back_is_read(monkeypatch):
    path = storage.place("memory://back/a")
    storage.write(path, b"x")
    left, real = [1, 1], UPath.read_bytes

    def read(self):
        if left:
            left.pop()
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return real(self)

    monkeypatch.setattr(type(path), "read_bytes", read)
    monkeypatch.setattr(storage, "_PAUSES", (0.01,))
    assert storage.read(path, patience=30) == b"x"
    left.append(1)
    with pytest.raises(InputError, match=r"cannot read memory://back/a: Connection reset by peer; what was finished before is intact"):
        storage.read(path)
