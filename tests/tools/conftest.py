"""A server for what downloads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.downloads import Server


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.requests.append((self.path, asked))
            if self.path in state.busy:
                state.busy.remove(self.path)
                return self.send_error(503)
            if self.path in state.failing:
                return self.send_error(state.failing[self.path])
            if self.path not in state.files:
                return self.send_error(404)
            content = state.files[self.path]
            start = 0 if asked is None or state.ignores_range else int(asked[len("bytes=") : -1])
            if start and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return None
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if self.path in state.stalls:
                state.stalls.remove(self.path)
                self.wfile.write(content[start:][: len(content) // 2])
                state.released.wait(60)
                return None
            self.wfile.write(content[start:][: state.cut_after.pop(self.path, None)])
            return None

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(url=f"http://127.0.0.1:{http.server_address[1]}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        state.released.set()
        http.shutdown()
        thread.join()
