"""The Jobs service of a cluster's head, without the cluster: one real HTTP server whose answers a test writes."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION = {"version": "4", "ray_version": "2.60.0"}


class FakeHead:
    """``answers``: path -> JSON, or a list of JSON of which each request takes one and the last stays; a number is an HTTP error."""

    def __init__(self, secret=None):
        self.secret = secret
        self.answers = {"/api/version": VERSION}
        self.elsewhere = ""  # where 302 leads
        self.seen = []  # (path, Authorization header or None, body)

    def answer(self, path, authorization, body):
        self.seen.append((path, authorization, body))
        if self.secret and authorization != f"Bearer {self.secret}":
            return 403 if authorization else 401
        found = self.answers.get(path, 404)
        if isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]
        return found


@contextmanager
def serving(head):
    """The address of a server that answers as ``head`` says; "drop" as an answer closes the connection."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            length = int(self.headers.get("Content-Length") or 0)
            found = head.answer(self.path, self.headers.get("Authorization"), self.rfile.read(length))
            if found == "drop":
                self.close_connection = True
                return
            content = b"" if isinstance(found, int) else json.dumps(found).encode()
            self.send_response(found if isinstance(found, int) else 200)
            if found == 302:
                self.send_header("Location", head.elsewhere)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815 - the name that http.server looks for

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
