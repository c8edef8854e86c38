"""A small Hub on localhost: tests push and load with the real client libraries and no network.

It answers what `huggingface_hub` asks about models: repositories, commits, LFS uploads, branches and tags, file
listings, downloads with ETag and Range, tokens, private and gated repositories, with the errors that the client tells
apart. All is kept in memory. The fixture `hub` of conftest.py starts one. It has no Xet: `HF_HUB_DISABLE_XET=1` turns
that off.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_SUFFIXES = (".safetensors", ".jpg", ".png")
LARGEST_REGULAR_FILE = 1_000_000  # bytes
CARD_HEAD = re.compile(r"\A---\n(.*?)\n---(\n|\Z)", re.DOTALL)
DATE = "2026-01-01T00:00:00.000Z"


class Refusal(Exception):
    """An answer that is an error; `code` is what the client tells apart by."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message} | headers
        if code:
            self.headers["X-Error-Code"] = code


@dataclass(frozen=True)
class Blob:
    """A file's contents, and whether they lie in the storage of large files."""

    data: bytes
    is_lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        return text.encode()

    @property
    def git_oid(self) -> str:
        data = self.pointer if self.is_lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid

    def entry(self, path: str) -> dict:
        """How listings show it."""
        entry = {"type": "file", "path": path, "size": len(self.data), "oid": self.git_oid}
        if self.is_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": len(self.pointer)}
        return entry


@dataclass(frozen=True)
class Commit:
    sha: str
    message: str
    files: Mapping[str, Blob]
    parent: str | None


@dataclass
class Repository:
    """A model's repository; like on the real Hub its first commit holds `.gitattributes` only."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", "initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs -text\n")})

    def commit(self, branch: str, message: str, files: Mapping[str, Blob]) -> Commit:
        parent = self.branches.get(branch)
        parts = [self.name, parent, message, len(self.commits), {path: blob.etag for path, blob in files.items()}]
        commit = Commit(hashlib.sha1(json.dumps(parts).encode()).hexdigest(), message, dict(files), parent)
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit

    def find(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a sha names."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def history(self, revision: str = "main") -> list[Commit]:
        """The newest first."""
        commits = [self.find(revision)]
        while (parent := commits[-1].parent) is not None:
            commits.append(self.commits[parent])
        return commits


@dataclass
class User:
    """Whom a token belongs to, and the namespaces that it may write to."""

    name: str
    namespaces: tuple[str, ...]


class HubServer:
    """
    The server with all that it holds.

    - `repositories`: by name; `files("org/name")` and `history("org/name")` look into one.
    - `users`: by token. `hf_ada` writes to `ada` and `org`, `hf_bob` to `bob` only.
    - `requests`: `"METHOD /path"` of all that came, in order.
    - `cut_off`: breaks connections.
    """

    def __init__(self):
        self._http = None
        self._reserve(0)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.storage = f"http://localhost:{self._http.server_port}"
        self.clear()

    def _reserve(self, port: int) -> None:
        """Binds the port: connections are refused until `start`."""
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _Handler, bind_and_activate=False)
        self._http.daemon_threads = True
        self._http.hub = self
        self._http.server_bind()

    def clear(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.users = {"hf_ada": User("ada", ("ada", "org")), "hf_bob": User("bob", ("bob",))}
        self.requests: list[str] = []
        self.cuts: list[list] = []
        self.lock = threading.RLock()

    def start(self) -> None:
        self._http.server_activate()
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """From here on, until `start`, nobody listens."""
        self._http.shutdown()
        self._thread.join()
        port = self._http.server_port
        self._http.server_close()
        self._reserve(port)

    def environ(self, home: str | os.PathLike, token: str | None = "hf_ada") -> dict[str, str]:
        """What a process that uses this Hub has in its environment; its cache is in `home`."""
        values = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        values |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        return values | ({"HF_TOKEN": token} if token else {})

    @contextlib.contextmanager
    def cut_off(self, request: str, after: int = 0) -> Iterator[None]:
        """Inside the block, requests whose `"METHOD /path"` the pattern is found in lose their connection half way
        through their body; the first `after` of them are spared."""
        cut = [re.compile(request), after]
        self.cuts.append(cut)
        try:
            yield
        finally:
            self.cuts.remove(cut)

    def is_cut(self, request: str) -> bool:
        with self.lock:
            for cut in self.cuts:
                if cut[0].search(request):
                    cut[1] -= 1
                    return cut[1] < 0
        return False

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Contents of all files by path, but for `.gitattributes`."""
        found = self.repositories[name].find(revision).files
        return {path: blob.data for path, blob in sorted(found.items()) if path != ".gitattributes"}

    def history(self, name: str, revision: str = "main") -> list[str]:
        """Messages of the commits, the newest first, without that which every repository begins with."""
        return [commit.message for commit in self.repositories[name].history(revision)][:-1]

    def add(self, name: str, folder: str | os.PathLike, **fields) -> Repository:
        """A new repository with the files of a folder, as if it had been pushed."""
        repository = self.repositories[name] = Repository(name, **fields)
        paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path for path in paths}
        blobs = {name: Blob(path.read_bytes(), is_large(name, path.stat().st_size)) for name, path in files.items()}
        self.objects |= {blob.sha256: blob.data for blob in blobs.values() if blob.is_lfs}
        repository.commit("main", "added", repository.find("main").files | blobs)
        return repository


def is_large(path: str, size: int) -> bool:
    """Whether a file goes to the storage of large files."""
    return path.endswith(LFS_SUFFIXES) or size > LARGEST_REGULAR_FILE


class _Handler(BaseHTTPRequestHandler):
    """One request: who asks, which route, what it answers."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args) -> None:
        pass

    def handle_any(self) -> None:
        self.hub = self.server.hub
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        request = f"{self.command} {url.path}"
        self.hub.requests.append(request)
        if self.hub.is_cut(request):
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.close_connection = True
            return
        self.body = self._read_body()
        try:
            with self.hub.lock:
                for method, pattern, route in ROUTES:
                    match = pattern.fullmatch(url.path)
                    if match and self.command in method:
                        self.user = self._user()
                        answer = route(self, *(unquote(group) for group in match.groups() if group is not None))
                        break
                else:
                    raise Refusal(404, f"no such page: {request}")
        except Refusal as refusal:
            self._answer(refusal.status, {"error": str(refusal)}, refusal.headers)
        else:
            self._answer(*answer) if isinstance(answer, tuple) else self._answer(200, answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, body: dict | list | bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        is_json = not isinstance(body, bytes)
        body = json.dumps(body).encode() if is_json else body
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if is_json else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")  # so that nothing is answered after `stop`
        for name, value in (headers or {}).items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _user(self) -> User | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def _json(self) -> dict:
        return json.loads(self.body or b"{}")

    def _may_write(self, namespace: str) -> bool:
        return self.user is not None and namespace in self.user.namespaces

    def _read(self, name: str) -> Repository:
        """The repository, if there is one that the user may see."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._may_write(name.split("/")[0])):
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return repository

    def _write(self, name: str) -> Repository:
        """The repository, if there is one that the user may change."""
        repository = self._read(name)
        self._check_rights(name.split("/")[0])
        return repository

    def _check_rights(self, namespace: str) -> None:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        if not self._may_write(namespace):
            raise Refusal(403, f"You don't have the rights to write to the namespace {namespace}")

    # Repositories

    def whoami(self):
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        organizations = [{"name": name} for name in self.user.namespaces if name != self.user.name]
        return {"type": "user", "name": self.user.name, "orgs": organizations, "auth": {"type": "access_token"}}

    def create_repository(self):
        asked = self._json()
        namespace = asked.get("organization") or (self.user.name if self.user else "")
        self._check_rights(namespace)
        name = f"{namespace}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repositories:
            return 409, answer | {"error": "You already created this model repo"}
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(name, private=bool(private))
        return answer

    def delete_repository(self):
        asked = self._json()
        name = f"{asked.get('organization') or self.user.name}/{asked['name']}"
        self._write(name)
        del self.hub.repositories[name]
        return {}

    def check_access(self, name, write=None):
        self._write(name) if write else self._read(name)
        return {}

    def model_info(self, name, revision="main"):
        repository = self._read(name)
        commit = repository.find(revision)
        card = commit.files.get("README.md")
        head = CARD_HEAD.match(card.data.decode()) if card else None
        metadata = (yaml.safe_load(head[1]) if head else None) or {}
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        return {
            "id": name,
            "modelId": name,
            "sha": commit.sha,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "lastModified": DATE,
            "createdAt": DATE,
            "siblings": siblings,
            "cardData": metadata,
            "tags": metadata.get("tags") or [],
            "pipeline_tag": metadata.get("pipeline_tag"),
            "library_name": metadata.get("library_name"),
        }

    def references(self, name):
        repository = self._read(name)

        def listed(kind: str, found: dict) -> list:
            return [{"name": key, "ref": f"refs/{kind}/{key}", "targetCommit": sha} for key, sha in found.items()]

        branches, tags = listed("heads", repository.branches), listed("tags", repository.tags)
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}

    def commits(self, name, revision):
        return [
            {"id": commit.sha, "title": commit.message, "message": "", "authors": [], "date": DATE}
            for commit in self._read(name).history(revision)
        ]

    def create_branch(self, name, branch):
        repository = self._write(name)
        if branch in repository.branches:
            raise Refusal(409, f"Reference refs/heads/{branch} already exists")
        repository.branches[branch] = repository.find(self._json().get("startingPoint") or "main").sha
        return {}

    def delete_branch(self, name, branch):
        if branch == "main" or self._write(name).branches.pop(branch, None) is None:
            raise Refusal(403 if branch == "main" else 404, f"Branch {branch} can't be deleted", "RevisionNotFound")
        return {}

    def create_tag(self, name, revision):
        repository, tag = self._write(name), self._json()["tag"]
        if tag in repository.tags:
            raise Refusal(409, f"Reference refs/tags/{tag} already exists")
        repository.tags[tag] = repository.find(revision).sha
        return {}

    # Files

    def tree(self, name, revision, folder=""):
        files = self._read(name).find(revision).files
        prefix = f"{folder}/" if folder else ""
        found = {path: blob for path, blob in sorted(files.items()) if path.startswith(prefix)}
        if not found and folder:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        entries = {}
        for path, blob in found.items():
            *folders, _ = path.removeprefix(prefix).split("/")
            for depth in range(1, len(folders) + 1):
                inner = prefix + "/".join(folders[:depth])
                entries[inner] = {"type": "directory", "path": inner, "size": 0, "oid": "0" * 40}
            entries[path] = blob.entry(path)
        is_recursive = self.query.get("recursive", "").lower() == "true"
        return [entry for path, entry in entries.items() if is_recursive or "/" not in path.removeprefix(prefix)]

    def paths_info(self, name, revision):
        files = self._read(name).find(revision).files
        asked = parse_qs(self.body.decode())["paths"]
        return [files[path].entry(path) for path in asked if path in files]

    def resolve(self, name, revision, path):
        repository = self._read(name)
        commit = repository.find(revision)
        headers = {"X-Repo-Commit": commit.sha}
        if repository.gated and not self._may_write(name.split("/")[0]):
            raise Refusal(403 if self.user else 401, f"Access to model {name} is restricted", "GatedRepo", **headers)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", **headers)
        blob = commit.files[path]
        headers["ETag"] = f'"{blob.etag}"'
        if blob.is_lfs:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(blob.data))}
            # Under another host name: the client follows redirects within one, and sends no token to another.
            return 302, b"", headers | {"Location": f"{self.hub.storage}/large/{blob.sha256}"}
        return self._ranged(blob.data, headers)

    def _ranged(self, data: bytes, headers: dict):
        headers["Accept-Ranges"] = "bytes"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return 200, data, headers
        start, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return 206, data[start : end + 1], headers

    # Uploads

    def validate_yaml(self):
        head = CARD_HEAD.match(self._json()["content"].replace("\r\n", "\n"))
        if head is None:
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        try:
            values = yaml.safe_load(head[1])
        except yaml.YAMLError as error:
            return 400, {"error": "invalid", "errors": [{"message": str(error)}], "warnings": []}
        wrong = [] if isinstance(values, dict) else [{"message": "the metadata must be a mapping"}]
        return 400 if wrong else 200, {"errors": wrong, "warnings": []}

    def preupload(self, name, revision):
        files = self._write(name).find(revision).files
        answers = []
        for asked in self._json()["files"]:
            path = asked["path"]
            mode = "lfs" if is_large(path, asked["size"]) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
            if path in files:
                answers[-1]["oid"] = files[path].etag
        return {"files": answers}

    def lfs_batch(self, name):
        self._write(name)
        objects = []
        for asked in self._json()["objects"]:
            objects.append(dict(asked))
            if asked["oid"] not in self.hub.objects:
                objects[-1]["actions"] = {"upload": {"href": f"{self.hub.storage}/large/{asked['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def upload_large(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The contents do not have the sha256 that was announced")
        self.hub.objects[oid] = self.body
        return {}

    def download_large(self, oid):
        return self._ranged(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def commit(self, name, revision):
        repository = self._write(name)
        if revision not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        header, *changes = [json.loads(line) for line in self.body.splitlines()]
        files = dict(repository.find(revision).files)
        if header["value"].get("parentCommit") not in (None, repository.branches[revision]):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        for change in changes:
            kind, value = change["key"], change["value"]
            path = value["path"]
            if kind == "file":
                files[path] = Blob(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refusal(400, f"{path}: its contents were not uploaded")
                files[path] = Blob(self.hub.objects[value["oid"]], is_lfs=True)
            elif kind == "deletedFile":
                if files.pop(path, None) is None:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                files = {other: blob for other, blob in files.items() if not other.startswith(path.rstrip("/") + "/")}
        made = repository.commit(revision, header["value"]["summary"], files)
        url = f"{self.hub.url}/{name}/commit/{made.sha}"
        return {"success": True, "commitOid": made.sha, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None}


MODEL = r"/api/models/([^/]+/[^/]+)"
ROUTES = [
    (methods.split(), re.compile(pattern), route)
    for methods, pattern, route in [
        ("GET", r"/api/whoami-v2", _Handler.whoami),
        ("POST", r"/api/repos/create", _Handler.create_repository),
        ("DELETE", r"/api/repos/delete", _Handler.delete_repository),
        ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
        ("GET", rf"{MODEL}/auth-check(/write)?", _Handler.check_access),
        ("GET", MODEL, _Handler.model_info),
        ("GET", rf"{MODEL}/revision/([^/]+)", _Handler.model_info),
        ("GET", rf"{MODEL}/refs", _Handler.references),
        ("GET", rf"{MODEL}/commits/([^/]+)", _Handler.commits),
        ("POST", rf"{MODEL}/branch/([^/]+)", _Handler.create_branch),
        ("DELETE", rf"{MODEL}/branch/([^/]+)", _Handler.delete_branch),
        ("POST", rf"{MODEL}/tag/([^/]+)", _Handler.create_tag),
        ("GET", rf"{MODEL}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
        ("POST", rf"{MODEL}/paths-info/([^/]+)", _Handler.paths_info),
        ("POST", rf"{MODEL}/preupload/([^/]+)", _Handler.preupload),
        ("POST", rf"{MODEL}/commit/([^/]+)", _Handler.commit),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.lfs_batch),
        ("PUT", r"/large/([0-9a-f]{64})", _Handler.upload_large),
        ("GET HEAD", r"/large/([0-9a-f]{64})", _Handler.download_large),
        ("GET HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _Handler.resolve),
    ]
]

# One per process. Its address must be known before the client libraries are imported, which read it only then.
HUB = HubServer()
HOME = tempfile.TemporaryDirectory(prefix="hf_home_")
