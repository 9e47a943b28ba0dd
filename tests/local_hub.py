"""A Hub on this machine, as far as an upload asks for it: what `push_to_hub` sends, to look at."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import transformers.utils.hub
from huggingface_hub import constants


class Commits(list):
    """Of an upload, each as (title, {path in the repository: bytes})."""


@contextmanager
def local_hub(monkeypatch) -> Iterator[Commits]:
    """While it is open, transformers pushes to this machine."""
    commits = Commits()

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self):
            sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
            path, url = self.path.split("?")[0], f"http://127.0.0.1:{self.server.server_port}"
            if path == "/api/repos/create":
                answer = {"url": f"{url}/me/{json.loads(sent)['name']}"}
            elif "/preupload/" in path:
                files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(sent)["files"]]
                answer = {"files": [{**one, "shouldIgnore": False} for one in files]}
            elif "/commit/" in path:
                lines = [json.loads(line) for line in sent.splitlines()]
                files = [line["value"] for line in lines if line["key"] == "file"]
                made = {one["path"]: base64.b64decode(one["content"]) for one in files}
                commits.append((lines[0]["value"]["summary"], made))
                answer = {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": f"{url}/me/mine/commit/0",
                    "hookOutput": "",
                }
            else:
                answer = {}
            self._say(answer)

        def do_GET(self):
            self._say({"name": "me", "type": "user", "tags": [], "siblings": [], "sha": "0" * 40, "id": "me/mine"})

        def _say(self, answer):
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", url)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    if hasattr(transformers.utils.hub, "_hf_api"):
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", huggingface_hub.HfApi(endpoint=url, token="none"))
    try:
        yield commits
    finally:
        server.shutdown()
        server.server_close()
