# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The web page of `uniwetok app`: converse, generate, edit, describe, reconstruct, and look at the bits. Needs gradio.

- One job of all tabs runs at a time (of a server's models several); others wait in gradio's queue, which has an end,
  and see their place in it.
- What a visitor makes lives in the visitor's own session. Files are deleted after an hour.
- Jobs run in a thread that reports each finished patch: previews, progress, and a way to stop. One that takes too long
  is stopped.
- Visitors read sentences that are meant for them; what else goes wrong is in the server's log.
- The API has a name for each job (`/generate`, `/edit`, ...) and for each of its parameters.
"""

import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from PIL import Image

from .data.images import ImageReadError, read_strange_image
from .embedded import EXAMPLES
from .evaluation.reconstruction import reconstruct
from .pipelines import UniWeTokConversation, UniWeTokEditPipeline, UniWeTokPipeline
from .pipelines.writing import answer_question
from .visualization import bit_planes


LARGEST_UPLOAD = 20_000_000  # bytes
MOST_PICTURES = 4  # in one turn of a conversation
MOST_CACHES = 8  # conversations that keep the keys and values of what was read
LONGEST_TEXT = 2000  # characters
MOST_STEPS = 50
LARGEST_SEED = 2**32 - 1
JOB_SECONDS = 600
MOST_WAITING = 100  # jobs in the queue
LARGEST_SIDE = 1024  # pixels; larger uploads are scaled down, so that nobody waits for minutes
NUM_PREVIEWS = 4
KEPT_SECONDS = 3600
CSS = """
footer {display: none}
.details {color: var(--body-text-color-subdued); font-size: 0.9em}
.picture img {width: 100%; height: 100%; object-fit: contain}
"""  # small pictures fill their frame


logger = logging.getLogger(__name__)


class Studio:
    """The jobs behind the page, which run without it. `RemoteStudio` has those of a server.

    Args:
        pipe: the pipeline that all visitors share.

    Attributes:
        defaults: of the pipeline, `default_num_inference_steps` and `default_guidance_scale` among them.
        num_at_once: jobs of the page that run at a time.
    """

    num_at_once = 1

    def __init__(self, pipe: UniWeTokPipeline):
        self.pipe, self.defaults = pipe, pipe.config
        self.edit_pipe = UniWeTokEditPipeline.from_pipe(pipe)
        self._cached: list[UniWeTokConversation] = []  # the one that spoke last at the end
        for one in (self.pipe, self.edit_pipe):
            one.set_progress_bar_config(disable=True)

    def generate(self, prompt: str, seed: int, steps: int, guidance: float) -> Iterator[tuple[Image.Image, str]]:
        """Previews and the picture, each with a line of details."""
        call = {"prompt": check_text(prompt, "Write what to generate.")}
        yield from self._previewed(self.pipe, call, seed, steps, guidance)

    def edit(
        self, picture: Image.Image, instruction: str, seed: int, steps: int, guidance: float
    ) -> Iterator[tuple[Image.Image, str]]:
        """Previews and the changed picture, each with a line of details."""
        prompt = check_text(instruction, "Write what to change.")
        (source,) = self.edit_pipe.encode_image(picture)
        call = {"image": source, "prompt": prompt}
        yield from self._previewed(self.edit_pipe, call, seed, steps, guidance, source.content_size)

    def describe(self, picture: Image.Image, question: str) -> Iterator[str]:
        """The answer to a question about a picture."""
        question = check_text(question, "Write a question.")
        yield answer_question(self.pipe.mllm, self.pipe.processor, [picture], question)[0]

    def reconstruct(self, picture: Image.Image, seed: int) -> tuple[Image.Image, Image.Image, str]:
        """A picture decoded from its codes, its bit planes, and a line of details."""
        (result,) = reconstruct(self.pipe.mllm.vision_model, [picture], check_seed(seed))
        _, height, width = result.codes.shape
        details = f"{picture.width} x {picture.height} pixels, {height} x {width} tokens, {result.num_bytes} bytes"
        return result.result, bit_planes(result.codes), details

    def converse(
        self, talk: UniWeTokConversation | None, text: str, pictures: list[Image.Image], seed: int
    ) -> Iterator[tuple[UniWeTokConversation, str, list[Image.Image], bool]]:
        """Goes on with a conversation: (conversation, text, pictures, whether it is the whole answer), previews
        first."""
        talk = talk or UniWeTokConversation(self.pipe)
        generator = torch.Generator().manual_seed(check_seed(seed))

        def say(callback):
            return talk.say(text, pictures, callback_on_step_end=callback, generator=generator)

        for preview, reply in self._reported(say):
            if reply is None:
                yield talk, "", [preview[0]], False
            else:
                self._keep_cache_of(talk)
                yield talk, reply.text, reply.images, True

    def _keep_cache_of(self, talk: UniWeTokConversation) -> None:
        """Of the conversations of all visitors the last few keep what the model has read; others read it again."""
        self._cached = [one for one in self._cached if one is not talk] + [talk]
        while len(self._cached) > MOST_CACHES:
            self._cached.pop(0).forget_cache()

    def _previewed(
        self, pipe, call: dict, seed: int, steps: int, guidance: float, content_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[Image.Image, str]]:
        """Previews of a call of `pipe` and its result, each with a line of details. Of an edit, previews are cut to
        the (height, width) that the result will have."""
        start = time.monotonic()
        settings = check_settings(seed, steps, guidance)
        generator = torch.Generator().manual_seed(settings.pop("seed"))

        def work(callback):
            return pipe(**call, **settings, generator=generator, callback_on_step_end=callback)

        for preview, output in self._reported(work):
            if output is None:
                shown, step, count = preview
                if content_size is not None:
                    shown = shown.crop((0, 0, content_size[1], content_size[0]))
                yield shown, f"{step} of {count} patches"
            else:
                description = output.descriptions[0] if output.descriptions else None
                yield output.images[0], details_of(output.images[0], description, time.monotonic() - start)

    def _reported(self, work: Callable) -> Iterator[tuple[tuple | None, object]]:
        """Runs `work(callback)` in a thread; yields ((preview, patch, patches), None) now and then, and at last (None,
        result). Whoever closes this iterator stops the work, and waits until it has stopped.

        Raises:
            ValueError: when it took more than `JOB_SECONDS`; it was stopped then.
        """
        events, stopped = queue.Queue(), threading.Event()
        deadline = time.monotonic() + JOB_SECONDS

        def callback(pipe, step: int, count: int, tensors: dict) -> None:
            pipe._interrupt = stopped.is_set() or time.monotonic() > deadline
            if (step + 1) % max(1, count // NUM_PREVIEWS) == 0 and step + 1 < count:
                preview = self.pipe.decode(tensors["codes"][:1], torch.Generator().manual_seed(0), "pil")[0]
                events.put((preview, step + 1, count))

        def run() -> None:
            try:
                with torch.no_grad():
                    events.put(_Done(work(callback)))
            except BaseException as error:  # raised again in the thread that waits
                events.put(_Done(error=error))

        thread = threading.Thread(target=run, name="uniwetok-job", daemon=True)
        thread.start()
        try:
            while not isinstance(event := events.get(), _Done):
                yield event, None
            if time.monotonic() > deadline:
                raise ValueError(f"This took more than {JOB_SECONDS} seconds and was stopped. Fewer steps take less.")
            if event.error is not None:
                raise event.error
            yield None, event.result
        finally:
            stopped.set()
            thread.join()


class _Done:
    """The last event of a job."""

    def __init__(self, result=None, error: BaseException | None = None):
        self.result, self.error = result, error


def check_text(text: str | None, message: str) -> str:
    """`text`.

    Raises:
        ValueError: with this `message` when it is empty; when it is too long.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(message)
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"This text has {len(text):,} characters; at most {LONGEST_TEXT:,} are read.")
    return text


def check_number(name: str, value: float | None, lowest: float, highest: float) -> float:
    """`value`.

    Raises:
        ValueError: when it is none from `lowest` to `highest`.
    """
    if not isinstance(value, int | float) or not lowest <= value <= highest:
        raise ValueError(f"`{name}` must be a number from {lowest} to {highest}, got {value}.")
    return value


def check_seed(seed: float | None) -> int:
    """`seed`.

    Raises:
        ValueError: when it is out of range.
    """
    return int(check_number("seed", seed, 0, LARGEST_SEED))


def check_settings(seed: float | None, steps: float | None, guidance: float | None) -> dict[str, Any]:
    """`seed`, `num_inference_steps` and `guidance_scale` of a generation.

    Raises:
        ValueError: naming the one that is out of range.
    """
    return {
        "num_inference_steps": int(check_number("steps", steps, 1, MOST_STEPS)),
        "guidance_scale": float(check_number("guidance", guidance, 0, 100)),
        "seed": check_seed(seed),
    }


def details_of(picture: Image.Image, description: str | None, seconds: float) -> str:
    """The line below a generated picture; `description` is what the model wrote before it, if it did."""
    words = f"{description}; " if description else ""
    return f"{words}{picture.width} x {picture.height} pixels in {seconds:.1f} s"


def read_upload(path: str | None) -> Image.Image:
    """An uploaded picture, scaled down to `LARGEST_SIDE`.

    Raises:
        ValueError: a sentence for the visitor, when there is none, it is too large, or no picture.
    """
    if path is None:
        raise ValueError("Choose a picture first.")
    try:
        if os.path.getsize(path) > LARGEST_UPLOAD:
            raise ValueError(f"This file is too large; at most {LARGEST_UPLOAD // 10**6} MB are read.")
        picture = read_strange_image(path)
    except OSError:
        raise ValueError("This file can't be used: it is no longer there. Choose it again.") from None
    except ImageReadError as error:
        raise ValueError(f"This file can't be used: {str(error).split(': ', 1)[-1]}.") from None
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return picture


def build_app(pipe: UniWeTokPipeline, name: str):
    """The page, a `gradio.Blocks`; `launch` it with the options of [`launch_options`].

    Args:
        pipe: the model behind it.
        name: what to call the model; of a folder the page shows the last part alone. For an embedded one the page
            suggests prompts.
    """
    shown = name
    if os.path.exists(name):
        path = os.path.realpath(name)
        shown = os.path.basename(os.path.dirname(path) if os.path.basename(path) == "pipeline" else path)
    return build_page({shown: Studio(pipe)}, EXAMPLES.get(name, {}), (*TABS, _reconstruct_tab))


def build_page(studios: Mapping[str, Any], examples: dict, tabs: tuple[Callable, ...]):
    """The page of one or several models, a `gradio.Blocks`.

    Args:
        studios: names of the models and their jobs ([`Studio`] or `RemoteStudio`). The title names the first; where
            there are several, the visitor chooses.
        examples: an entry of `embedded.EXAMPLES`, or empty.
        tabs: `TABS`, or more of them.
    """
    import gradio as gr

    name = next(iter(studios))
    with gr.Blocks(title=f"UniWeTok: {name}", delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown(
            f"# UniWeTok\nPictures as 128-bit tokens, and one model that reads and generates them: **{name}**."
        )
        widgets = _Widgets(gr, studios, examples)
        for tab in tabs:
            tab(gr, widgets)
    page.queue(max_size=MOST_WAITING)
    return page


class _Widgets:
    """The building blocks of the tabs; the arguments are those of [`build_page`].

    Attributes:
        models: the choice of a model, where there are several: an input of each job, the last one.
    """

    def __init__(self, gr, studios: Mapping[str, Any], examples: dict):
        self.gr, self.studios, self.examples = gr, studios, examples
        names = [*studios]
        self.models = [gr.Dropdown(names, value=names[0], label="Model")] if len(names) > 1 else []

    def studio(self, model: str | None = None) -> Any:
        """The jobs of a model, of the first when None."""
        return self.studios[model or next(iter(self.studios))]

    def as_event(self, job: Callable, num_outputs: int) -> Callable:
        """`job` with its errors shown to the visitor as messages. What is not meant for visitors, and may hold paths
        of the server, is logged."""
        unchanged = (self.gr.skip(),) * num_outputs

        @functools.wraps(job)
        def run(*inputs, **named):
            yield unchanged if num_outputs > 1 else unchanged[0]  # gradio can't stop what has not yielded yet
            try:
                yield from job(*inputs, **named)
            except ValueError as error:
                raise self.gr.Error(str(error), print_exception=False) from None
            except (MemoryError, torch.OutOfMemoryError):
                raise self.gr.Error("There is not enough memory for this.", print_exception=False) from None
            except Exception:
                logger.exception("A job of the web page failed.")
                raise self.gr.Error("Something went wrong on the server.", print_exception=False) from None

        return run

    def wire(self, name: str, triggers: list, job: Callable, inputs: list, outputs: list, stop):
        """Runs `job` on any of the triggers, until it is done or stopped; `/name` of the API."""
        event = self.gr.on(
            triggers,
            self.as_event(job, len(outputs)),
            inputs,
            outputs,
            show_progress="minimal",
            api_name=name,
            api_description=(job.__doc__ or "").partition("\n")[0],
            concurrency_id="model",  # shared by all tabs
            concurrency_limit=self.studio().num_at_once,
        )
        stop.click(None, cancels=[event])
        return event

    def generation_settings(self) -> list:
        gr, defaults = self.gr, self.studio().defaults
        steps, guidance = defaults["default_num_inference_steps"], defaults["default_guidance_scale"]
        with gr.Accordion("Settings", open=False):
            return [
                gr.Number(0, label="Seed", precision=0, minimum=0, info="another seed, another picture"),
                gr.Slider(1, MOST_STEPS, steps, step=1, label="Diffusion steps per token"),
                gr.Slider(1, 15, guidance, step=0.5, label="Guidance: weight of the text"),
            ]

    def buttons(self, label: str):
        with self.gr.Row():
            return self.gr.Button(label, variant="primary"), self.gr.Button("Stop", variant="stop")

    def upload(self, label: str):
        image = self.gr.Image(type="filepath", label=label, sources=["upload", "clipboard"], height=280)
        # The file as it is: gradio would decode it of any size, and tell paths of the server when it can't.
        image.preprocess = lambda payload: None if payload is None else payload.path
        return image

    def result(self, label: str, height: int | None = 400):
        return self.gr.Image(
            label=label,
            interactive=False,
            height=height,
            show_label=height is not None,
            buttons=["download", "fullscreen"],
            elem_classes="picture",
            format="png",
        )

    def result_with_details(self, label: str) -> list:
        with self.gr.Column():
            return [self.result(label), self.gr.Markdown(label="Details", elem_classes="details")]


def _generation_tab(gr, widgets: _Widgets) -> None:
    with gr.Tab("Generate"), gr.Row():
        with gr.Column():
            prompts = widgets.examples.get("prompts", [])
            prompt = gr.Textbox(
                label="What to generate", lines=1, max_length=LONGEST_TEXT, placeholder=prompts[0] if prompts else None
            )
            generate, stop = widgets.buttons("Generate")
            settings = widgets.generation_settings()
            if prompts:
                gr.Examples([[example] for example in prompts], prompt)
        results = widgets.result_with_details("Result")

    def generate_it(prompt, seed, steps, guidance, model=None):
        """Previews and the picture, each with a line of details."""
        yield from widgets.studio(model).generate(prompt, seed, steps, guidance)

    inputs = [prompt, *settings, *widgets.models]
    widgets.wire("generate", [generate.click, prompt.submit], generate_it, inputs, results, stop)


def _edit_tab(gr, widgets: _Widgets) -> None:
    with gr.Tab("Edit"), gr.Row():
        with gr.Column():
            source = widgets.upload("Picture to change")
            instruction = gr.Textbox(
                label="What to change", lines=1, max_length=LONGEST_TEXT, placeholder=widgets.examples.get("edit")
            )
            change, stop = widgets.buttons("Edit")
            settings = widgets.generation_settings()
        results = widgets.result_with_details("Result")

    def edit(picture, prompt, seed, steps, guidance, model=None):
        """Changes a picture: previews, then the result, each with a line of details."""
        yield from widgets.studio(model).edit(read_upload(picture), prompt, seed, steps, guidance)

    inputs = [source, instruction, *settings, *widgets.models]
    widgets.wire("edit", [change.click, instruction.submit], edit, inputs, results, stop)


def _describe_tab(gr, widgets: _Widgets) -> None:
    with gr.Tab("Describe"), gr.Row():
        with gr.Column():
            shown = widgets.upload("Picture")
            question = gr.Textbox("what is this?", label="Question", lines=1, max_length=LONGEST_TEXT)
            ask, stop = widgets.buttons("Ask")
        answer = gr.Textbox(label="Answer", interactive=False, lines=3)

    def describe(picture, question, model=None):
        """Answers a question about a picture."""
        yield from widgets.studio(model).describe(read_upload(picture), question)

    inputs = [shown, question, *widgets.models]
    widgets.wire("describe", [ask.click, question.submit], describe, inputs, [answer], stop)


def _reconstruct_tab(gr, widgets: _Widgets) -> None:
    with gr.Tab("Reconstruct"):
        with gr.Row():
            with gr.Column():
                original = widgets.upload("Picture")
                rebuild, stop = widgets.buttons("Reconstruct")
                seed = gr.Number(0, label="Seed of the decoder's noise", precision=0, minimum=0)
            rebuilt, details = widgets.result_with_details("From its tokens")
        gr.Markdown("The bits of its tokens, one map of the picture per bit: black is -1, white +1.")
        planes = widgets.result("Bit planes", None)

    def reconstruct_it(picture, seed):
        """A picture decoded from its codes, its bit planes, and a line of details."""
        yield widgets.studio().reconstruct(read_upload(picture), seed)

    widgets.wire("reconstruct", [rebuild.click], reconstruct_it, [original, seed], [rebuilt, planes, details], stop)


def _conversation_tab(gr, widgets: _Widgets) -> None:
    """Chat with text and pictures in both directions."""
    with gr.Tab("Conversation"):
        chat = gr.Chatbot(
            label="Conversation",
            height=460,
            feedback_options=None,
            buttons=["copy"],
            placeholder="Say something below.",
        )
        box = gr.MultimodalTextbox(
            label="Say something",
            placeholder=widgets.examples.get("turn"),
            file_types=["image"],
            file_count="multiple",
            submit_btn="Send",
        )
        with gr.Row():
            stop = gr.Button("Stop", variant="stop")
            again = gr.Button("Start over")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    # The conversation, and what the chat shows of it: (role, picture or text). Turns that were stopped are in neither.
    session = gr.State((None, []), time_to_live=KEPT_SECONDS)

    def as_messages(shown: list[tuple[str, Image.Image | str]]) -> list[dict]:
        return [
            {
                "role": role,
                "content": one if isinstance(one, str) else gr.Image(one, height=160, show_label=False, format="png"),
            }
            for role, one in shown
        ]

    def converse(session, message, seed=0, model=None):
        """Goes on with the conversation of this session: the chat with previews, then with the answer."""
        talk, before = session
        message = message or {}
        files, text = message.get("files") or [], message.get("text") or ""
        if len(files) > MOST_PICTURES:
            raise ValueError(f"These are {len(files)} pictures; a turn may have {MOST_PICTURES}.")
        pictures = [read_upload(path) for path in files]
        if text or not pictures:
            check_text(text, "Say something, or show a picture.")
        asked = [*before, *(("user", one) for one in [*pictures, text] if one)]
        yield session, as_messages(asked), None
        for talk, answer, generated, is_whole in widgets.studio(model).converse(talk, text, pictures, seed):
            if not (answer or generated or is_whole):  # nothing new
                yield gr.skip(), gr.skip(), gr.skip()
                continue
            shown = [*asked, *(("assistant", one) for one in [*generated, answer] if one)]
            # What the visitor types meanwhile stays.
            yield (talk, shown if is_whole else before), as_messages(shown), gr.skip()

    inputs = [session, box, seed, *widgets.models]
    event = widgets.wire("converse", [box.submit], converse, inputs, [session, chat, box], stop)
    restarts = [again.click, chat.clear]
    gr.on(restarts, lambda: ((None, []), []), None, [session, chat], cancels=[event], api_name="start_over")


TABS = (_conversation_tab, _generation_tab, _edit_tab, _describe_tab)


def launch_options() -> dict:
    """Options of `launch` that belong to the page: limits, and no calls to other machines."""
    return {"max_file_size": LARGEST_UPLOAD, "css": CSS, "share": False, "footer_links": []}


__all__ = ["TABS", "Studio", "build_app", "build_page", "launch_options", "read_upload"]
