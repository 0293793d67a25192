"""Do labels survive being published, and does the page say what they are? The hub is replaced by a folder; what goes wrong there is said."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from workbench import publishing
from workbench.cli import app
from workbench.errors import InputError
from workbench.formats import FORMATS, read
from workbench.heads import Head, ModelCard, Shape
from workbench.labels import HeadLabels

BUNDLED = Path(__file__).resolve().parent.parent / "reports" / "smollm2-135m" / "heads.json"
BARE = HeadLabels(ModelCard("tiny", "owner/tiny", "beef", Shape(2, 4, 2, 8, 32), "abc"), {Head(1, 2): ("mine",)}, {"local": np.eye(2, 4)})


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_the_folder_holds_the_labels_and_every_format(tmp_path):
    result = run("publish", BUNDLED, "--to", "me/heads", "--dry-run", "--out", tmp_path / "p", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["left_out"] == {}
    assert told["address"] is None
    assert (tmp_path / "p" / "heads.json").read_text(encoding="utf-8") == BUNDLED.read_text(encoding="utf-8")
    assert {Path(name).stem for name in told["files"]} >= set(FORMATS) - {"workbench"} | {"README", "heads", "scores", "report"}
    labels = HeadLabels.load(BUNDLED)
    assert read(tmp_path / "p" / "qrhead.yaml", "qrhead", labels.card, "query_focused_retrieval").counts() == {"query_focused_retrieval": 5}
    page = (tmp_path / "p" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(page.split("---")[1])["library_name"] == "attention-head-workbench"
    for name, count in labels.counts().items():
        assert f"{count} {name}" in page
    assert labels.card.fingerprint in page


def test_what_a_format_cannot_hold_is_said(tmp_path):
    BARE.save(tmp_path / "heads.json")
    made = publishing.folder_of(tmp_path / "heads.json", "me/tiny", tmp_path / "p")
    assert "retrieval_head" in made.left_out
    page = (tmp_path / "p" / "README.md").read_text(encoding="utf-8")
    assert f"Not written: retrieval_head, as {made.left_out['retrieval_head']}" in page
    assert yaml.safe_load(page.split("---")[1])["base_model"] == "owner/tiny"
    assert "scores.parquet" not in made.files


def test_labels_come_back(tmp_path):
    BARE.save(tmp_path / "heads.json")
    publishing.folder_of(tmp_path / "heads.json", "me/tiny", tmp_path / "p")
    result = run("label", "--from", tmp_path / "p", "--out", tmp_path / "back.json")
    assert result.exit_code == 0, result.output
    assert HeadLabels.load(tmp_path / "back.json").to_json() == BARE.to_json()


def test_the_hub_is_asked_for_the_file_and_the_revision(tmp_path, monkeypatch):
    BARE.save(tmp_path / "heads.json")
    asked = []

    def download(name, file, revision):
        asked.append((name, file, revision))
        return str(tmp_path / "heads.json")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert publishing.fetch("me/tiny", "v1").to_json() == BARE.to_json()
    assert asked == [("me/tiny", "heads.json", "v1")]


def test_the_folder_is_pushed_whole(tmp_path, monkeypatch):
    calls = []

    class Hub:
        endpoint = "https://hub"

        def create_repo(self, name, *, private, exist_ok):
            calls.append(("create", name, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, **how):
            assert "attention-head-workbench" in how["commit_message"]
            calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    BARE.save(tmp_path / "heads.json")
    result = run("publish", tmp_path / "heads.json", "--to", "me/tiny", "--out", tmp_path / "p", "--private")
    assert result.exit_code == 0, result.output
    assert "published https://hub/me/tiny" in result.stdout
    assert calls == [("create", "me/tiny", True, True), ("upload", "me/tiny", sorted(path.name for path in (tmp_path / "p").iterdir()))]


def test_a_hub_that_cannot_be_reached_is_a_sentence_and_the_folder_stays(tmp_path, monkeypatch):
    def refuse(*_args, **_more):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    BARE.save(tmp_path / "heads.json")
    with pytest.raises(InputError, match=r"me/tiny could not be published: ConnectionError: no route; the folder .*p is complete"):
        publishing.push(publishing.folder_of(tmp_path / "heads.json", "me/tiny", tmp_path / "p"), "me/tiny")
    assert (tmp_path / "p" / "README.md").is_file()
    with pytest.raises(InputError, match="the labels of me/tiny could not be fetched: ConnectionError: no route"):
        publishing.fetch("me/tiny")


def test_what_cannot_be_used_is_refused(tmp_path):
    BARE.save(tmp_path / "heads.json")
    for name in ("heads", "a/b/c", "../x/y", "a/"):
        with pytest.raises(InputError, match="no name on the hub"):
            publishing.folder_of(tmp_path / "heads.json", name, tmp_path / "p")
    with pytest.raises(InputError, match="is not empty"):
        publishing.folder_of(tmp_path / "heads.json", "a/b", tmp_path)
    with pytest.raises(InputError, match="has no revision v1"):
        publishing.fetch(str(tmp_path), "v1")
    assert "--seed has no use with --from" in run("label", "--from", tmp_path, "--seed", 3).output
    assert "--dry-run makes none" in run("publish", tmp_path / "heads.json", "--to", "a/b", "--dry-run", "--private").output
