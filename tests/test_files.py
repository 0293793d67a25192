"""Is a result on the disk either complete or the older one, whatever goes wrong?"""

import errno
import os
import stat
import subprocess
import sys

import pytest

from workbench.errors import InputError
from workbench.files import write_file, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_whole_into_folders_made_for_it(tmp_path):
    target = tmp_path / "a" / "b" / "file.txt"
    assert write_text(target, "grün ×\n") == target
    assert target.read_bytes() == "grün ×\n".encode()
    assert names(target.parent) == ["file.txt"]


def test_a_path_may_be_text_and_the_older_file_is_replaced(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("a much longer older text", encoding="utf-8")
    assert write_text(str(target), "new") == target
    assert target.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_a_failing_writer_leaves_the_older_file_and_nothing_else(tmp_path, error):
    target = write_text(tmp_path / "file.txt", "old")

    def fail(part):
        part.write_text("half", encoding="utf-8")
        assert target.read_text(encoding="utf-8") == "old"
        raise error

    with pytest.raises(type(error)):
        write_file(target, fail)
    assert target.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_full_disk_is_told_with_path_and_reason(tmp_path):
    target = write_text(tmp_path / "file.txt", "old")

    def fail(part):
        part.write_text("half", encoding="utf-8")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match="No space left on device; what was there before is intact") as caught:
        write_file(target, fail)
    assert f"cannot write {target}: " in str(caught.value)
    assert target.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["file.txt"]


def test_an_os_error_without_a_number_is_told_too(tmp_path):
    def fail(part):
        raise OSError("the file system is odd")

    with pytest.raises(InputError, match="the file system is odd"):
        write_file(tmp_path / "file.txt", fail)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_is_told(tmp_path):
    write_text(tmp_path / "file", "in the way")
    with pytest.raises(InputError, match=r"cannot write .*file/below\.txt"):
        write_text(tmp_path / "file" / "below.txt", "x")


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / "folder", "x")
    assert names(tmp_path) == ["folder"]


def test_the_part_lies_beside_the_target_and_the_result_obeys_the_umask(tmp_path):
    seen = []

    def write(part):
        seen.append(part)
        part.write_text("x", encoding="utf-8")

    old = os.umask(0o027)
    try:
        target = write_file(tmp_path / "file.txt", write)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert seen[0].parent == tmp_path
    assert seen[0].name.startswith(".file.txt.")
    assert seen[0].name.endswith(".part")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_kill_in_the_middle_leaves_the_older_file(tmp_path):
    target = write_text(tmp_path / "file.txt", "old")
    code = "import os, sys; from workbench.files import write_file\nwrite_file(sys.argv[1], lambda part: (part.write_text('half'), os.kill(os.getpid(), 9)))"
    killed = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert killed.returncode == -9
    assert target.read_text(encoding="utf-8") == "old"
