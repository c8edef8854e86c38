# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The web page of `uniwetok app`: converse, generate, edit, describe, reconstruct, and look at the bits. Needs gradio.

- One job runs at a time; others wait in gradio's queue and see their place in it.
- What a visitor makes lives in the visitor's own session. Files are deleted after an hour.
- Jobs run in a thread that reports each finished patch: previews, progress, and a way to stop.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator

import torch
from PIL import Image

from .data.images import ImageReadError, read_image
from .embedded import EXAMPLES
from .evaluation.reconstruction import reconstruct
from .pipelines import UniWeTokConversation, UniWeTokEditPipeline, UniWeTokPipeline
from .pipelines.writing import answer_question
from .visualization import bit_planes


LARGEST_UPLOAD = "20mb"
LARGEST_SIDE = 1024  # pixels; larger uploads are scaled down, so that nobody waits for minutes
NUM_PREVIEWS = 4
KEPT_SECONDS = 3600
CSS = """
footer {display: none}
.details {color: var(--body-text-color-subdued); font-size: 0.9em}
.picture img {width: 100%; height: 100%; object-fit: contain}
"""  # small pictures fill their frame


class Studio:
    """The jobs behind the page, which run without it.

    Args:
        pipe: the pipeline that all visitors share.
    """

    def __init__(self, pipe: UniWeTokPipeline):
        self.pipe = pipe
        self.edit_pipe = UniWeTokEditPipeline.from_pipe(pipe)
        for one in (self.pipe, self.edit_pipe):
            one.set_progress_bar_config(disable=True)

    def generate(self, prompt: str, seed: int, steps: int, guidance: float) -> Iterator[tuple[Image.Image, str]]:
        """Previews and the picture, each with a line of details."""
        call = {"prompt": check_not_empty(prompt, "Write what to generate.")}
        yield from self._previewed(self.pipe, call, seed, steps, guidance)

    def edit(
        self, picture: Image.Image, instruction: str, seed: int, steps: int, guidance: float
    ) -> Iterator[tuple[Image.Image, str]]:
        """Previews and the changed picture, each with a line of details."""
        prompt = check_not_empty(instruction, "Write what to change.")
        (source,) = self.edit_pipe.encode_image(picture)
        call = {"image": source, "prompt": prompt}
        yield from self._previewed(self.edit_pipe, call, seed, steps, guidance, source.content_size)

    def describe(self, picture: Image.Image, question: str) -> str:
        """The answer to a question about a picture."""
        question = check_not_empty(question, "Write a question.")
        return answer_question(self.pipe.mllm, self.pipe.processor, [picture], question)[0]

    def reconstruct(self, picture: Image.Image, seed: int) -> tuple[Image.Image, Image.Image, str]:
        """A picture decoded from its codes, its bit planes, and a line of details."""
        (result,) = reconstruct(self.pipe.mllm.vision_model, [picture], int(seed))
        _, height, width = result.codes.shape
        details = f"{picture.width} x {picture.height} pixels, {height} x {width} tokens, {result.num_bytes} bytes"
        return result.result, bit_planes(result.codes), details

    def converse(
        self, talk: UniWeTokConversation | None, text: str, pictures: list[Image.Image], seed: int
    ) -> Iterator[tuple[UniWeTokConversation, str, list[Image.Image], bool]]:
        """Goes on with a conversation: (conversation, text, pictures, whether it is the whole answer), previews
        first."""
        talk = talk or UniWeTokConversation(self.pipe)

        def say(callback):
            return talk.say(text, pictures, callback_on_step_end=callback, **self._defaults(seed))

        for preview, reply in self._reported(say):
            if reply is None:
                yield talk, "", [preview[0]], False
            else:
                yield talk, reply.text, reply.images, True

    def _defaults(self, seed: int) -> dict:
        return {"generator": torch.Generator().manual_seed(int(seed))}

    def _previewed(
        self, pipe, call: dict, seed: int, steps: int, guidance: float, content_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[Image.Image, str]]:
        """Previews of a call of `pipe` and its result, each with a line of details. Of an edit, previews are cut to
        the (height, width) that the result will have."""
        start = time.monotonic()

        def work(callback):
            return pipe(
                **call,
                num_inference_steps=int(steps),
                guidance_scale=float(guidance),
                callback_on_step_end=callback,
                **self._defaults(seed),
            )

        for preview, output in self._reported(work):
            if output is None:
                shown, step, count = preview
                if content_size is not None:
                    shown = shown.crop((0, 0, content_size[1], content_size[0]))
                yield shown, f"{step} of {count} patches"
            else:
                picture = output.images[0]
                description = f"{output.descriptions[0]}; " if output.descriptions else ""
                seconds = time.monotonic() - start
                yield picture, f"{description}{picture.width} x {picture.height} pixels in {seconds:.1f} s"

    def _reported(self, work: Callable) -> Iterator[tuple[tuple | None, object]]:
        """Runs `work(callback)` in a thread; yields ((preview, patch, patches), None) now and then, and at last (None,
        result). Whoever closes this iterator stops the work, and waits until it has stopped."""
        events, stopped = queue.Queue(), threading.Event()

        def callback(pipe, step: int, count: int, tensors: dict) -> None:
            pipe._interrupt = stopped.is_set()
            if (step + 1) % max(1, count // NUM_PREVIEWS) == 0 and step + 1 < count:
                preview = self.pipe.decode(tensors["codes"][:1], torch.Generator().manual_seed(0), "pil")[0]
                events.put((preview, step + 1, count))

        def run() -> None:
            try:
                with torch.no_grad():
                    events.put(_Done(work(callback)))
            except BaseException as error:  # raised again in the thread that waits
                events.put(_Done(error=error))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while not isinstance(event := events.get(), _Done):
                yield event, None
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


def check_not_empty(text: str | None, message: str) -> str:
    """`text`.

    Raises:
        ValueError: with this `message` when it is empty.
    """
    if not text or not text.strip():
        raise ValueError(message)
    return text


def read_upload(path: str | None) -> Image.Image:
    """An uploaded picture, scaled down to `LARGEST_SIDE`.

    Raises:
        ValueError: a sentence for the visitor, when there is none or it is no picture.
    """
    if path is None:
        raise ValueError("Choose a picture first.")
    try:
        picture = read_image(path)
    except ImageReadError as error:
        raise ValueError(f"This file can't be used: {str(error).split(': ', 1)[-1]}.") from None
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return picture


def build_app(pipe: UniWeTokPipeline, name: str):
    """The page, a `gradio.Blocks`; `launch` it with the options of [`launch_options`].

    Args:
        pipe: the model behind it.
        name: what to call the model. For an embedded one the page suggests prompts.
    """
    import gradio as gr

    studio, widgets = Studio(pipe), _Widgets(gr, pipe, EXAMPLES.get(name, {}))
    with gr.Blocks(title=f"UniWeTok: {name}", delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown(
            f"# UniWeTok\nPictures as 128-bit tokens, and one model that reads and generates them: **{name}**."
        )
        for tab in (_conversation_tab, _generation_tab, _edit_tab, _describe_tab, _reconstruct_tab):
            tab(gr, studio, widgets)
    page.queue(default_concurrency_limit=1)
    return page


class _Widgets:
    """The building blocks of the tabs; `examples` is an entry of `embedded.EXAMPLES`, or empty."""

    def __init__(self, gr, pipe: UniWeTokPipeline, examples: dict):
        self.gr, self.defaults, self.examples = gr, pipe.config, examples

    def with_messages(self, job: Callable) -> Callable:
        """`job` with its errors shown to the visitor as messages."""

        def run(*inputs):
            try:
                yield from job(*inputs)
            except (ValueError, MemoryError) as error:
                message = str(error) or "There is not enough memory for this."
                raise self.gr.Error(message, print_exception=False) from None

        return run

    def wire(self, triggers: list, job: Callable, inputs: list, outputs: list, stop) -> None:
        """Runs `job` on any of the triggers, until it is done or stopped."""
        event = self.gr.on(triggers, self.with_messages(job), inputs, outputs, show_progress="minimal")
        stop.click(None, cancels=[event])

    def generation_settings(self) -> list:
        gr, steps, guidance = (
            self.gr,
            self.defaults.default_num_inference_steps,
            self.defaults.default_guidance_scale,
        )
        with gr.Accordion("Settings", open=False):
            return [
                gr.Number(0, label="Seed", precision=0, minimum=0, info="another seed, another picture"),
                gr.Slider(1, 50, steps, step=1, label="Diffusion steps per token"),
                gr.Slider(1, 15, guidance, step=0.5, label="Guidance: weight of the text"),
            ]

    def buttons(self, label: str):
        with self.gr.Row():
            return self.gr.Button(label, variant="primary"), self.gr.Button("Stop", variant="stop")

    def upload(self, label: str):
        return self.gr.Image(type="filepath", label=label, sources=["upload", "clipboard"], height=280)

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
            return [self.result(label), self.gr.Markdown(elem_classes="details")]


def _generation_tab(gr, studio: Studio, widgets: _Widgets) -> None:
    with gr.Tab("Generate"), gr.Row():
        with gr.Column():
            prompts = widgets.examples.get("prompts", [])
            prompt = gr.Textbox(label="What to generate", lines=1, placeholder=prompts[0] if prompts else None)
            generate, stop = widgets.buttons("Generate")
            settings = widgets.generation_settings()
            if prompts:
                gr.Examples([[example] for example in prompts], prompt)
        results = widgets.result_with_details("Result")
    widgets.wire([generate.click, prompt.submit], studio.generate, [prompt, *settings], results, stop)


def _edit_tab(gr, studio: Studio, widgets: _Widgets) -> None:
    with gr.Tab("Edit"), gr.Row():
        with gr.Column():
            source = widgets.upload("Picture to change")
            instruction = gr.Textbox(label="What to change", lines=1, placeholder=widgets.examples.get("edit"))
            change, stop = widgets.buttons("Edit")
            settings = widgets.generation_settings()
        results = widgets.result_with_details("Result")

    def edit(path, *rest):
        yield from studio.edit(read_upload(path), *rest)

    widgets.wire([change.click, instruction.submit], edit, [source, instruction, *settings], results, stop)


def _describe_tab(gr, studio: Studio, widgets: _Widgets) -> None:
    with gr.Tab("Describe"), gr.Row():
        with gr.Column():
            shown = widgets.upload("Picture")
            question = gr.Textbox("what is this?", label="Question", lines=1)
            ask, stop = widgets.buttons("Ask")
        answer = gr.Textbox(label="Answer", interactive=False, lines=3)

    def describe(path, text):
        yield studio.describe(read_upload(path), text)

    widgets.wire([ask.click, question.submit], describe, [shown, question], [answer], stop)


def _reconstruct_tab(gr, studio: Studio, widgets: _Widgets) -> None:
    with gr.Tab("Reconstruct"):
        with gr.Row():
            with gr.Column():
                original = widgets.upload("Picture")
                rebuild, stop = widgets.buttons("Reconstruct")
                seed = gr.Number(0, label="Seed of the decoder's noise", precision=0, minimum=0)
            rebuilt, details = widgets.result_with_details("From its tokens")
        gr.Markdown("The bits of its tokens, one map of the picture per bit: black is -1, white +1.")
        planes = widgets.result("Bit planes", None)

    def rebuild_it(path, number):
        yield studio.reconstruct(read_upload(path), number)

    widgets.wire([rebuild.click], rebuild_it, [original, seed], [rebuilt, planes, details], stop)


def _conversation_tab(gr, studio: Studio, widgets: _Widgets) -> None:
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
    talk = gr.State(None)

    def picture_message(role: str, picture: Image.Image) -> dict:
        return {"role": role, "content": gr.Image(picture, height=160, show_label=False)}

    def say(conversation, message, number, shown):
        message = message or {}
        pictures = [read_upload(path) for path in message.get("files") or []]
        text = message.get("text") or ""
        if not pictures:
            check_not_empty(text, "Say something, or show a picture.")
        shown = [*(shown or []), *(picture_message("user", picture) for picture in pictures)]
        if text.strip():
            shown.append({"role": "user", "content": text})
        yield conversation, shown, None
        for conversation, answer, generated, _ in studio.converse(conversation, text, pictures, number):
            messages = [picture_message("assistant", picture) for picture in generated]
            messages += [{"role": "assistant", "content": answer}] if answer else []
            yield conversation, [*shown, *messages], gr.skip()  # what the visitor types meanwhile stays

    event = box.submit(widgets.with_messages(say), [talk, box, seed, chat], [talk, chat, box], show_progress="minimal")
    stop.click(None, cancels=[event])
    again.click(lambda: (None, []), None, [talk, chat], cancels=[event])


def launch_options() -> dict:
    """Options of `launch` that belong to the page: limits, and no calls to other machines."""
    return {"max_file_size": LARGEST_UPLOAD, "css": CSS, "share": False, "footer_links": []}


__all__ = ["Studio", "build_app", "launch_options", "read_upload"]
