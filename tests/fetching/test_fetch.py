"""`stun fetch` against a stand-in of the hub on this machine, which the hub's own client talks to over HTTP.

The real hub was not met: what is tested is that what the client asks for, it gets, and that a run then reads it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree
from threading import Thread

import pytest
from data_fixtures import GSM8K, SUMS, Rows, write_rows

from stun_exp.data.hub import why_unreachable
from stun_exp.data.reading import read_set
from stun_exp.data.sets import DataSet, folders_of, snapshot

ROOT = Path(__file__).parents[2]
SHARD = "en/c4-train.00000-of-01024.json.gz"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put(folder: Path, files: Mapping[str, Rows | str]) -> None:
    for name, content in files.items():
        if isinstance(content, str):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        else:
            write_rows(folder / name, content)


@pytest.fixture
def hub(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Path:
    """What the stand-in has: repositories as folders."""
    root = tmp_path / "repositories"
    put(root / "datasets" / "openai" / "gsm8k", {**GSM8K, "socratic/train-0.parquet": SUMS, "big.bin": "unneeded"})
    put(root / "datasets" / "allenai" / "c4", {SHARD: [{"text": "one document"}], "en/c4-train.1.json.gz": SUMS})
    copytree(tiny_model("mixtral"), root / "models" / "owner" / "tiny")
    return root


@pytest.fixture
def endpoint(hub: Path) -> Iterator[str]:
    """The address of the stand-in: the three kinds of request that the client makes for a snapshot."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def repository(self) -> tuple[Path, list[str]]:
            """(The folder that a path is about, what follows its name)."""
            kind, *words = self.path.partition("?")[0].strip("/").removeprefix("api/").split("/")
            if kind not in ("datasets", "models"):
                kind, words = "models", [kind, *words]
            return hub / kind / "/".join(words[:2]), words[2:]

        def answer(self, body: bytes, kind: str, **headers: str) -> None:
            self.send_response(200)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            folder, rest = self.repository()
            if rest[:1] == ["resolve"] and (file := folder / "/".join(rest[2:])).is_file():
                body = file.read_bytes()
                self.answer(body, "application/octet-stream", ETag=f'"{sha1(body).hexdigest()}"', X_Repo_Commit=COMMIT)
            elif self.path.startswith("/api/") and folder.is_dir():
                names = [file for file in sorted(folder.rglob("*")) if file.is_file()]
                tree = [
                    {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": COMMIT}
                    for file in names
                ]
                about = {"id": "x", "sha": COMMIT, "siblings": [{"rfilename": one["path"]} for one in tree]}
                self.answer(json.dumps(tree if rest[:1] == ["tree"] else about).encode(), "application/json")
            elif self.path == "/":
                self.answer(b"", "text/plain")
            else:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.send_header("X-Error-Code", "EntryNotFound" if folder.is_dir() else "RepoNotFound")
                self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(endpoint: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-m", "stun_exp", "fetch", *words],
        cwd=ROOT,
        env=inherited | settings,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_a_run_reads_comes_into_one_folder_and_is_read_there(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of the data set, shards and files of the model that no run reads stay where they are."""
    model = ["model=local", "model.path=owner/tiny"]
    settings = ["eval=gsm8k", "calibration=c4", "calibration.sequence_length=32", *model]
    done = fetch(endpoint, tmp_path / "home", "--to", str(tmp_path / "taken"), *settings)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "openai/gsm8k (main): 8 train, 4 test"
    assert lines[1] == f"allenai/c4 ({SHARD}): 1 documents"
    assert lines[2].startswith(f"owner/tiny ({COMMIT}): ")
    assert f"all of it is in {tmp_path / 'taken'}" in lines[3]

    cache = tmp_path / "taken" / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    why_unreachable.cache_clear()
    read = read_set(DataSet("openai/gsm8k", "main"), list(folders_of("openai/gsm8k", None)), True)
    assert list(read["test"]) == SUMS[8:]
    data, c4, tiny = (
        snapshot(name, cache, kind)
        for name, kind in (("openai/gsm8k", "datasets"), ("allenai/c4", "datasets"), ("owner/tiny", "models"))
    )
    assert data is not None
    assert c4 is not None
    assert tiny is not None
    assert not (data / "big.bin").exists()
    assert not (data / "socratic").exists()
    assert [file.name for file in (c4 / "en").iterdir()] == [Path(SHARD).name]
    assert (tiny / "model.safetensors").is_file()
    why_unreachable.cache_clear()


def test_a_repository_that_the_hub_has_not_is_named(endpoint: str, tmp_path: Path) -> None:
    done = fetch(endpoint, tmp_path / "home", "eval=lu")
    assert done.returncode == 1
    assert done.stderr.startswith("error: allenai/ai2_arc: cannot be fetched from the hub (RepositoryNotFoundError")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("offline", ["HF_HUB_OFFLINE=1 forbids", "cannot be reached"])
def test_without_a_network_it_says_so_at_once(
    offline: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stun_exp.cli.main import CONF, fetch_command

    monkeypatch.setattr("stun_exp.fetching.fetch.why_unreachable", lambda: offline)
    with pytest.raises(SystemExit, match="1"):
        fetch_command(["eval=gsm8k"], CONF)
    assert capsys.readouterr().err.startswith(f"error: stun fetch: {offline}")


def test_what_comes_with_stun_needs_no_fetching(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stun_exp.cli.main import CONF, fetch_command

    monkeypatch.setattr("stun_exp.fetching.fetch.why_unreachable", lambda: "")
    fetch_command(["eval=toy"], CONF)
    assert capsys.readouterr().out.startswith("nothing to fetch")


@pytest.mark.parametrize("words", [["--to"], ["--to", "eval=gsm8k"], ["--to="]])
def test_a_folder_that_is_left_out_is_a_mistake(words: list[str]) -> None:
    from stun_exp.cli.main import CONF, fetch_command
    from stun_exp.config.build import ConfigError

    with pytest.raises(ConfigError, match="--to: needs a folder"):
        fetch_command(words, CONF)
