"""Does a run of the tests say why it left some out? The way of `make test`, with the settings of pyproject.toml."""

import subprocess
import sys
from pathlib import Path

SETTINGS = Path(__file__).resolve().parent.parent / "pyproject.toml"
SKIPS = """
import pytest

@pytest.mark.skipif(True, reason="there is no Chromium to drive")
def test_in_a_browser():
    raise AssertionError
"""


def test_who_runs_the_tests_is_told_why_some_are_skipped(tmp_path):
    (tmp_path / "test_one.py").write_text(SKIPS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-c", str(SETTINGS), "--rootdir", str(tmp_path), "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "1 skipped" in done.stdout
    assert "there is no Chromium to drive" in done.stdout
