"""benchmarks/serving.py, which measures the server: how it counts, and all of it for a few seconds on a tiny model."""

import asyncio
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from tiny_mllm import answer_with_pictures, with_random_weights
from tiny_models import build_tiny_pipeline


pytest.importorskip("prometheus_client", reason="needs the extra `serve`")

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "serving.py"


@pytest.fixture
def asks(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import serving_asks

    return serving_asks


@pytest.fixture
def clients(asks):
    import serving_clients

    return serving_clients


@pytest.fixture
def holding(clients):
    import serving_holding

    return serving_holding


@contextmanager
def server_of(answers: list[tuple[int, bytes]], pause: float = 0.0):
    """The address of a server that gives these statuses and contents, one after the other; None cuts the rest off."""
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            stop.wait(pause)
            status, content = answers.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content or b"1234")))
            self.end_headers()
            self.wfile.write(b"12" if content is None else content)
            self.close_connection = True

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            stop.set()
            server.shutdown()
            thread.join()


ERROR = b'{"error": {"message": "m", "type": "t", "param": null, "code": "c"}}'
ANSWER = b'{"choices": [{"message": {"content": " two  words "}}]}'


def test_what_became_of_a_request(asks, clients):
    expected = {
        (200, ANSWER): "answered",
        (429, ERROR): "refused",
        (500, ERROR): "error",
        (500, b"<html>"): "lost",
        (502, b'{"detail": "no"}'): "lost",
        (200, b'{"choices": []}'): "lost",
        (200, None): "lost",
    }
    ask = asks.Ask("chat", "hi", 0)

    async def attempts(address: str, count: int, patience: float) -> list:
        async with httpx2.AsyncClient(base_url=address) as http:
            return [await clients.attempt(http, ask, patience) for _ in range(count)]

    with server_of([*expected]) as address:
        outcomes = asyncio.run(attempts(address, len(expected), 30))
    assert [one.kind for one in outcomes] == [*expected.values()]
    assert outcomes[0].answer == asks.Answer("two words")
    assert outcomes[2].words == "500 t, c: m"
    with server_of([(200, ANSWER)], pause=20) as address:
        [left] = asyncio.run(attempts(address, 1, 0.2))
    assert left.kind == "left" and left.seconds < 5


def test_streams(asks, clients):
    ask = asks.Ask("chat", "hi", 0, stream=True)

    def events(*contents) -> bytes:
        return b"".join(b"data: " + content + b"\n\n" for content in contents)

    def chunk(delta: dict, reason: str | None = None) -> bytes:
        return json.dumps({"choices": [{"delta": delta, "finish_reason": reason}]}).encode()

    whole = [chunk({"content": "two "}), chunk({"content": "words"}), chunk({}, "stop"), b"[DONE]"]
    assert asks.read_answer(ask, events(*whole)) == asks.Answer("two words")
    with pytest.raises(ValueError, match=r"ends without \[DONE\]"):
        asks.read_answer(ask, events(*whole[:-1]))
    with pytest.raises(ValueError, match="ends without a reason"):
        asks.read_answer(ask, events(*whole[:-2], whole[-1]))

    async def attempt(address: str):
        async with httpx2.AsyncClient(base_url=address) as http:
            return await clients.attempt(http, ask, 30)

    with server_of([(200, events(whole[0], ERROR, b"[DONE]"))]) as address:
        outcome = asyncio.run(attempt(address))
    assert outcome.kind == "error" and outcome.words.endswith("t, c: m")


def test_the_mix(asks):
    mix = asks.draw_mix(60, seed=0)
    assert len({*mix}) == 60 and mix == asks.draw_mix(60, seed=0) != asks.draw_mix(60, seed=1)
    assert [sum(ask.kind == kind for ask in mix) for kind in asks.SHARES] == [30, 12, 12, 6]
    assert any(ask.side for ask in mix) and any(ask.stream for ask in mix)
    assert {ask.picture is None for ask in mix if ask.kind == "chat"} == {True, False}


def test_an_answer_to_another_request_is_wrong(asks, clients, holding, capsys):
    first, second = asks.draw_mix(8, seed=0)[:2]
    tally = holding.Tally({first: asks.Answer(pictures=("a",)), second: asks.Answer(pictures=("b",))})
    tally.note(clients.Outcome(first, 0.0, 1.0, "answered", asks.Answer(pictures=("a",))))
    result = {"rows": tally.rows(), "in_server_at_the_end": 0, "words": []}
    assert holding.print_counts(result)
    tally.note(clients.Outcome(second, 0.0, 1.0, "answered", asks.Answer(pictures=("a",))))
    assert not holding.print_counts(result | {"rows": tally.rows()})
    assert "| all | 1 | 1 | 0 | 0 | 0 | 0 |" in capsys.readouterr().out
    tally = holding.Tally(tally.expected)
    tally.note(clients.Outcome(first, 0.0, 1.0, "lost"))
    assert not holding.print_counts(result | {"rows": tally.rows()})


def test_throughput_counts_whole_batches(asks, clients):
    import serving_throughput

    ask = asks.Ask("generation", "a", 0)
    batches = [clients.Outcome(ask, 2.0 * end - 2, 2.0 * end, "answered") for end in range(1, 20) for _ in range(16)]
    for start, end in ((5.0, 15.0), (4.1, 17.9)):
        found = serving_throughput.summary(batches, start, end)
        assert found["rate"] == pytest.approx(8.0)
        assert found["median"] == found["slow"] == 2.0 and found["failed"] == 0
    assert serving_throughput.summary([], 0.0, 1.0)["rate"] == 0


def test_recovery(holding):
    """Ten answers a second, none for two seconds after the kill, five for ten, then ten again."""
    moments = [0.1 * index for index in range(300)]
    moments += [32 + 0.2 * index for index in range(50)] + [42 + 0.1 * index for index in range(400)]
    found = holding.recovery(moments, 0.0, 30.0, 80.0)
    assert found["rate_before"] == pytest.approx(10, rel=0.05)
    assert found["rate_after"] == pytest.approx(4, rel=0.05)
    assert found["rate_at_the_end"] == pytest.approx(10, rel=0.05)
    assert found["longest_pause"] == pytest.approx(2, abs=0.01)
    assert 9 <= found["back_after"] <= 12
    assert holding.recovery(moments[:400], 0.0, 30.0, 80.0)["back_after"] is None


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """It draws in conversations."""
    pipe = build_tiny_pipeline(1, default_size=64)
    with_random_weights(pipe.mllm)
    answer_with_pictures(pipe.mllm, pipe.processor)
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    pipe.save_pretrained(folder)
    return folder


def run(*words, folder: Path) -> tuple[str, dict]:
    command = [sys.executable, SCRIPT, *map(str, words), "--output", folder / "result.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout, json.loads((folder / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["generation", "edit", "answer"])
def test_throughput(what, pipeline, tmp_path):
    words = ("throughput", "--model", pipeline, "--what", what, "--max-batch-sizes", 1, 4, "--clients", 1, 4)
    printed, result = run(*words, "--seconds", 3, folder=tmp_path)
    assert [(row["max_batch_size"], row["clients"]) for row in result["rows"]] == [(1, 1), (1, 4), (4, 1), (4, 4)]
    assert all(row["rate"] > 0 and row["count"] > 0 and not row["failed"] for row in result["rows"])
    assert result["rows"][0]["factor"] == 1 and result["rows"][-1]["batch"] > 1
    assert len([line for line in printed.splitlines() if line.startswith("| ")]) == 2 + 4


@pytest.mark.slow
def test_holding(pipeline, tmp_path):
    words = ("holding", "--model", pipeline, "--clients", 20, "--seconds", 6, "--distinct", 16)
    printed, result = run(*words, "--max-batch-size", 4, "--max-waiting", 2, folder=tmp_path)
    total = result["rows"][-1]
    assert total["right"] > 0 and total["refused"] > 0 and "| wrong |" in printed
    assert total["wrong"] == total["lost"] == total["error"] == result["in_server_at_the_end"] == 0
    assert result["memory"]["largest"] >= result["memory"]["first_minute"] > 100


@pytest.mark.slow
def test_kill(pipeline, tmp_path):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    words = ("kill", "--model", pipeline, "--clients", 4, "--seconds", 20, "--kill-after", 5, "--distinct", 16)
    _, result = run(*words, folder=tmp_path)
    total = result["rows"][-1]
    assert total["right"] > 0 and 5 <= result["killed_after"] < 20 and result["settings"]["threads"] == 1
    assert total["wrong"] == total["lost"] == result["in_server_at_the_end"] == 0
