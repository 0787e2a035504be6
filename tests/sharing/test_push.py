"""What would be uploaded, and the upload itself against a small hub of our own."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reta import cli
from reta.cli import sharing
from reta.errors import DataError, UsageError
from reta.sharing import plan, push
from reta.sharing.push import OPTIONAL


class Hub(ThreadingHTTPServer):
    """A hub that remembers what it was sent, and refuses any token but one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.created: dict[str, object] = {}
        self.address = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """The four requests of an upload, as the Hub's documentation of its API has them."""

    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != "Bearer secret":
            self.answer(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.answer(200, {"url": f"{self.server.address}/datasets/me/set", "name": "me/set"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            asked = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]
            self.answer(200, {"files": modes})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            made = f"{self.server.address}/datasets/me/set/commit/1"
            self.answer(200, {"commitUrl": made, "commitOid": "1", "success": True})
        else:
            self.answer(404, {"error": self.path})

    def answer(self, status: int, value: dict[str, object]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    library = pytest.importorskip("huggingface_hub")
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    api = library.HfApi
    monkeypatch.setattr(library, "HfApi", lambda token: api(endpoint=server.address, token=token))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(shared_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_run, tmp_path / "run"))


def test_the_upload_holds_what_the_plan_lists(run: Path, hub: Hub) -> None:
    """A file lost on the way, or one sent that was not listed."""
    upload = plan(run, "hf:me/set")
    assert push(upload, private=True, token="secret").endswith("/commit/1")
    assert hub.created["type"] == "dataset"
    assert hub.created.get("visibility", hub.created.get("private")) in ("private", True)
    assert {name: len(data) for name, data in hub.files.items()} == upload.files
    assert all((run / name).read_bytes() == data for name, data in hub.files.items())
    assert {"README.md", "manifest.json"} <= set(hub.files)
    assert any(name.startswith("labels/") for name in hub.files)


def test_what_shows_real_images_stays_at_home(run: Path) -> None:
    """Real training images published by someone who wanted to publish synthetic ones."""
    upload = plan(run, "hf:me/set")
    tops = {name.split("/")[0] for name in upload.files}
    assert not tops & {*OPTIONAL, "report.html"}
    assert upload.left_out == list(OPTIONAL)
    more = plan(run, "hf:me/set", ["history", "students"])
    assert {name.split("/")[0] for name in more.files} - tops == {"history", "students"}


def test_a_dry_run_sends_nothing(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """A look that is already an upload, or that does not tell about the licence."""
    cli.main(["push", str(run), "hf:me/set", "--dry-run"])
    said = capsys.readouterr().out
    assert hub.files == {}
    assert hub.created == {}
    for name in plan(run, "hf:me/set").files:
        assert name in said
    assert "no licence is named yet" in said
    assert "left out: history, pool, report, students, teachers" in said


def test_a_licence_in_the_card_counts(run: Path) -> None:
    """A user who filled in the licence and is told that there is none."""
    card = run / "README.md"
    card.write_text(card.read_text().replace("license: unknown", "license: cc-by-4.0"))
    assert plan(run, "hf:me/set").licensed


def test_what_cannot_be_pushed_says_why(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback of a library where a sentence with the fix would do."""
    library = pytest.importorskip("huggingface_hub")
    upload = plan(run, "hf:me/set")
    with pytest.raises(UsageError, match="did not take"):
        push(upload, token="wrong")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UsageError, match="did not take"):
        push(upload, token="secret")
    monkeypatch.setattr(library, "get_token", lambda: None)
    with pytest.raises(UsageError, match="hf auth login"):
        push(upload)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"pip install 'reta\[hf\]'"):
        push(upload)
    with pytest.raises(UsageError, match="hf:owner/name"):
        plan(run, "me/set")
    with pytest.raises(UsageError, match="unknown part"):
        plan(run, "hf:me/set", ["everything"])
    next((run / "images").rglob("*.png")).write_bytes(b"damaged")
    with pytest.raises(DataError, match="reta verify"):
        plan(run, "hf:me/set")


def test_the_command_knows_every_part() -> None:
    """A part that exists and cannot be chosen."""
    assert set(sharing.Part.__args__) == set(OPTIONAL)
