"""A server with the two addresses of OpenAI's protocol that a rewriter asks, in this process."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def chat_server(answer, model: str = "rewriter-7b", finish_reason: str = "stop"):
    """The URL of a server whose one model answers the last paragraph of the user's message with `answer(paragraph)`,
    and the requests that it gets; None answers with an error."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._send({"data": [{"id": model}]} if self.path == "/v1/models" else None)

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, request))
            text = answer(request["messages"][-1]["content"].rsplit("\n\n", 1)[-1])
            choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
            self._send(None if text is None else {"id": "1", "created": 0, "model": model, "choices": [choice]})

        def _send(self, content):
            body = json.dumps(content or {"error": "no"}).encode()
            self.send_response(200 if content else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", requests
        finally:
            server.shutdown()
            thread.join()
