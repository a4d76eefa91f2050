"""A Hugging Face Hub on 127.0.0.1, for tests that talk HTTP through the real clients.

    with HubServer(folder) as hub:
        hub.add_user("anna")
        hub.add_token("hf_anna", "anna")
        HfApi(endpoint=hub.url, token="hf_anna").upload_folder(...)
        subprocess.run(command, env=hub.environment(home, "hf_anna"))

Served, for models, datasets and Spaces (their repositories, not their pages): creating, deleting, settings and info of
a repository; its metadata check; preupload, Git LFS upload and commits; branches, tags, refs and history; trees by
page, paths-info; downloads with ranges, LFS files by redirect to signed addresses on another host name, as the Hub's
content network does; whoami and auth-check; users, organisations, read, write and fine-grained tokens, private and
gated repositories.

Not served: Xet, multipart LFS uploads, pull requests and discussions, buckets, search, moving repositories,
the dataset viewer and its parquet export, `git` itself, rate limits (stage them with `fail`), expiry of signatures.
Bodies are held in memory. An address that is not served answers 404.

A change is on disk before it is acknowledged and is made whole or not at all, so a server started again on the same
folder and port goes on where the last one stood. Only one server may use a folder at a time.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

LFS_SIZE = 10 * 2**20  # bytes; larger files are LFS whatever their name
SAMPLE_SIZE = 512  # bytes of a file that a client sends before it uploads it
LFS_SUFFIXES = {
    ".arrow",
    ".bin",
    ".jpg",
    ".npz",
    ".onnx",
    ".parquet",
    ".png",
    ".pt",
    ".pth",
    ".safetensors",
    ".wasm",
    ".zip",
}
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES))
# What may follow a repository's name in an address, which tells `name/tree` from `namespace/name`.
VERBS = [
    "auth-check",
    "branch",
    "commit",
    "commits",
    "paths-info",
    "preupload",
    "refs",
    "resolve",
    "revision",
    "settings",
    "tag",
    "tree",
]
# Top-level keys of a card that the metadata check knows; True where a list may stand for the string.
CARD_KEYS = {
    **dict.fromkeys(["base_model", "datasets", "language", "license", "metrics", "tags"], True),
    **dict.fromkeys(
        ["library_name", "license_link", "license_name", "pipeline_tag", "pretty_name", "thumbnail"], False
    ),
    **dict.fromkeys(["size_categories", "source_datasets", "task_categories", "task_ids"], True),
}
PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}  # of addresses
SPACE_KEYS = {"title", "emoji", "colorFrom", "colorTo", "pinned", "short_description", "sdk", "app_file", "models"}
SDKS = ("gradio", "docker", "static")
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
# What the Hub puts into a new Space of static files.
STATIC_TEMPLATE = {
    "README.md": "---\ntitle: New\nemoji: 👀\ncolorFrom: red\ncolorTo: pink\nsdk: static\n---\n".encode(),
    "index.html": b"<h1>Welcome to your static Space!</h1>",
    "style.css": b"body { padding: 2rem }",
}
OTHER_CARD_KEYS = {"model-index", "configs", "dataset_info", "inference", "widget", "co2_eq_emissions", "viewer"}


@dataclass(frozen=True)
class File:
    oid: str  # sha256 of the content, its name in the store and in LFS
    blob: str  # git's id: of the content, or of the pointer that git keeps in place of an LFS file
    size: int
    lfs: bool


class Files(Mapping[str, bytes]):
    """Path to content, read from the store on access."""

    def __init__(self, objects: Path, tree: dict[str, File]):
        self._objects, self._tree = objects, tree

    def __getitem__(self, path: str) -> bytes:
        return (self._objects / self._tree[path].oid).read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)


@dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    message: str
    author: str
    parent: str | None
    date: str
    files: Files


@dataclass
class Repository:
    id: str
    type: str
    private: bool
    gated: bool | str
    created: str
    commits: dict[str, dict[str, Any]] = field(default_factory=dict)  # by sha: a Commit's fields, `tree` for `files`
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    guests: list[str] = field(default_factory=list)  # users whom a gated repository has let in

    @property
    def namespace(self) -> str:
        return self.id.rpartition("/")[0]

    def sha(self, revision: str) -> str | None:
        """The commit that a branch, a tag, a sha or its first letters names."""
        for refs in (self.branches, self.tags):
            if (name := revision.removeprefix("refs/heads/").removeprefix("refs/tags/")) in refs:
                return refs[name]
        found = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return found[0] if len(found) == 1 else None

    def tree(self, sha: str) -> dict[str, File]:
        return {path: File(**file) for path, file in self.commits[sha]["tree"].items()}

    def history(self, sha: str | None) -> Iterator[dict[str, Any]]:
        while sha is not None:
            yield (commit := self.commits[sha])
            sha = commit["parent"]


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match, once `after` of them have passed unharmed."""

    method: str
    pattern: str
    times: int | None
    status: int | None
    headers: dict[str, str]
    delay: float
    drop: str | None
    after: int
    hits: int = 0

    def strikes(self, method: str, target: str) -> bool:
        if not re.fullmatch(self.method, method) or not re.search(self.pattern, target):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True


class RefusedError(Exception):
    """An answer that is an error, as the Hub words it."""

    def __init__(self, status: int, message: str, code: str | None = None, **extra: Any):
        self.status, self.body = status, {"error": message, **extra}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


class DroppedError(Exception):
    """The connection is to be cut without a (whole) answer."""


@dataclass
class Answer:
    body: Any = b""  # bytes, or what JSON can hold
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class HubServer:
    """See the module. `requests` lists (method, target as sent, status or None if dropped) in order of answering."""

    def __init__(self, folder: Path, port: int = 0):
        self.folder, self.port = Path(folder), port
        self.tree_page, self.commits_page = 1000, 1000  # entries; tests may make them small
        self.requests: list[tuple[str, str, int | None]] = []
        self.lock = threading.RLock()
        self._faults: list[Fault] = []
        self._server: _Server | None = None
        self._load()

    # ---- life

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._server is not None

    def start(self) -> None:
        if self._server is not None:
            raise RuntimeError("the server is already running")
        self._load()
        self._server = _Server(self, self.port)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """As if the process were killed: nothing answers any more, and a request under way changes nothing."""
        with self.lock:  # a change either is complete by now or finds, having got the lock, that its server is gone
            server, self._server = self._server, None
        if server is not None:
            server.stopping.set()
            server.shutdown()
            server.server_close()
            server.cut_connections()

    def __enter__(self) -> "HubServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def environment(self, home: Path, token: str | None) -> dict[str, str]:
        """The variables of a client's process: this one's, of which no Hugging Face setting remains."""
        inherited = {
            name: value for name, value in os.environ.items() if not re.match("HF_|HUGGING|TRANSFORMERS_", name)
        }
        return {
            **inherited,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            **({} if token is None else {"HF_TOKEN": token}),
            "HF_HUB_DISABLE_XET": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    # ---- faults

    def fail(
        self,
        method: str,
        pattern: str,
        *,
        times: int | None = 1,
        status: int | None = None,
        headers: Mapping[str, str] = {},
        delay: float = 0,
        drop: Literal["before", "body", "after"] | None = None,
        after: int = 0,
    ) -> Fault:
        """Spoil requests whose method is (fully) and target contains what the two regular expressions say.

        After `delay` seconds: answer `status`, or cut the connection `before` the body is read, in mid-`body` (of the
        request, or of the answer where the request has none), or `after` the request has been carried out.
        With neither, the answer is only late. `times=None` lasts until cleared.
        """
        fault = Fault(method, pattern, times, status, dict(headers), delay, drop, after)
        with self.lock:
            self._faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        with self.lock:
            self._faults.clear()

    def _note(self, method: str, target: str, status: int | None, instead_of: int | None = None) -> int:
        """Notes a request, or that one which was noted could not be answered. Its place in `requests`."""
        with self.lock:
            place = len(self.requests) if instead_of is None else instead_of
            self.requests[place : place + 1] = [(method, target, status)]
            return place

    def _next_fault(self, method: str, target: str) -> Fault | None:
        with self.lock:
            return next((fault for fault in self._faults if fault.strikes(method, target)), None)

    # ---- what is on the Hub

    def add_user(self, name: str, orgs: Iterable[str] | Mapping[str, str] = ()) -> None:
        """`orgs` are names, of which the user may write to, or names to roles: admin, write, contributor or read."""
        with self.lock:
            self._users[name] = dict(orgs) if isinstance(orgs, Mapping) else dict.fromkeys(orgs, "write")
            self._save()

    def add_token(
        self, token: str, user: str, role: str = "write", scopes: Iterable[tuple[str, list[str]]] = ()
    ) -> None:
        """Scopes of a fineGrained token: (user, organisation or repository id, permissions such as "repo.write")."""
        if user not in self._users or role not in ("read", "write", "fineGrained"):
            raise ValueError(f"no user {user!r} or no role {role!r}")
        with self.lock:
            self._tokens[token] = {"user": user, "role": role, "scopes": [list(scope) for scope in scopes]}
            self._save()

    def revoke(self, token: str) -> None:
        with self.lock:
            del self._tokens[token]
            self._save()

    def add_repository(
        self,
        repo_id: str,
        files: Mapping[str, bytes] = {},
        *,
        type: str = "model",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """A repository with the Hub's own first commit and, if there are files, one more. The newest's sha."""
        with self.lock:
            if (type, repo_id) in self._repositories:
                raise ValueError(f"{type} {repo_id!r} exists")
            repo = Repository(repo_id, type, private, "auto" if gated else False, _now())
            first = {".gitattributes": GIT_ATTRIBUTES.encode(), **(STATIC_TEMPLATE if type == "space" else {})}
            tree = {path: self._store(path, content) for path, content in first.items()}
            repo.branches["main"] = _record(repo, tree, None, "initial commit", "", repo.namespace)
            if files:
                tree |= {path: self._store(path, content) for path, content in files.items()}
                repo.branches["main"] = _record(repo, tree, repo.branches["main"], "Upload files", "", repo.namespace)
            self._repositories[type, repo_id] = repo
            self._save()
            return repo.branches["main"]

    def remove_repository(self, repo_id: str, type: str = "model") -> None:
        """Also the objects that no other repository has, so that they must be uploaded again."""
        with self.lock:
            if self._repositories.pop((type, repo_id), None) is None:
                return
            self._save()
            kept = {
                file.oid
                for repo in self._repositories.values()
                for sha in repo.commits
                for file in repo.tree(sha).values()
            }
            for path in (self.folder / "objects").rglob("*"):
                if path.is_file() and path.name not in kept:
                    path.unlink()

    def grant(self, repo_id: str, user: str, type: str = "model") -> None:
        """Let a user into a gated repository."""
        with self.lock:
            self._repositories[type, repo_id].guests.append(user)
            self._save()

    def commits(self, repo_id: str, type: str = "model", revision: str = "main") -> list[Commit]:
        """Newest first."""
        with self.lock:
            repo = self._repositories[type, repo_id]
            if (sha := repo.sha(revision)) is None:
                raise KeyError(revision)
            return [
                Commit(
                    **{name: value for name, value in commit.items() if name != "tree"},
                    files=Files(self.folder / "objects", repo.tree(commit["sha"])),
                )
                for commit in repo.history(sha)
            ]

    def files(self, repo_id: str, revision: str = "main", type: str = "model") -> dict[str, bytes]:
        return dict(self.commits(repo_id, type, revision)[0].files)

    def commit(self, repo_id: str, files: Mapping[str, bytes], message: str = "...", type: str = "model") -> str:
        """A commit on main that somebody else makes."""
        with self.lock:
            repo = self._repositories[type, repo_id]
            head = repo.branches["main"]
            tree = repo.tree(head) | {path: self._store(path, content) for path, content in files.items()}
            repo.branches["main"] = _record(repo, tree, head, message, "", "somebody-else")
            self._save()
            return repo.branches["main"]

    # ---- storage

    def _load(self) -> None:
        (self.folder / "objects").mkdir(parents=True, exist_ok=True)
        path = self.folder / "state.json"
        state = json.loads(path.read_bytes()) if path.exists() else {}
        self._secret: str = state.get("secret") or secrets.token_hex(16)
        self._users: dict[str, dict[str, str]] = state.get("users", {})
        self._tokens: dict[str, dict[str, Any]] = state.get("tokens", {})
        self._repositories = {(repo["type"], repo["id"]): Repository(**repo) for repo in state.get("repositories", [])}
        if not path.exists():
            self._save()

    def _save(self) -> None:
        repositories = [asdict(repo) for repo in self._repositories.values()]
        state = {"secret": self._secret, "users": self._users, "tokens": self._tokens, "repositories": repositories}
        _write(self.folder / "state.json", json.dumps(state).encode())

    def _store(self, path: str, content: bytes, lfs: bool | None = None) -> File:
        oid = hashlib.sha256(content).hexdigest()
        if not (stored := self.folder / "objects" / oid).exists():
            _write(stored, content)
        lfs = _is_lfs(path, len(content), content) if lfs is None else lfs
        return File(oid, _git_id(_pointer(oid, len(content)) if lfs else content), len(content), lfs)

    def _sign(self, *parts: str) -> str:
        return hmac.new(self._secret.encode(), "\n".join(parts).encode(), "sha256").hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _git_id(content: bytes, kind: str = "blob") -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def _pointer(oid: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()


def _is_lfs(path: str, size: int, start: bytes) -> bool:
    """By its name, its size, or its first bytes, which are no text's."""
    is_binary = b"\0" in start[:SAMPLE_SIZE]
    return size > 0 and (size > LFS_SIZE or PurePosixPath(path).suffix in LFS_SUFFIXES or is_binary)


def _record(repo: Repository, tree: dict[str, File], parent: str | None, title: str, message: str, author: str) -> str:
    commit = {"title": title, "message": message, "author": author, "parent": parent, "date": _now()}
    commit["tree"] = {path: asdict(tree[path]) for path in sorted(tree)}
    # The salt keeps two equal commits made in one millisecond apart.
    sha = _git_id(json.dumps([repo.type, repo.id, commit, secrets.token_hex(8)]).encode(), "commit")
    repo.commits[sha] = {"sha": sha, **commit}
    return sha


def _card(content: bytes | str) -> Any:
    """The YAML block that opens a card, parsed; None without one."""
    import yaml  # the Hub's clients need it too, the server only for cards

    text = content.decode(errors="replace") if isinstance(content, bytes) else content
    block = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    return yaml.safe_load(block[1]) if block else None


def check_card(content: str, type: str = "model") -> tuple[list[str], list[str]]:
    """Errors and warnings about a card's metadata."""
    try:
        card = _card(content)
    except Exception as error:  # yaml's own classes, without importing it here
        return [f"YAML metadata is not valid: {error}"], []
    if card is None and type == "space":
        return ["Missing configuration in README: https://huggingface.co/docs/hub/spaces-config-reference"], []
    if card is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(card, dict):
        return ["YAML metadata must be an object"], []
    errors = _check_space(card) if type == "space" else []
    for key, may_be_list in CARD_KEYS.items():
        values = card.get(key, "")
        values = values if isinstance(values, list) and may_be_list else [values]
        if not all(isinstance(value, str) for value in values):
            errors.append(f'"{key}" must be a string' + " or a list of strings" * may_be_list)
    if "model-index" in card:
        errors += _check_model_index(card["model-index"])
    known = CARD_KEYS.keys() | OTHER_CARD_KEYS | (SPACE_KEYS if type == "space" else set())
    return errors, [f'"{key}" is not known' for key in card if key not in known]


def _check_space(card: dict[str, Any]) -> list[str]:
    """What serves a Space: https://huggingface.co/docs/hub/spaces-config-reference."""
    errors = [f'"{key}" must be one of {COLOURS}' for key in ("colorFrom", "colorTo") if card.get(key) not in COLOURS]
    if card.get("sdk") not in SDKS:
        errors.append(f'"sdk" must be one of {SDKS}')
    if len(str(card.get("short_description", ""))) > 60:
        errors.append('"short_description" length must be less than or equal to 60 characters long')
    if not isinstance(card.get("models", []), list) or not isinstance(card.get("pinned", False), bool):
        errors.append('"models" must be a list, and "pinned" a boolean')
    if re.search(r"\w", str(card.get("emoji", ""))):
        errors.append('"emoji" must be an emoji')
    return errors


def _check_model_index(index: Any) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []

    def require(where: str, value: Any, /, **types: type | tuple[type, ...]) -> bool:
        wrong = [n for n, kind in types.items() if not isinstance(value, dict) or not isinstance(value.get(n), kind)]
        errors.extend(f'"{where}.{name}" is required, or of a wrong type' for name in wrong)
        return not wrong

    for i, model in enumerate(index):
        if not require(f"model-index[{i}]", model, name=str, results=list):
            continue
        for j, result in enumerate(model["results"]):
            where = f"model-index[{i}].results[{j}]"
            if not require(where, result, task=dict, dataset=dict, metrics=list):
                continue
            require(f"{where}.task", result["task"], type=str)
            require(f"{where}.dataset", result["dataset"], type=str, name=str)
            for k, metric in enumerate(result["metrics"]):
                require(f"{where}.metrics[{k}]", metric, type=str, value=(int, float, str, list, dict))
    return errors


class _Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 64

    def __init__(self, hub: HubServer, port: int):
        self.hub, self.stopping, self._open = hub, threading.Event(), set[socket.socket]()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        """Kept-alive ones would answer on although nobody listens."""
        for connection in list(self._open):
            _cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # already closed by the other side
        connection.close()


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.1: reads a request, lets the faults strike, and sends what `_Endpoints` answer."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        hub, noted = self.server.hub, None
        try:
            fault = hub._next_fault(self.command, self.path)
            if fault and self.server.stopping.wait(fault.delay):
                raise DroppedError
            drop = fault.drop if fault else None
            if drop == "before":
                raise DroppedError
            has_body = "Transfer-Encoding" in self.headers or int(self.headers.get("Content-Length", 0)) > 0
            body = self._read_body(half=drop == "body" and has_body)
            if fault and fault.status is not None:
                answer = Answer({"error": "staged failure"}, fault.status, fault.headers)
            else:
                answer = self._carry_out(body)
            if drop == "after":
                raise DroppedError
            noted = hub._note(self.command, self.path, answer.status)  # before the client can know of it
            self._send(answer, half=drop == "body")
        except (DroppedError, OSError):
            self.close_connection = True
            hub._note(self.command, self.path, None, instead_of=noted)
            _cut(self.connection)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the names http.server calls

    def _carry_out(self, body: bytes) -> Answer:
        hub = self.server.hub
        with hub.lock:
            if hub._server is not self.server:  # stopped in the meantime
                raise DroppedError
            try:
                return _Endpoints(hub, self.command, self.path, self.headers, body).answer()
            except RefusedError as refused:
                return Answer(refused.body, refused.status, refused.headers)
            except Exception as error:  # a bug here must not look like a dropped connection
                return Answer({"error": f"the test server failed: {error!r}"}, 500)

    def _read_body(self, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                if half:
                    raise DroppedError
            self.rfile.readline()
            return body
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size // 2 if half else size)
        if half or len(body) < size:
            raise DroppedError
        return body

    def _send(self, answer: Answer, half: bool) -> None:
        is_bytes = isinstance(answer.body, bytes)
        body = answer.body if is_bytes else json.dumps(answer.body).encode()
        headers = {"Content-Type": "application/octet-stream" if is_bytes else "application/json", **answer.headers}
        headers = {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **headers}
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, str(value).replace("\n", " "))
        self._headers_buffer.append(b"\r\n")  # one write for head and body
        head, self._headers_buffer = b"".join(self._headers_buffer), []
        if half:
            self.wfile.write(head + body[: len(body) // 2])
            raise DroppedError
        self.wfile.write(head if self.command == "HEAD" else head + body)


class _Endpoints:
    """One request, read and routed; its methods are the endpoints."""

    def __init__(self, hub: HubServer, method: str, target: str, headers: Any, body: bytes):
        url = urlsplit(target)
        self.hub, self.method, self.headers, self.body = hub, method, headers, body
        self.segments = [unquote(segment) for segment in url.path.split("/") if segment]
        self.query = parse_qs(url.query)
        self.token: dict[str, Any] | None = None

    def answer(self) -> Answer:
        if self.segments[:1] == ["lfs"] and len(self.segments) == 3:
            return self._signed(*self.segments[1:])
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if sent and (token := self.hub._tokens.get(sent)) is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        self.token = token if sent else None
        route = (self.method, "/".join(self.segments))
        fixed: dict[tuple[str, str], Callable[[], Answer]] = {
            ("GET", "api/whoami-v2"): self._whoami,
            ("POST", "api/validate-yaml"): self._validate_yaml,
            ("POST", "api/repos/create"): self._create,
            ("DELETE", "api/repos/delete"): self._delete,
        }
        if route in fixed:
            return fixed[route]()
        if self.segments[:1] == ["api"]:
            if len(self.segments) < 3 or self.segments[1] not in ("models", "datasets", "spaces"):
                raise RefusedError(404, "Sorry, we can't find the page you are looking for.")
            return self._repository_api(self.segments[1][:-1], self.segments[2:])
        type = {"datasets": "dataset", "spaces": "space"}.get("".join(self.segments[:1]), "model")
        segments = self.segments[type != "model" :]
        if self.method == "POST" and segments[-4:] == ["info", "lfs", "objects", "batch"]:
            return self._lfs_batch(type, "/".join(segments[:-4]).removesuffix(".git"))
        if "resolve" in segments[1:3] and self.method in ("GET", "HEAD"):
            verb = segments.index("resolve", 1)
            if len(segments) > verb + 2:
                return self._resolve(
                    type, "/".join(segments[:verb]), segments[verb + 1], "/".join(segments[verb + 2 :])
                )
        raise RefusedError(404, "Sorry, we can't find the page you are looking for.")

    # ---- who may do what

    @property
    def user(self) -> str | None:
        return self.token and self.token["user"]

    def _may(self, permission: Literal["read", "write"], repo_id: str) -> bool:
        """Whether the token owns what it reads or writes there: its user's, or that of one of the user's orgs."""
        if self.token is None:
            return False
        namespace = repo_id.rpartition("/")[0]
        role = "admin" if namespace == self.user else self.hub._users[self.user].get(namespace)
        if role is None or (permission == "write" and (role == "read" or self.token["role"] == "read")):
            return False
        if self.token["role"] != "fineGrained":
            return True
        enough = {"repo.write"} if permission == "write" else {"repo.write", "repo.content.read"}
        return any(name in (namespace, repo_id) and enough & set(given) for name, given in self.token["scopes"])

    def _repo(self, type: str, repo_id: str, *, write: bool = False, content: bool = False) -> Repository:
        repo = self.hub._repositories.get((type, repo_id))
        if repo is None or (repo.private and not self._may("read", repo_id)):
            raise RefusedError(401 if self.token is None else 404, "Repository not found", "RepoNotFound")
        if write and not self._may("write", repo_id):
            raise RefusedError(401 if self.token is None else 403, f"You have no write access to {repo_id}")
        if content and repo.gated and not self._may("read", repo_id) and self.user not in repo.guests:
            message = f"Access to {type} {repo_id} is restricted."
            raise RefusedError(401 if self.token is None else 403, message, "GatedRepo")
        return repo

    def _sha(self, repo: Repository, revision: str) -> str:
        if (sha := repo.sha(revision)) is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # ---- not of one repository

    def _json(self) -> Any:
        return json.loads(self.body or b"{}")

    def _whoami(self) -> Answer:
        if self.token is None:
            raise RefusedError(401, "Invalid username or password.")
        roles = self.hub._users[self.user]
        access = {"displayName": f"{self.user}'s {self.token['role']} token", "role": self.token["role"]}
        if self.token["role"] == "fineGrained":
            scoped = [{"entity": _entity(n, self.user), "permissions": given} for n, given in self.token["scopes"]]
            access["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
        common = {"email": None, "canPay": False, "avatarUrl": "", "periodEnd": None}
        orgs = [
            {
                "type": "org",
                "id": _git_id(name.encode())[:24],
                "name": name,
                "fullname": name,
                "roleInOrg": role,
                **common,
            }
            for name, role in roles.items()
        ]
        me = {
            "type": "user",
            "id": _git_id(self.user.encode())[:24],
            "name": self.user,
            "fullname": self.user,
            **common,
        }
        return Answer({**me, "isPro": False, "orgs": orgs, "auth": {"type": "access_token", "accessToken": access}})

    def _validate_yaml(self) -> Answer:
        request = self._json()
        errors, warnings = check_card(request["content"], request.get("repoType", "model"))
        body = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
        return Answer(body, 400 if errors else 200)

    def _named(self) -> tuple[str, str, dict[str, Any]]:
        request = self._json()
        if self.token is None:
            raise RefusedError(401, "Invalid username or password.")
        if request.get("type", "model") not in ("model", "dataset", "space"):
            raise RefusedError(400, "only models, datasets and Spaces are served")
        return request.get("type", "model"), f"{request.get('organization') or self.user}/{request['name']}", request

    def _create(self) -> Answer:
        type, repo_id, request = self._named()
        if not self._may("write", repo_id):
            namespace = repo_id.split("/")[0]
            raise RefusedError(403, f'You don\'t have the rights to create a {type} under the namespace "{namespace}"')
        if type == "space" and request.get("sdk") not in SDKS:
            raise RefusedError(400, f'"sdk" must be one of {", ".join(SDKS)}')
        url = f"{self.hub.url}/{PREFIXES[type]}{repo_id}"
        if (type, repo_id) in self.hub._repositories:
            raise RefusedError(409, f"You already created this {type} repo", url=url)
        private = request.get("visibility") == "private" or request.get("private") is True
        self.hub.add_repository(repo_id, type=type, private=private)
        return Answer({"url": url, "name": repo_id, "id": repo_id})

    def _delete(self) -> Answer:
        type, repo_id, _ = self._named()
        self._repo(type, repo_id, write=True)
        del self.hub._repositories[type, repo_id]
        return self._changed("OK")

    def _changed(self, body: Any, status: int = 200) -> Answer:
        """Acknowledge what is on disk."""
        self.hub._save()
        return Answer(body, status)

    # ---- of one repository

    def _repository_api(self, type: str, segments: list[str]) -> Answer:
        name_length = 1 if len(segments) == 1 or segments[1] in VERBS else 2
        repo_id, verb = "/".join(segments[:name_length]), "".join(segments[name_length : name_length + 1])
        rest = segments[name_length + 1 :]
        revision, path = (rest[0] if rest else "main"), "/".join(rest[1:])
        endpoints: dict[tuple[str, str], tuple[bool, Callable[[Repository, str, str], Answer]]] = {
            ("GET", ""): (False, self._info),
            ("GET", "revision"): (False, self._info),
            ("GET", "auth-check"): (rest == ["write"], lambda *_: Answer({})),
            ("GET", "tree"): (False, self._tree),
            ("GET", "commits"): (False, self._commits),
            ("GET", "refs"): (False, self._refs),
            ("POST", "paths-info"): (False, self._paths_info),
            ("POST", "preupload"): (True, self._preupload),
            ("POST", "commit"): (True, self._commit),
            ("POST", "branch"): (True, self._add_branch),
            ("DELETE", "branch"): (True, self._delete_branch),
            ("POST", "tag"): (True, self._add_tag),
            ("DELETE", "tag"): (True, self._delete_tag),
            ("PUT", "settings"): (True, self._settings),
        }
        repo = self._repo(type, repo_id)  # that it is missing comes before that the endpoint is
        if (self.method, verb) not in endpoints:
            raise RefusedError(404, "Sorry, we can't find the page you are looking for.")
        write, endpoint = endpoints[self.method, verb]
        self._repo(type, repo_id, write=write, content=verb == "auth-check")
        return endpoint(repo, revision, path)

    def _info(self, repo: Repository, revision: str, path: str) -> Answer:
        sha = self._sha(repo, revision)
        tree = repo.tree(sha)
        siblings: list[dict[str, Any]] = [{"rfilename": name} for name in tree]
        if self.query.get("blobs", [""])[0].lower() == "true":
            for sibling, file in zip(siblings, tree.values(), strict=True):
                sibling.update(size=file.size, blobId=file.blob)
                if file.lfs:
                    pointer_size = len(_pointer(file.oid, file.size))
                    sibling["lfs"] = {"sha256": file.oid, "size": file.size, "pointerSize": pointer_size}
        card: Any = None
        if "README.md" in tree:
            content = Files(self.hub.folder / "objects", tree)["README.md"].decode(errors="replace")
            card = None if check_card(content, repo.type)[0] else _card(content)
        tags = (card or {}).get("tags") or []
        info = {
            "id": repo.id,
            "author": repo.namespace,
            "sha": sha,
            "private": repo.private,
            "gated": repo.gated,
            "disabled": False,
            "tags": [tags] if isinstance(tags, str) else tags,
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
            "createdAt": repo.created,
            "lastModified": repo.commits[repo.branches["main"]]["date"],
            "cardData": card,
        }
        if wanted := self.query.get("expand"):
            info = {name: value for name, value in info.items() if name in {"id", *wanted}}
        return Answer(info)

    def _page(self, items: list[Any], size: int) -> Answer:
        """The page that `cursor` names, and by Link where the next one is."""
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {"X-Total-Count": str(len(items))}
        if start + size < len(items):
            path = "/".join(quote(segment, safe="") for segment in self.segments)
            query = urlencode({**self.query, "cursor": [start + size]}, doseq=True)
            headers["Link"] = f'<{self.hub.url}/{path}?{query}>; rel="next"'
        return Answer(items[start : start + size], headers=headers)

    def _entry(self, repo: Repository, sha: str, path: str) -> dict[str, Any] | None:
        """What a listing says of a file or, where files lie under the path, a folder."""
        tree = repo.tree(sha)
        file = tree.get(path)
        inside = {name: known.blob for name, known in tree.items() if name.startswith(path + "/")}
        if file is not None:
            entry: dict[str, Any] = {"type": "file", "oid": file.blob, "size": file.size, "path": path}
            if file.lfs:
                pointer_size = len(_pointer(file.oid, file.size))
                entry["lfs"] = {"oid": file.oid, "size": file.size, "pointerSize": pointer_size}
        elif inside:
            entry = {"type": "directory", "oid": _git_id(json.dumps(inside).encode(), "tree"), "size": 0, "path": path}
        else:
            return None
        return entry

    def _expanded(self, repo: Repository, sha: str, entry: dict[str, Any]) -> dict[str, Any]:
        """With the newest commit since which the entry has been as it is."""
        last = repo.commits[sha]
        for commit in repo.history(sha):
            if (then := self._entry(repo, commit["sha"], entry["path"])) is None or then["oid"] != entry["oid"]:
                break
            last = commit
        return {**entry, "lastCommit": {"id": last["sha"], "title": last["title"], "date": last["date"]}}

    def _tree(self, repo: Repository, revision: str, path: str) -> Answer:
        sha, prefix = self._sha(repo, revision), path and path + "/"
        inside = [name for name in repo.tree(sha) if name.startswith(prefix)]
        if path and not inside:
            raise RefusedError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        recursive, expand = (self.query.get(name, [""])[0].lower() == "true" for name in ("recursive", "expand"))
        paths = {prefix + name.removeprefix(prefix).split("/")[0] for name in inside}
        if recursive:
            folders = {str(parent) for name in inside for parent in PurePosixPath(name).parents}
            paths |= {*inside, *(folder for folder in folders if folder.startswith(prefix) and folder != ".")}
        page = self._page([self._entry(repo, sha, name) for name in sorted(paths)], self.hub.tree_page)
        if expand:
            page.body = [self._expanded(repo, sha, entry) for entry in page.body]
        return page

    def _paths_info(self, repo: Repository, revision: str, path: str) -> Answer:
        sha, form = self._sha(repo, revision), parse_qs(self.body.decode())
        found = [entry for name in form.get("paths", []) if (entry := self._entry(repo, sha, name.strip("/")))]
        if form.get("expand", [""])[0].lower() == "true":
            found = [self._expanded(repo, sha, entry) for entry in found]
        return Answer(found)

    def _commits(self, repo: Repository, revision: str, path: str) -> Answer:
        history = [
            {"id": commit["sha"], "authors": [{"user": commit["author"]}]}
            | {name: commit[name] for name in ("date", "title", "message")}
            for commit in repo.history(self._sha(repo, revision))
        ]
        return self._page(history, self.hub.commits_page)

    def _refs(self, repo: Repository, revision: str, path: str) -> Answer:
        def listed(refs: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in refs.items()]

        heads, tags = listed(repo.branches, "heads"), listed(repo.tags, "tags")
        return Answer({"branches": heads, "tags": tags, "converts": [], "pullRequests": []})

    def _add_branch(self, repo: Repository, branch: str, path: str) -> Answer:
        if branch in repo.branches:
            raise RefusedError(409, f"Reference already exists: {branch}")
        repo.branches[branch] = self._sha(repo, self._json().get("startingPoint") or "main")
        return self._changed({"url": f"{self.hub.url}/{repo.id}/tree/{branch}"}, 201)

    def _delete_branch(self, repo: Repository, branch: str, path: str) -> Answer:
        if branch == "main":
            raise RefusedError(403, "Cannot delete the main branch")
        return self._delete_ref(repo.branches, branch)

    def _add_tag(self, repo: Repository, revision: str, path: str) -> Answer:
        if (tag := self._json()["tag"]) in repo.tags:
            raise RefusedError(409, f"Tag reference exists already: {tag}")
        repo.tags[tag] = self._sha(repo, revision)
        return self._changed({}, 201)

    def _delete_tag(self, repo: Repository, tag: str, path: str) -> Answer:
        return self._delete_ref(repo.tags, tag)

    def _delete_ref(self, refs: dict[str, str], name: str) -> Answer:
        if name not in refs:
            raise RefusedError(404, f"Reference does not exist: {name}", "RevisionNotFound")
        del refs[name]
        return self._changed({})

    def _settings(self, repo: Repository, revision: str, path: str) -> Answer:
        settings = self._json()
        repo.private = settings.get("visibility", "private" if repo.private else "public") == "private"
        repo.gated = settings.get("gated", repo.gated)
        return self._changed({"private": repo.private, "gated": repo.gated})

    # ---- upload

    def _head(self, repo: Repository, branch: str) -> str:
        if self.query.get("create_pr", ["0"])[0] not in ("", "0", "false"):
            raise RefusedError(400, "Pull requests are not supported by this server")
        if branch not in repo.branches:
            raise RefusedError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        return repo.branches[branch]

    def _preupload(self, repo: Repository, branch: str, path: str) -> Answer:
        tree, files = repo.tree(self._head(repo, branch)), []
        for asked in self._json()["files"]:
            start = base64.b64decode(asked.get("sample", ""))
            lfs, known = _is_lfs(asked["path"], asked["size"], start), tree.get(asked["path"])
            file = {"path": asked["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if known:  # what the client compares its own file with: sha256 of an LFS file, git's id of another
                file["oid"] = known.oid if known.lfs else known.blob
            files.append(file)
        return Answer({"files": files})

    def _lfs_batch(self, type: str, repo_id: str) -> Answer:
        request, objects = self._json(), []
        if request["operation"] != "upload":
            raise RefusedError(400, "only uploads are served")
        self._repo(type, repo_id, write=True)
        for asked in request["objects"]:
            oid, size = asked["oid"], asked["size"]
            one = {"oid": oid, "size": size}
            if not (self.hub.folder / "objects" / oid).exists():
                query = urlencode({"size": size, "signature": self.hub._sign("upload", oid, str(size))})
                links = {"upload": f"upload/{oid}?{query}", "verify": f"verify/{oid}?{query}"}
                one["actions"] = {name: {"href": f"{self.hub.url}/lfs/{link}"} for name, link in links.items()}
            objects.append(one)
        return Answer({"transfer": "basic", "objects": objects})

    def _signed(self, action: str, oid: str) -> Answer:
        """Storage: whoever has the signed address may use it, and no other credentials are looked at."""
        size, signature = (self.query.get(name, [""])[0] for name in ("size", "signature"))
        signed_for = "download" if action == "download" else "upload"
        if not hmac.compare_digest(signature, self.hub._sign(signed_for, oid, size)):
            raise RefusedError(403, "the signature does not match")
        stored = self.hub.folder / "objects" / oid
        if (self.method, action) == ("PUT", "upload"):
            if len(self.body) != int(size) or hashlib.sha256(self.body).hexdigest() != oid:
                raise RefusedError(400, "the content is not what was announced")
            self.hub._store("", self.body)
            return Answer()
        if (self.method, action) == ("POST", "verify"):
            if not stored.exists() or stored.stat().st_size != self._json()["size"]:
                raise RefusedError(404, "the object was not uploaded")
            return Answer({})
        if action == "download" and self.method in ("GET", "HEAD"):
            return self._content(stored.read_bytes(), {"ETag": f'"{oid}"'})
        raise RefusedError(405, "no such operation on storage")

    def _commit(self, repo: Repository, branch: str, path: str) -> Answer:
        head = self._head(repo, branch)
        header, *operations = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        parent = header["value"].get("parentCommit")
        if parent is not None and not head.startswith(parent):
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        tree = repo.tree(head)
        for operation in operations:  # on a copy: the repository changes only once all have passed
            self._apply(repo.type, tree, operation["key"], operation["value"])
        title, message = header["value"]["summary"], header["value"].get("description", "")
        repo.branches[branch] = sha = _record(repo, tree, head, title, message, self.user or "")
        url = f"{self.hub.url}/{PREFIXES[repo.type]}{repo.id}/commit/{sha}"
        return self._changed({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def _apply(self, type: str, tree: dict[str, File], kind: str, value: dict[str, Any]) -> None:
        path = value["path"].strip("/")
        if kind == "file":
            content = base64.b64decode(value["content"], validate=True)
            if path == "README.md" and (errors := check_card(content.decode(errors="replace"), type)[0]):
                raise RefusedError(400, "; ".join(errors), errors=[{"message": error} for error in errors])
            if _is_lfs(path, len(content), content):
                raise RefusedError(400, f"{path} must be uploaded as an LFS file")
            tree[path] = self.hub._store(path, content, lfs=False)
        elif kind == "lfsFile":
            if (
                not re.fullmatch("[0-9a-f]{64}", value["oid"])
                or not (self.hub.folder / "objects" / value["oid"]).exists()
            ):
                raise RefusedError(400, f"LFS pointer pointed to a file that does not exist: {path} ({value['oid']})")
            size = (self.hub.folder / "objects" / value["oid"]).stat().st_size
            tree[path] = File(value["oid"], _git_id(_pointer(value["oid"], size)), size, True)
        elif kind in ("deletedFile", "deletedFolder"):
            gone = [name for name in tree if name == path or (kind != "deletedFile" and name.startswith(path + "/"))]
            if not gone:
                raise RefusedError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del tree[name]
        else:
            raise RefusedError(400, f"unknown operation {kind!r}")

    # ---- download

    def _resolve(self, type: str, repo_id: str, revision: str, path: str) -> Answer:
        repo = self._repo(type, repo_id, content=True)
        sha = self._sha(repo, revision)
        headers = {"X-Repo-Commit": sha}
        if (file := repo.tree(sha).get(path)) is None:
            refused = RefusedError(404, "Entry not found", "EntryNotFound")
            return Answer(refused.body, 404, refused.headers | headers)
        if file.lfs:  # another origin, so that clients keep their token to themselves and do not follow a HEAD
            query = urlencode({"size": file.size, "signature": self.hub._sign("download", file.oid, str(file.size))})
            headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(file.size)}
            headers["Location"] = f"http://localhost:{self.hub.port}/lfs/download/{file.oid}?{query}"
            return Answer(b"", 302, headers | {"ETag": f'"{file.blob}"'})
        content = (self.hub.folder / "objects" / file.oid).read_bytes()
        return self._content(content, headers | {"ETag": f'"{file.blob}"'})

    def _content(self, content: bytes, headers: dict[str, str]) -> Answer:
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked or not any(asked.groups()):
            return Answer(content, headers=headers)
        size = len(content)
        start, end = (
            (max(size - int(asked[2]), 0), size) if not asked[1] else (int(asked[1]), int(asked[2] or size) + 1)
        )
        if start >= min(end, size):
            return Answer({"error": "range"}, 416, headers | {"Content-Range": f"bytes */{size}"})
        end = min(end, size)
        return Answer(content[start:end], 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"})


def _entity(name: str, user: str) -> dict[str, str]:
    kind = "model" if "/" in name else "user" if name == user else "org"
    return {"_id": _git_id(name.encode())[:24], "type": kind, "name": name}
