"""Replicas on a Ray of this machine against the engine of one process."""

import asyncio
import functools
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from replica_pipelines import load_mortal, load_tiny

import uniwetok_hf
from uniwetok_hf.data.ray_connection import connected
from uniwetok_hf.serving.engine import LocalEngine
from uniwetok_hf.serving.ray_engine import RayEngine, ReplicaSettings, _last_line
from uniwetok_hf.serving.requests import (
    ChatRequest,
    EditRequest,
    EngineFailedError,
    EngineStoppedError,
    Finished,
    GenerationRequest,
    QueueFullError,
)


pytest.importorskip("ray.serve", reason="needs the extra `ray`")
pytestmark = pytest.mark.slow

ENDLESS = {"height": 512, "width": 512, "num_inference_steps": 1000}  # of a request that is caught in the middle
PATIENCE = 300  # seconds for what takes a few on a free machine


@pytest.fixture(scope="module")
def serve():
    """Ray Serve on a Ray whose processes find this package and these tests."""
    folders = [str(Path(uniwetok_hf.__file__).parents[1]), str(Path(__file__).parents[1])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        with connected(4):
            from ray import serve

            yield serve


REPORTS = []


@pytest.fixture(scope="module")
def engine(serve):
    """Two replicas, which have four requests each at a time; eight may wait."""
    settings = ReplicaSettings(load=load_tiny, name="tiny", max_batch_size=2, max_waiting=8)
    engine = RayEngine.start(settings, on_batch=REPORTS.append)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def local():
    engine = LocalEngine(load_tiny(), "tiny", max_batch_size=2)
    yield engine
    engine.close()


def a_picture(**settings):
    return GenerationRequest(model="tiny", **{"prompt": "a heart", "seed": 0} | settings)


def a_text(seed=0, **settings):
    message = {"role": "user", "content": [{"type": "text", "text": f"hello {seed}"}]}
    settings = {"modalities": ("text",), "temperature": 1.0, "max_new_tokens": 40} | settings
    return ChatRequest(model="tiny", seed=seed, messages=(message,), **settings)


def an_edit(seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    return EditRequest(model="tiny", image=Image.fromarray(noise), prompt="turn it", seed=seed)


async def answer(engine, request):
    return [part async for part in engine.stream(request)]


async def answer_or_error(engine, request):
    try:
        return await answer(engine, request)
    except Exception as error:
        return error


def answers(engine, requests, ask=answer):
    async def ask_all():
        return await asyncio.gather(*(ask(engine, request) for request in requests))

    return asyncio.run(ask_all())


async def until(condition):
    """Waits for something that happens in another process."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail("it did not happen in time")
        await asyncio.sleep(0.05)


def applications(serve):
    return set(serve.status().applications)


def counts(serve, name):
    """(waiting, running) of each replica of an application."""
    return serve.get_app_handle(name).broadcast("counts").results_async()


def processes(name):
    """The processes of the replicas of an application."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any(f"ServeReplica:{name}" in word for word in child.cmdline())]


def test_answers_of_one_machine(engine, local):
    """More at a time than one replica takes."""
    requests = [a_picture(seed=seed, width=(64, 96)[seed % 2]) for seed in range(4)]
    requests += [a_text(seed) for seed in range(4)] + [an_edit(seed) for seed in range(4)]
    found = answers(engine, requests)
    assert found == answers(local, requests)
    assert all(isinstance(parts[-1], Finished) for parts in found)
    assert any(len(parts) > 3 for parts in found)  # texts come in pieces
    assert (engine.num_waiting, engine.num_running) == (0, 0)
    assert engine.info == local.info


def test_batches_are_told(engine):
    del REPORTS[:]
    for seed in range(6):  # one after the other: the last of each replica is told with its next answer
        answers(engine, [a_picture(seed=seed)])
    assert len(REPORTS) >= 3
    assert {(report.kind, report.size) for report in REPORTS} <= {("picture", 1), ("picture", 2), ("text", 1)}


def test_refusals_keep_their_types(engine):
    with pytest.raises(ValueError, match="^`model` must be one of tiny, got 'cat'") as error:
        answers(engine, [GenerationRequest(model="cat", prompt="a")])
    assert type(error.value) is ValueError
    with pytest.raises(ValueError, match="^`height` must be a multiple of 32"):
        answers(engine, [a_picture(height=33)])


def test_more_than_may_wait_are_refused(engine, local):
    requests = [a_picture(seed=seed, num_inference_steps=20) for seed in range(40)]
    found = answers(engine, requests, answer_or_error)
    refused = [error for error in found if isinstance(error, Exception)]
    assert {type(error) for error in refused} == {QueueFullError}
    assert str(refused[0]) == "16 requests are open already; try again later."
    kept = [(parts, request) for parts, request in zip(found, requests, strict=True) if isinstance(parts, list)]
    assert len(kept) == 16
    assert [parts for parts, _ in kept] == answers(local, [request for _, request in kept])


def test_whoever_closes_the_iterator_ends_the_request(engine, serve):
    [name] = applications(serve)

    async def begin_and_leave():
        parts = engine.stream(a_text(max_new_tokens=900))
        await anext(parts)
        picture = asyncio.create_task(answer(engine, a_picture(**ENDLESS)))
        await until(lambda: engine.num_running == 2)
        await asyncio.sleep(1)
        assert sum(map(sum, await counts(serve, name))) >= 1
        await parts.aclose()
        picture.cancel()
        await asyncio.gather(picture, return_exceptions=True)
        assert picture.cancelled()
        end = time.monotonic() + PATIENCE
        while sum(map(sum, await counts(serve, name))) and time.monotonic() < end:
            await asyncio.sleep(0.1)
        assert sum(map(sum, await counts(serve, name))) == 0

    asyncio.run(begin_and_leave())
    assert (engine.num_waiting, engine.num_running) == (0, 0)


def test_a_replica_that_is_killed_under_load(engine, local, serve, caplog, capsys):
    """Eight clients with five requests each; one of the replicas is killed when a third are answered."""
    [name] = applications(serve)
    requests = [(a_picture, a_text)[seed % 2](seed=seed) for seed in range(40)]
    found = {}

    async def client(number):
        for index in range(number, 40, 8):
            found[index] = await answer_or_error(engine, requests[index])

    async def load_and_kill():
        clients = [asyncio.create_task(client(number)) for number in range(8)]
        await until(lambda: len(found) >= 13)
        victim = processes(name)[0]
        victim.send_signal(signal.SIGKILL)
        await asyncio.gather(*clients)
        return victim.pid

    victim = asyncio.run(load_and_kill())
    lost = [record for record in caplog.records if "Lost a replica" in record.message]
    errors = Counter(type(one).__name__ for one in found.values() if isinstance(one, Exception))
    right = dict(zip(range(40), answers(local, requests), strict=True))
    wrong = [index for index, parts in found.items() if isinstance(parts, list) and parts != right[index]]
    with capsys.disabled():
        print(f"\n{len(found)} answered, {len(wrong)} wrongly, {len(lost)} begun anew, errors: {dict(errors)}")
    assert len(found) == 40 and not wrong and lost
    assert not errors  # one replica was left, and there was room to wait
    asyncio.run(until(lambda: len(processes(name)) == 2))
    assert victim not in [process.pid for process in processes(name)]


def test_a_request_that_begun_is_finished_when_the_server_stops(engine, local, serve):
    before = applications(serve)
    other = RayEngine.start(ReplicaSettings(load=load_tiny, name="tiny", num_replicas=1, max_batch_size=1))
    [name] = applications(serve) - before
    short = a_picture(num_inference_steps=3000)

    async def stop_and_close():
        begun = asyncio.create_task(answer(other, short))
        await until(lambda: other.num_running == 1)
        endless = asyncio.create_task(answer(other, a_picture(**ENDLESS)))
        await until(lambda: other.num_running == 2)
        waiting = asyncio.create_task(answer(other, short))
        await until(lambda: other.num_waiting == 1)
        assert not begun.done()
        other.stop_admission()
        with pytest.raises(EngineStoppedError, match="the request had not begun"):
            await waiting
        with pytest.raises(EngineStoppedError, match="takes no more requests"):
            await answer(other, short)
        found = await begun
        other.close()
        with pytest.raises(EngineStoppedError, match="stopped before the request was finished"):
            await endless
        return found

    assert asyncio.run(stop_and_close()) == answers(local, [short])[0]
    assert applications(serve) == before and not processes(name)
    other.close()  # nothing more happens
    assert answers(engine, [short]) == answers(local, [short])


def test_replicas_that_are_killed_in_the_middle(serve, tmp_path):
    """One replica, which Ray starts again each time."""
    before, others = applications(serve), tmp_path / "others"
    load, endless = functools.partial(load_mortal, others), a_text(max_new_tokens=600)
    local = LocalEngine(load(), "tiny")
    wanted = answers(local, [endless])[0]
    local.close()
    engine = RayEngine.start(ReplicaSettings(load=load, name="tiny", num_replicas=1))
    [name] = applications(serve) - before

    async def answer_and_kill():
        stream = engine.stream(endless)
        parts = [await anext(stream) for _ in range(10)]
        processes(name)[0].send_signal(signal.SIGKILL)
        return parts + [part async for part in stream]

    try:
        assert asyncio.run(answer_and_kill()) == wanted
        others.touch()
        with pytest.raises(EngineFailedError, match="is gone, and another gives another answer"):
            asyncio.run(answer_and_kill())
        with pytest.raises(EngineFailedError, match="The machine that worked on the request was lost, 3 times"):
            answers(engine, [a_picture(prompt="die")])
        assert len(answers(engine, [a_picture()])[0]) == 2
    finally:
        engine.close()


def test_a_model_that_can_not_be_loaded(serve, tmp_path):
    before = applications(serve)
    settings = {"load": load_tiny, "name": "tiny", "num_replicas": 1}
    with pytest.raises(OSError, match=r"^The replicas can't be started: .*adapter"):
        RayEngine.start(ReplicaSettings(adapters={"cats": str(tmp_path / "no_adapter")}, **settings))
    assert applications(serve) == before


def test_settings_that_can_not_be(monkeypatch):
    for name in ("num_replicas", "max_batch_size", "max_waiting"):
        with pytest.raises(ValueError, match=f"^`{name}` must be at least 1, got 0"):
            ReplicaSettings(load=load_tiny, name="tiny", **{name: 0})
    with pytest.raises(ValueError, match="^`num_gpus` must not be negative"):
        ReplicaSettings(load=load_tiny, name="tiny", num_gpus=-1)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ValueError, match="Ray Client can't stream answers"):
        RayEngine.start(ReplicaSettings(load=load_tiny, name="tiny"))


def test_the_last_line_of_an_error():
    assert _last_line(ValueError("first\n last \n\n")) == "last"
    assert _last_line(KeyboardInterrupt()) == "KeyboardInterrupt" and _last_line(ValueError(" \n")) == "ValueError"
