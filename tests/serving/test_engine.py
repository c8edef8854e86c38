# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The queue and the thread that owns the model: every request gets its own answer, or a clear error, whatever else is
asked, cancelled, or goes wrong."""

import asyncio
import copy
import gc
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from peft import LoraConfig
from tiny_mllm import seeded
from tiny_serving import (
    MODEL,
    Answer,
    answer,
    answer_all,
    answer_alone,
    ask_together,
    build_serving_pipeline,
    chat,
    edit,
    generation,
    is_empty,
    picture,
    serving,
    tokens_of,
    until,
)

from uniwetok_hf import UniWeTokPipeline
from uniwetok_hf.adapters import lora_config, save_adapter
from uniwetok_hf.serving.engine import BatchReport, LocalEngine, _Ticket
from uniwetok_hf.serving.requests import EngineFailedError, EngineStoppedError, QueueFullError, TextPart


@pytest.fixture(scope="module", params=[1, 2], ids=["single tokens", "patches"])
def any_pipe(request) -> UniWeTokPipeline:
    return build_serving_pipeline(request.param)


@pytest.fixture(scope="module")
def pipe() -> UniWeTokPipeline:
    return build_serving_pipeline(1)


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Python goes from thread to thread a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


class Gate:
    """Counts the calls of the language model, and holds them while it is shut."""

    def __init__(self, pipe: UniWeTokPipeline):
        self.opened, self.num_calls = threading.Event(), 0
        self.handle = pipe.mllm.model.language_model.register_forward_pre_hook(self._pass)

    def _pass(self, *args) -> None:
        self.num_calls += 1
        assert self.opened.wait(60)


@pytest.fixture
def gate(pipe) -> Iterator[Gate]:
    gate = Gate(pipe)
    yield gate
    gate.opened.set()
    gate.handle.remove()


async def ask_in_order(engine: LocalEngine, requests: list) -> list[asyncio.Task]:
    """Requests that arrive one after the other, while the engine is held in the first."""
    tasks = []
    for index, request in enumerate(requests):
        tasks.append(asyncio.create_task(answer(engine, request)))
        if index == 0:
            await until(lambda: engine.num_running == 1)
        else:
            await until(lambda index=index: engine.num_waiting == index)
    return tasks


async def outcomes(tasks: list[asyncio.Task]) -> list:
    return await asyncio.gather(*tasks, return_exceptions=True)


# --- batches ---


def mixed_requests(side: int) -> list:
    shown, other = picture(side, side), picture(side, 2 * side, seed=1)
    return [
        generation("a cat", seed=1),
        generation("a longer prompt than that", seed=1),
        generation("a cat", seed=2, negative_prompt="a dog"),
        generation("a cat", seed=1, width=2 * side),
        edit(shown, "green", seed=3),
        edit(other, "upside down", seed=4),
        edit(other, "green", seed=4, image_guidance_scale=1.5, negative_prompt="no"),
        edit(shown, "red", seed=5, image_guidance_scale=1.5, height=side, width=2 * side),
        chat("what is it", max_new_tokens=9),
        chat([shown, "what is this"], max_new_tokens=4),
        chat("draw P", seed=6),
        chat([other, shown, "draw B"], seed=7),
        chat([shown, "this"], "a cat", "draw it P", seed=8),
        chat("say M"),
    ]


def test_mixed_requests_get_what_they_get_alone(any_pipe):
    requests = mixed_requests(any_pipe.config.default_size)
    answers, reports = ask_together(any_pipe, requests)
    assert answers == [answer_alone(any_pipe, request) for request in requests]
    # Checked at once, they may come in any order.
    largest = {kind: max(report.size for report in reports if report.kind == kind) for kind in ("text", "picture")}
    assert largest["text"] == 6 and largest["picture"] >= 4 and len(reports) < 10
    assert all(report.seconds > 0 for report in reports)


def test_edits_that_are_described_first(any_pipe):
    any_pipe.register_to_config(default_describe_first=True)
    side = any_pipe.config.default_size
    requests = [
        edit(picture(side, side, seed), words, seed) for seed, words in enumerate(["green D", "D", "a rose D"])
    ]
    answers, reports = ask_together(any_pipe, requests)
    alone = [answer_alone(any_pipe, request) for request in requests]
    any_pipe.register_to_config(default_describe_first=False)
    assert answers == alone and answers[0].descriptions == ["a red one"]
    assert [(report.kind, report.size) for report in reports] == [("text", 3), ("picture", 3)]


def test_texts_that_are_drawn_do_not_depend_on_the_batch(pipe):
    hot = {"temperature": 1.3, "top_p": 0.9}
    requests = [chat("what is it", seed=seed, max_new_tokens=4 + 3 * seed, **hot) for seed in range(4)]
    requests += [chat("draw B", seed=9, **hot), chat("draw B", seed=10, **hot), chat("draw P", seed=9, **hot)]
    together, reports = ask_together(pipe, requests)
    with serving(pipe, max_batch_size=1) as engine:
        alone = [asyncio.run(answer(engine, request)) for request in requests]
    assert together == alone and reports[0].size == 7
    assert len({one.text for one in together[:4]}) == 4


# --- order ---


def test_the_oldest_goes_first_and_takes_others_along(pipe, gate):
    def ask(max_batch_size: int, requests: list) -> list[tuple[str, int]]:
        reports: list[BatchReport] = []

        async def run():
            gate.opened.clear()
            with serving(pipe, max_batch_size=max_batch_size, batch_wait=0, on_batch=reports.append) as engine:
                tasks = await ask_in_order(engine, [generation("first"), *requests])
                gate.opened.set()
                answers = await outcomes(tasks)
                await until(lambda: is_empty(engine))
            assert all(isinstance(one, Answer) for one in answers)

        asyncio.run(run())
        return [(report.kind, report.size) for report in reports][1:]

    small, wide, text = generation("a"), generation("a", width=64), chat("what is it", max_new_tokens=2)
    assert ask(4, [small, text, small, wide, text]) == [("picture", 2), ("text", 2), ("picture", 1)]
    assert ask(2, [small, text, small, small]) == [("picture", 2), ("text", 1), ("picture", 1)]
    # A conversation keeps its place: its picture, too, goes first and takes the other along, and so does its text.
    talk = chat("draw P")
    assert ask(4, [talk, small, text]) == [("text", 2), ("picture", 2), ("text", 1)]
    assert ask(1, [talk, small]) == [("text", 1), ("picture", 1), ("text", 1), ("picture", 1)]


def test_a_full_queue_refuses(pipe, gate):
    async def run():
        with serving(pipe, max_batch_size=1, max_waiting=2) as engine:
            tasks = await ask_in_order(engine, [generation(words) for words in ("a", "b", "c")])
            for request in (generation("d"), generation(" ")):  # nothing of it is looked at
                with pytest.raises(QueueFullError, match="2 requests wait already"):
                    await answer(engine, request)
            assert (engine.num_waiting, engine.num_running) == (2, 1)
            gate.opened.set()
            answers = await outcomes(tasks)
            assert answers == [answer_alone(pipe, generation(words)) for words in ("a", "b", "c")]
            assert await answer(engine, generation("d")) == answer_alone(pipe, generation("d"))
            await until(lambda: is_empty(engine))

    asyncio.run(run())


# --- clients that leave ---


def test_a_waiting_request_is_given_up(pipe, gate):
    async def run():
        with serving(pipe, max_batch_size=1) as engine:
            tasks = await ask_in_order(engine, [generation(words) for words in ("a", "b", "c")])
            tasks[1].cancel()
            await until(lambda: engine.num_waiting == 1)
            gate.opened.set()
            answers = await outcomes(tasks)
            assert isinstance(answers[1], asyncio.CancelledError)
            assert answers[2] == answer_alone(pipe, generation("c"))
            await until(lambda: is_empty(engine))

    asyncio.run(run())


LONG = [generation("a", height=256, width=256), chat("what is it", max_new_tokens=900)]


@pytest.mark.parametrize("request_", LONG, ids=["picture", "text"])
def test_the_model_stops_when_nobody_waits(pipe, gate, request_):
    gate.opened.set()

    async def run():
        with serving(pipe, max_batch_size=2, batch_wait=60) as engine:
            tasks = [asyncio.create_task(answer(engine, request_)) for _ in range(2)]
            await until(lambda: gate.num_calls > 3)
            engine.batch_wait = 0
            tasks[0].cancel()
            before = gate.num_calls
            await until(lambda: gate.num_calls > before + 3)  # the other one goes on
            assert engine.num_running == 2
            tasks[1].cancel()
            await until(lambda: is_empty(engine))
            assert gate.num_calls < 60

    asyncio.run(run())


def test_who_stays_gets_the_whole_answer(pipe, gate):
    wide = {"width": 256}
    requests = [generation("a", seed=1, **wide), generation("b", seed=2, **wide)]

    async def run():
        with serving(pipe, max_batch_size=2, batch_wait=60) as engine:
            tasks = [asyncio.create_task(answer(engine, request)) for request in requests]
            await until(lambda: gate.num_calls == 1)
            tasks[0].cancel()
            gate.opened.set()
            engine.batch_wait = 0
            assert (await outcomes(tasks))[1] == answer_alone(pipe, requests[1])
            await until(lambda: is_empty(engine))

    asyncio.run(run())


def test_an_iterator_that_is_dropped_gives_its_request_up(pipe, gate):
    gate.opened.set()

    async def run():
        with serving(pipe) as engine:
            async for part in engine.stream(chat("what is it", max_new_tokens=900)):
                assert isinstance(part, TextPart)
                break
            await until(lambda: is_empty(engine))
            assert gate.num_calls < 100

    asyncio.run(run())


def test_a_loop_that_was_closed_leaves_the_engine_whole(pipe, gate):
    with serving(pipe) as engine:
        loop = asyncio.new_event_loop()
        stream = engine.stream(chat("what is it", max_new_tokens=20))
        first = loop.create_task(anext(stream))
        loop.run_until_complete(asyncio.wait([first], timeout=0.2))
        gate.opened.set()
        loop.run_until_complete(first)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        assert asyncio.run(answer(engine, generation("a"))) == answer_alone(pipe, generation("a"))
        assert asyncio.run(wait_empty(engine))


async def wait_empty(engine: LocalEngine) -> bool:
    await until(lambda: is_empty(engine))
    return True


def test_ctrl_c_gives_up_what_runs(pipe, gate):
    gate.opened.set()

    async def run(engine):
        task = asyncio.create_task(answer(engine, LONG[0]))
        await until(lambda: gate.num_calls > 3)
        signal.raise_signal(signal.SIGINT)
        await task

    with serving(pipe) as engine:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(run(engine))
        assert asyncio.run(wait_empty(engine)) and gate.num_calls < 60
        assert asyncio.run(answer(engine, generation("a"))) == answer_alone(pipe, generation("a"))


# --- what goes wrong ---


@pytest.fixture
def poison(pipe) -> Iterator[str]:
    """A word with which the model fails, with an error that only the log may see."""
    token = tokens_of(pipe, "~")[0]

    def fail(module, args, kwargs):
        if (kwargs["input_ids"] == token).any():
            raise ValueError("secret weights of /home/ada")

    handle = pipe.mllm.model.register_forward_pre_hook(fail, with_kwargs=True)
    yield "~"
    handle.remove()


def test_a_poisoned_request_fails_alone(pipe, poison, caplog):
    requests = [generation(words, seed=2) for words in ("a", "b", f"c{poison}", "d", "e")]
    requests += [chat(f"f{poison}", max_new_tokens=3), chat("g", max_new_tokens=3), chat("draw P", max_new_tokens=3)]
    answers, _ = ask_together(pipe, requests)
    bad = {2, 5}
    for index in bad:
        assert isinstance(answers[index], EngineFailedError)
        assert str(answers[index]) == "The request could not be finished: something went wrong on the server."
    alone = [answer_alone(pipe, request) for index, request in enumerate(requests) if index not in bad]
    assert [one for index, one in enumerate(answers) if index not in bad] == alone
    assert "secret weights" in caplog.text and "Traceback" in caplog.text
    assert caplog.text.count("A request failed.") == 2


@pytest.mark.parametrize("limit", [1, 2, 0])
def test_what_does_not_fit_is_computed_in_halves(pipe, limit, caplog):
    """Where the memory ends in the middle of a batch, seeds have been drawn from: they begin anew."""
    settings = {"temperature": 1.3, "max_new_tokens": 6}
    requests = [generation("a", seed=seed, width=64) for seed in range(5)]
    requests += [chat("draw B", seed=seed, **settings) for seed in range(3)]
    requests += [chat("what is it", seed=seed, **settings) for seed in range(2)]
    expected, _ = ask_together(pipe, requests)

    def fail(module, args, kwargs):
        embeddings = kwargs["inputs_embeds"]
        if embeddings.shape[1] == 1 and len(embeddings) > 2 * limit:  # guided pictures are two rows
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = pipe.mllm.model.language_model.register_forward_pre_hook(fail, with_kwargs=True)
    answers, _ = ask_together(pipe, requests)
    handle.remove()
    if limit:
        assert answers == expected
        assert "computing it in halves" in caplog.text
    else:
        assert {str(one) for one in answers} == {
            "The request could not be finished: there is not enough memory for it."
        }


def test_a_size_that_did_not_fit_is_computed_in_smaller_batches(pipe):
    """From then on; those of another size and texts as before."""
    reports: list = []

    def fail(module, args, kwargs):
        embeddings = kwargs["inputs_embeds"]
        if embeddings.shape[1] == 1 and len(embeddings) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    async def run():
        for request in (generation("a", width=64), generation("a", width=64), chat("what is it", max_new_tokens=2)):
            await answer_all(engine, [request] * 4)
        handle.remove()
        await answer_all(engine, [generation("a", width=128)] * 4)

    with serving(pipe, max_batch_size=4, batch_wait=0.3, on_batch=reports.append) as engine:
        handle = pipe.mllm.model.language_model.register_forward_pre_hook(fail, with_kwargs=True)
        asyncio.run(run())
    assert [report.size for report in reports] == [4, 2, 2, 4, 4]


def test_errors_of_a_request_are_told(pipe):
    async def run():
        with serving(pipe) as engine:
            with pytest.raises(ValueError, match="`model` must be one of tiny, got 'other'"):
                await answer(engine, generation("a", model="other"))
            with pytest.raises(ValueError, match="`prompt` must not be empty"):
                await answer(engine, generation(" "))
            with pytest.raises(ValueError, match="`height` must be a multiple of"):  # known once it is encoded
                await answer(engine, edit(picture(5000, 32), "a"))
            await until(lambda: is_empty(engine))

    asyncio.run(run())


def test_errors_of_the_engine_itself_end_nothing(pipe, monkeypatch, caplog):
    """Neither one of its own parts, nor whoever looks at batches."""

    def fail(*args):
        raise KeyError("a mistake of ours")

    async def run():
        with serving(pipe, on_batch=fail) as engine:
            assert await answer(engine, generation("a")) == answer_alone(pipe, generation("a"))
            with monkeypatch.context() as patch:
                patch.setattr(engine, "_activate", fail)
                for error in await answer_all(engine, [generation("a"), generation("b"), chat("c")]):
                    assert isinstance(error, EngineFailedError) and "ours" not in str(error)
            await until(lambda: is_empty(engine))
            assert await answer(engine, generation("a")) == answer_alone(pipe, generation("a"))

    asyncio.run(run())
    assert "a mistake of ours" in caplog.text and "`on_batch` failed" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_ends_leaves_nobody_waiting(pipe, gate):
    def end(*args):
        raise SystemExit

    async def run():
        with serving(pipe, max_batch_size=1) as engine:
            tasks = await ask_in_order(engine, [generation(words) for words in ("a", "b")])
            handle = pipe.mllm.image_head.register_forward_pre_hook(end)
            gate.opened.set()
            errors = await outcomes(tasks)
            handle.remove()
            assert all(isinstance(error, EngineStoppedError) for error in errors)
            with pytest.raises(EngineStoppedError, match="takes no more requests"):
                await answer(engine, generation("c"))
            await until(lambda: is_empty(engine))

    asyncio.run(run())


# --- the end ---


def test_admission_that_is_stopped(pipe, gate):
    async def run():
        with serving(pipe, max_batch_size=1) as engine:
            tasks = await ask_in_order(engine, [chat("draw P"), generation("b"), generation("c")])
            engine.stop_admission()
            assert (engine.num_waiting, engine.num_running) == (0, 1)
            for error in await outcomes(tasks[1:]):
                assert isinstance(error, EngineStoppedError) and "had not begun" in str(error)
            with pytest.raises(EngineStoppedError, match="takes no more requests"):
                await answer(engine, generation("d"))
            gate.opened.set()
            assert await tasks[0] == answer_alone(pipe, chat("draw P"))
            await until(lambda: is_empty(engine))

    asyncio.run(run())


@pytest.mark.parametrize("request_", LONG, ids=["picture", "text"])
def test_closing_ends_what_runs(pipe, gate, request_):
    async def run():
        engine = LocalEngine(pipe, MODEL, max_batch_size=2)
        requests = [request_, request_, generation("b"), chat("c"), generation("d"), generation("e")]
        tasks = await ask_in_order(engine, requests)
        await until(lambda: gate.num_calls == 1)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await until(lambda: engine.num_waiting == 0)
        gate.opened.set()
        async with asyncio.timeout(30):
            await closing
            errors = await outcomes(tasks)
        assert all(isinstance(error, EngineStoppedError) for error in errors)
        assert not engine._thread.is_alive() and is_empty(engine) and gate.num_calls < 10
        engine.close()

    asyncio.run(run())


def test_closing_while_requests_begin(pipe):
    """Those of a batch that are read when it happens are not read to the end."""
    num_read = []
    encode = pipe.mllm.model.encode_pictures

    def count(*args, **kwargs):
        num_read.append(1)
        if len(num_read) == 2:
            closing.start()
            while not engine._is_closed:
                time.sleep(0.001)
        return encode(*args, **kwargs)

    requests = [edit(picture(32, 32), "green", seed) for seed in range(6)]
    engine = LocalEngine(pipe, MODEL, max_batch_size=6, batch_wait=60)
    closing = threading.Thread(target=engine.close)
    pipe.mllm.model.encode_pictures = count
    try:
        errors = asyncio.run(answer_all(engine, requests))
    finally:
        del pipe.mllm.model.encode_pictures
        closing.join()
    assert all(isinstance(error, EngineStoppedError) for error in errors) and len(num_read) == 2
    assert is_empty(engine)


def test_closing_at_any_time(pipe, quick_switches):
    """Every request is answered, or told that the engine stopped."""
    side, chance, seen = pipe.config.default_size, random.Random(0), {Answer: 0, EngineStoppedError: 0}

    async def run():
        engine = LocalEngine(pipe, MODEL, max_batch_size=2, batch_wait=0.001)
        requests = [generation("a"), edit(picture(side, side), "b"), chat("draw B"), chat("say M")]
        tasks = [asyncio.create_task(answer(engine, chance.choice(requests))) for _ in range(6)]
        if chance.random() < 0.5:
            await asyncio.sleep(chance.choice([0, 0.003, 0.02, 0.1]))
        else:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if chance.random() < 0.5:
            engine.stop_admission()
            await asyncio.sleep(0.01)
        await asyncio.to_thread(engine.close)
        for outcome in await outcomes(tasks):
            seen[type(outcome)] += 1
        assert is_empty(engine) and not engine._thread.is_alive()

    for _ in range(20):
        asyncio.run(run())
    assert min(seen.values()) >= 5


def test_nothing_is_kept_of_answered_requests(pipe):
    def kept() -> int:
        return sum(type(one) is _Ticket for one in gc.get_objects())

    async def run():
        with serving(pipe) as engine:
            side = pipe.config.default_size
            requests = [generation("a"), edit(picture(side, side), "b"), chat("draw B"), chat("say M")]
            await answer_all(engine, requests)
            tasks = [asyncio.create_task(answer(engine, request)) for request in LONG]
            await until(lambda: engine.num_running == 2)
            for task in tasks:
                task.cancel()
            await outcomes(tasks)
            del tasks, task
            await until(lambda: is_empty(engine))
            await answer(engine, generation("a"))
            await until(lambda: kept() == 0)

    gc.collect()
    gc.disable()  # nothing waits for it
    try:
        asyncio.run(run())
    finally:
        gc.enable()


# --- models ---


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> dict[str, str]:
    """Two adapters of the tiny model: of what generates, and of how pictures are read and decoded."""
    folder, found = tmp_path_factory.mktemp("adapters"), {}
    pictures = r".*vision_model\.(encoder|decoder)\..*(q_proj|v_proj|conv1)"
    configs = {"one": lora_config("language_model", "head", r=4), "two": LoraConfig(r=4, target_modules=pictures)}
    for seed, (name, config) in enumerate(configs.items()):
        model = build_serving_pipeline(1).mllm
        model.add_adapter(config)
        generator = seeded(seed + 1)
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        save_adapter(model, folder / name)
        found[name] = str(folder / name)
    return found


def test_adapters_by_name_under_load(adapters):
    side, models = 32, (MODEL, "one", "two")
    kinds = [
        lambda model, seed: generation("a red cat", seed, model),
        lambda model, seed: edit(picture(side, side), "green", seed, model),
        lambda model, seed: chat("what is it", seed=seed, model=model, max_new_tokens=4),
        lambda model, seed: chat([picture(side, side), "draw B"], seed=seed, model=model),
    ]
    requests = [kind(model, 3) for kind in kinds for model in models]
    alone = {}
    for model in models:
        plain = build_serving_pipeline(1)
        if model != MODEL:
            plain.load_lora_weights(adapters[model])
        alone |= {index: answer_alone(plain, one) for index, one in enumerate(requests) if one.model == model}
    assert len({str(alone[index]) for index in range(3)}) == 3

    pipe = build_serving_pipeline(1)
    with serving(pipe, adapters=adapters, max_batch_size=3) as engine:
        assert engine.info.model == MODEL and engine.info.adapters == ("one", "two")
        for order in (range(len(requests)), reversed(range(len(requests)))):
            order = [*order]
            answers = asyncio.run(answer_all(engine, [requests[index] for index in order]))
            assert answers == [alone[index] for index in order]
        with pytest.raises(ValueError, match="`model` must be one of tiny, one, two, got 'three'"):
            asyncio.run(answer(engine, generation("a", model="three")))


def test_an_adapter_that_could_not_be_activated_does_not_stay(adapters, monkeypatch):
    """When switching fails half way, nobody gets another adapter than that asked for."""
    pipe = build_serving_pipeline(1)
    plain = answer_alone(pipe, generation("a"))
    with serving(pipe, adapters=adapters) as engine:
        switch = pipe.set_adapters

        def fail(name):
            switch(name)
            raise RuntimeError("half way")

        with monkeypatch.context() as patch:
            patch.setattr(pipe, "set_adapters", fail)
            [error] = asyncio.run(answer_all(engine, [generation("a", model="one")]))
            assert isinstance(error, EngineFailedError)
        assert asyncio.run(answer(engine, generation("a"))) == plain
        assert asyncio.run(answer(engine, generation("a", model="one"))) != plain


def test_wrong_engines_are_refused(pipe, adapters, tmp_path):
    with pytest.raises(ValueError, match="`adapters`: 'tiny' is the name of the model"):
        LocalEngine(pipe, MODEL, adapters={MODEL: adapters["one"]})
    with pytest.raises(ValueError, match=f"{tmp_path} is no adapter"):
        LocalEngine(pipe, MODEL, adapters={"one": str(tmp_path)})
    for name in ("max_batch_size", "max_waiting"):
        with pytest.raises(ValueError, match=f"`{name}` must be a whole number of 1 or more, got 0"):
            LocalEngine(pipe, MODEL, **{name: 0})
    defaults = LocalEngine(pipe, MODEL)
    defaults.close()
    assert defaults.info.defaults["default_size"] == 32 and defaults.info.adapters == ()


def test_a_model_of_bfloat16(pipe):
    """It stays one, and gives what it gives alone."""
    low = copy.deepcopy(pipe).to(torch.bfloat16)
    requests = [generation("a"), edit(picture(32, 32), "green"), chat("draw B"), chat("what is it", max_new_tokens=5)]
    with serving(low, max_batch_size=1) as engine:
        assert {parameter.dtype for parameter in low.mllm.parameters()} == {torch.bfloat16}
        answers = asyncio.run(answer_all(engine, requests))
    assert answers == [answer_alone(low, request) for request in requests]


@pytest.mark.parametrize(
    "request_",
    [generation("a"), edit(picture(32, 32), "green"), chat("what is it", max_new_tokens=3), chat("draw P")],
    ids=["generation", "edit", "text", "chat"],
)
def test_an_offloaded_model_is_brought_before_it_is_used(pipe, request_, device):
    """Where everything is on the CPU anyway, the calls of the hook show it."""
    offloaded = copy.deepcopy(pipe)
    offloaded.enable_model_cpu_offload(device=device)
    with serving(offloaded) as engine:
        hook, calls = offloaded.mllm._hf_hook, []
        bring = hook.pre_forward
        hook.pre_forward = lambda *args, **kwargs: calls.append("brought") or bring(*args, **kwargs)
        for part in (offloaded.mllm.model.language_model, offloaded.mllm.vision_model.encoder):
            part.register_forward_pre_hook(lambda *_: calls.append("used"))
        assert asyncio.run(answer(engine, request_)) == answer_alone(pipe, request_)
    assert calls[0] == "brought" and "used" in calls


# --- everything at once ---


def hammer_requests(pipe: UniWeTokPipeline) -> list:
    """All kinds, of which many look alike and differ in the seed."""
    side = pipe.config.default_size
    hot = {"temperature": 1.3, "top_p": 0.9, "max_new_tokens": 7}
    found = [chat("say something", seed=seed, **hot) for seed in range(3)]
    for seed in range(3):
        found += [generation("a cat", seed), generation("a much longer prompt", seed, negative_prompt="no")]
        found += [edit(picture(side, side, seed), "green", seed), chat("draw P", seed=seed)]
        found.append(chat([picture(side, side, seed), "draw B"], seed=seed, max_new_tokens=9))
    found += [generation("wide", width=2 * side), edit(picture(side, side), "wide", width=2 * side)]
    found.append(edit(picture(side, side), "red", image_guidance_scale=1.5, negative_prompt="no"))
    return [*found, chat("what is it", max_new_tokens=40), chat("say M")]


@pytest.mark.parametrize("max_batch_size", [3, pytest.param(16, marks=pytest.mark.slow)])
def test_eight_clients_of_all_kinds(pipe, max_batch_size, quick_switches):
    """Half of them leave again and again. Every answer is that of its seed, and nothing is lost."""
    requests = hammer_requests(pipe)
    with serving(pipe, max_batch_size=1) as engine:  # what is drawn from has no other reference
        expected = [asyncio.run(answer(engine, request)) for request in requests]
    for request, wanted in zip(requests[3:], expected[3:], strict=True):
        assert wanted == answer_alone(pipe, request)
    counts = {"answered": 0, "left": 0, "refused": 0, "bad": 0}

    async def client(engine: LocalEngine, number: int, is_enough: Callable[[], bool]) -> None:
        chance = random.Random(number)
        while not is_enough():
            index = chance.randrange(len(requests))
            patience = chance.choice([0.0, 0.01, 0.05, 0.2]) if number % 2 else 110
            try:
                async with asyncio.timeout(patience):
                    if chance.random() < 0.1:
                        with pytest.raises(ValueError, match="`prompt` must not be empty"):
                            await answer(engine, generation(""))
                        counts["bad"] += 1
                    assert await answer(engine, requests[index]) == expected[index]
                    counts["answered"] += 1
            except TimeoutError:
                assert number % 2, "an answer was lost"
                counts["left"] += 1
            except QueueFullError:
                counts["refused"] += 1
                await asyncio.sleep(0.01)

    async def run() -> None:
        with serving(pipe, max_batch_size=max_batch_size, max_waiting=5, batch_wait=0.002) as engine:
            end = time.monotonic() + 2

            def is_enough() -> bool:
                return time.monotonic() > end and counts["answered"] >= 30 and counts["left"] >= 30

            async with asyncio.timeout(120), asyncio.TaskGroup() as group:
                for number in range(8):
                    group.create_task(client(engine, number, is_enough))
            await until(lambda: is_empty(engine))

    asyncio.run(run())
