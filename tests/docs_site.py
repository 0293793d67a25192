"""What do the tests of the docs site share? The hook as a module, the pages as texts, and the built site."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WITH_MKDOCS = pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e '.[docs]'")
"""The mark of every file whose tests need what builds the site."""


@pytest.fixture(scope="session")
def hook():
    """`scripts/docs_pages.py` as a module, found as mkdocs finds it."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import docs_pages
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return docs_pages


@pytest.fixture(scope="session")
def texts(hook):
    """Every page of the site as Markdown, its markers replaced, by its path."""
    written = {path.relative_to(ROOT / "docs").as_posix(): path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))}
    lead, shown = hook.from_root.relinked, hook.from_root.shown()
    return {path: hook.expanded(lead(text, f"docs/{path}", path, shown), path) for path, text in written.items()} | hook.made()


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the built site: the one that `scripts/check` has just built, else built here, with warnings as errors."""
    if ready := os.environ.get("WORKBENCH_SITE"):
        return Path(ready)
    folder = tmp_path_factory.mktemp("built") / "site"
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Documentation built" in done.stderr  # and not too quiet to count warnings
    return folder
