"""The Hub that other tests push to answers the client as the real one does, above all when it refuses."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, hf_raise_for_status


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model" / "mllm").mkdir(parents=True)
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n# Hello\n")
    (tmp_path / "model" / "mllm" / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return tmp_path / "model"


def test_a_folder_there_and_back(hub, folder, tmp_path):
    api = HfApi()
    assert api.whoami()["name"] == "ada"
    assert api.create_repo("org/model").repo_id == api.create_repo("org/model", exist_ok=True).repo_id == "org/model"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("org/model")
    first = api.upload_folder(repo_id="org/model", folder_path=folder, commit_message="first").oid
    api.create_tag("org/model", tag="v1")
    api.create_branch("org/model", branch="next/try")
    api.upload_file(path_or_fileobj=b"two", path_in_repo="mllm/a b.txt", repo_id="org/model", revision="next/try")
    api.delete_file("README.md", "org/model", revision="next/try")
    assert hub.history("org/model") == ["first"]
    assert sorted(hub.files("org/model", "next/try")) == ["mllm/a b.txt", "mllm/model.safetensors"]
    assert api.list_repo_files("org/model") == [".gitattributes", "README.md", "mllm/model.safetensors"]
    entries = list(api.list_repo_tree("org/model", "mllm", recursive=True, revision="v1"))
    assert [(entry.path, entry.size, entry.lfs.size) for entry in entries] == [
        ("mllm/model.safetensors", 10240, 10240)
    ]
    assert {ref.name for ref in api.list_repo_refs("org/model").branches} == {"main", "next/try"}
    assert api.model_info("org/model", revision="v1").sha == first == api.list_repo_commits("org/model")[0].commit_id
    assert api.model_info("org/model").card_data.license == "mit"
    assert api.file_exists("org/model", "README.md") and not api.file_exists("org/model", "README.md", revision="x")
    for revision in ("main", "v1", first):
        fetched = hf_hub_download("org/model", "mllm/model.safetensors", revision=revision, cache_dir=tmp_path)
        assert Path(fetched).read_bytes() == bytes(range(256)) * 40
    before = len(hub.requests)
    hf_hub_download("org/model", "mllm/model.safetensors", revision=first, cache_dir=tmp_path)
    assert len(hub.requests) == before


def test_an_unchanged_file_makes_no_commit_and_is_not_sent_again(hub, folder):
    api = HfApi()
    api.create_repo("org/model")
    for _ in range(2):
        api.upload_folder(repo_id="org/model", folder_path=folder)
    assert len(hub.history("org/model")) == 1
    assert sum(request.startswith("PUT /large/") for request in hub.requests) == 1


def test_a_download_goes_on_where_it_stopped(hub, folder):
    hub.add("org/model", folder)
    url = f"{hub.url}/org/model/resolve/main/mllm/model.safetensors"
    answer = get_session().get(url, headers={"Range": "bytes=10000-"}, follow_redirects=True)
    assert answer.status_code == 206 and answer.content == (bytes(range(256)) * 40)[10000:]
    assert answer.headers["Content-Range"] == "bytes 10000-10239/10240"


def test_refusals(hub, folder):
    hub.add("org/public", folder)
    hub.add("org/private", folder, private=True)
    hub.add("org/gated", folder, gated=True)
    anonymous, bob, nobody = HfApi(token=False), HfApi(token="hf_bob"), HfApi(token="hf_nobody")
    assert anonymous.model_info("org/public").id == "org/public"
    assert HfApi().model_info("org/private").private
    for api in (anonymous, bob):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("org/private")
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download("org/unknown", "README.md")
        with pytest.raises(RevisionNotFoundError):
            api.hf_hub_download("org/public", "README.md", revision="unknown")
        with pytest.raises(EntryNotFoundError):
            api.hf_hub_download("org/public", "unknown")
        with pytest.raises(GatedRepoError):
            api.hf_hub_download("org/gated", "README.md")
        with pytest.raises(HfHubHTTPError, match="401" if api is anonymous else "403"):
            api.create_repo("org/new")
    with pytest.raises(HfHubHTTPError, match="403 Forbidden: You don't have the rights"):
        bob.upload_folder(repo_id="org/public", folder_path=folder)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        nobody.whoami()
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        HfApi().upload_file(path_or_fileobj=b"---\n[\n---\n", path_in_repo="README.md", repo_id="org/public")
    assert hub.history("org/public") == ["added"]
    with pytest.raises(BadRequestError):
        hf_raise_for_status(get_session().put(f"{hub.url}/large/{'0' * 64}", content=b"something else"))


def test_connections_can_be_cut_off_and_nobody_may_listen(hub, folder):
    api = HfApi()
    api.create_repo("org/model")
    with hub.cut_off("POST .*/commit/"), pytest.raises(Exception, match="disconnected"):
        api.upload_folder(repo_id="org/model", folder_path=folder)
    assert hub.history("org/model") == [] and hub.objects
    api.upload_folder(repo_id="org/model", folder_path=folder)
    assert len(hub.history("org/model")) == 1
    hub.stop()
    try:
        with pytest.raises(Exception, match="refused"):
            api.model_info("org/model")
    finally:
        hub.start()
    assert api.model_info("org/model").id == "org/model"
