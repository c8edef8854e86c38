# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Text and pictures to the inputs of the unified model (docs/method.md 3.1).

The prompt format lives here and nowhere else. It is not Qwen3's own chat template, which can insert thinking blocks
and separators that the published models never saw:

    <|im_start|>user\\n{text}<|im_end|>\\n<|im_start|>assistant\\n<|vision_start|><|res_h|><|res_w|><|query_1|>...

A picture is `<|vision_start|><|res_h|><|res_w|><|query_1|>...<|query_{P-1}|>`, one `<|image_pad|>` a token,
`<|vision_end|>`. Pictures in an assistant's turn are what the model has to draw; pictures in other turns are what it
reads.
"""

import torch
from torch.nn import functional as F
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.tokenization_utils_base import TextInput

from .configuration_uniwetok import UniWeTokConfig
from .image_processing_uniwetok import UniWeTokImageProcessor, UniWeTokImageProcessorKwargs, plan_sizes


CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif item['type'] == 'text' -%}
                {{- item['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if picture_tokens is defined and picture_tokens -%}
        {{- '<|vision_start|>' + picture_tokens -}}
    {%- endif -%}
{%- endif -%}
"""


class UniWeTokProcessorKwargs(ProcessingKwargs, total=False):
    """
    return_labels (`bool`, *optional*, defaults to `False`):
        Whether to return `labels`: the ids of the assistant's text, -100 elsewhere.
    """

    images_kwargs: UniWeTokImageProcessorKwargs  # ty: ignore[invalid-typed-dict-field]  (as in transformers)
    return_labels: bool


class UniWeTokProcessor(ProcessorMixin):
    r"""
    Args:
        image_processor ([`UniWeTokImageProcessor`]): its stride is a multiple of `stride` x `patch_size`.
        tokenizer: text tokenizer that has the vision, size and query tokens.
        chat_template (`str`, *optional*): this class's own when not given.
        patch_size (`int`, defaults to 1): side p of the square of tokens that one step draws.
        stride (`int`, defaults to 32): pixels of one token's side.

    Raises:
        ValueError: when the image processor's sizes don't fit the patches, or the vocabulary lacks a token.
    """

    valid_processor_kwargs = UniWeTokProcessorKwargs
    text_kwargs = {"padding_side": "left", "return_tensors": "pt", "padding": True}
    images_kwargs = {"return_tensors": "pt"}
    return_labels = False

    def __init__(
        self, image_processor, tokenizer, chat_template=None, patch_size: int = 1, stride: int = 32, **kwargs
    ):
        self.patch_size = patch_size
        self.stride = stride
        if image_processor.stride % (stride * patch_size):
            raise ValueError(
                f"`image_processor.stride`={image_processor.stride} must be a multiple of `stride` x `patch_size` = "
                f"{stride * patch_size}: patches of {patch_size} x {patch_size} tokens tile the picture."
            )
        self.image_token = "<|image_pad|>"
        names = ["<|image_pad|>", "<|vision_start|>", "<|im_start|>", "<|im_end|>", "<|res_1|>"]
        names += [f"<|query_{i + 1}|>" for i in range(patch_size**2 - 1)]
        vocabulary = tokenizer.get_vocab()
        if missing := [name for name in names if name not in vocabulary]:
            raise ValueError(f"`tokenizer` lacks the tokens {', '.join(missing)}.")
        self.image_token_id, self.vision_start_token_id, self.turn_token_id, self.turn_end_token_id = (
            vocabulary[name] for name in names[:4]
        )
        self.num_size_tokens = sum(name.startswith("<|res_") for name in vocabulary)
        # What is written comes after the text. Many vocabularies say "right", which would win over the default above.
        tokenizer.padding_side = "left"
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput] | None = None,
        picture_sizes: list[tuple[int, int]] | None = None,
        **kwargs: Unpack[UniWeTokProcessorKwargs],
    ) -> BatchFeature:
        r"""
        Args:
            images: pictures in the order of their `<|image_pad|>` in the texts.
            text: prompts, as `apply_chat_template` writes them.
            picture_sizes: instead of `images`, for pictures that the model is given as codes: their (height, width) in
                pixels.

        Returns:
            `input_ids` and `attention_mask` [B, L], left-padded; with pictures `pixel_values` [N, 3, H, W] in [-1, 1],
            `image_is_target` [N] (whether the picture is the assistant's), and `image_sizes` [N, 2] when sizes differ
            and `pixel_values` were padded to the largest; with `return_labels` also `labels` [B, L].

        Raises:
            ValueError: without text, or when pictures and placeholders don't match.
        """
        if text is None:
            raise ValueError("`text` is required: it says where the pictures go.")
        if images is not None and picture_sizes is not None:
            raise ValueError("Give either `images` or `picture_sizes`, not both.")
        if images is not None and self.image_token not in "".join([text] if isinstance(text, str) else text):
            raise ValueError(
                f"`text` says nowhere where `images` go ({self.image_token}): give messages to `apply_chat_template`, "
                "which writes it."
            )
        return_labels = kwargs.pop("return_labels", self.return_labels)
        if picture_sizes is not None:
            inputs = self._text_around_codes(text, picture_sizes, **kwargs)
        else:
            inputs = super().__call__(images=images, text=text, **kwargs)
            if images is not None:
                shape = tuple(inputs["pixel_values"].shape)
                picture_sizes = inputs["image_sizes"].tolist() if "image_sizes" in inputs else [shape[-2:]] * shape[0]
        rows = inputs["input_ids"]
        rows = rows.tolist() if torch.is_tensor(rows) else rows
        spoken = [self._assistant_positions(row) for row in rows]
        if picture_sizes is not None:
            # A picture begins with <|vision_start|>; it is a target when that is the assistant's.
            begins = [(row, i) for row, ids in enumerate(rows) for i in self._picture_starts(ids)]
            num_tokens = sum((height // self.stride) * (width // self.stride) for height, width in picture_sizes)
            if len(begins) != len(picture_sizes) or sum(ids.count(self.image_token_id) for ids in rows) != num_tokens:
                raise ValueError(
                    "`text` must hold each picture whole, not cut off by truncation: <|vision_start|>, its "
                    "<|image_pad|>, <|vision_end|>."
                )
            inputs["image_is_target"] = torch.tensor([spoken[row][i] for row, i in begins])
        if return_labels:
            silent = {self.image_token_id, *self._size_and_query_ids()}
            labels = [
                [token if said and token not in silent else -100 for token, said in zip(ids, says, strict=True)]
                for ids, says in zip(rows, spoken, strict=True)
            ]
            inputs["labels"] = torch.tensor(labels) if torch.is_tensor(inputs["input_ids"]) else labels
        return inputs

    def picture_tokens(self, height: int, width: int) -> str:
        """The tokens between `<|vision_start|>` and the first token of a picture of `height` x `width` pixels.

        Raises:
            ValueError: when the sides are no multiples of a patch or the vocabulary has no such size.
        """
        unit, largest = self.stride * self.patch_size, self.num_size_tokens * self.stride
        for name, side in (("height", height), ("width", width)):
            if side % unit or not unit <= side <= largest:
                raise ValueError(f"`{name}` must be a multiple of {unit} from {unit} to {largest} pixels, got {side}.")
        queries = "".join(f"<|query_{i + 1}|>" for i in range(self.patch_size**2 - 1))
        return f"<|res_{height // self.stride}|><|res_{width // self.stride}|>{queries}"

    def check_words(self, texts: list[str], argument: str = "prompt") -> None:
        """
        Raises:
            ValueError: when a text that a person wrote holds special tokens; they would be taken for the format's.
        """
        tokens = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        if special := [token for token in tokens if any(token in words for words in texts)]:
            raise ValueError(f"`{argument}` must not hold the special tokens {', '.join(special)}.")

    def drawing_inputs(
        self,
        prompt: list[str],
        height: int,
        width: int,
        images: list | None = None,
        descriptions: list[str] | None = None,
        picture_sizes: list[tuple[int, int]] | None = None,
    ) -> tuple[BatchFeature, BatchFeature]:
        """Inputs of `generate_codes`: of the prompts, and of the one prompt without its text (and pictures) that
        guidance is measured against.

        Args:
            prompt: what to draw, one a picture, or how to change `images`.
            height, width: size of the pictures to draw, in pixels.
            images: pictures to edit, one a prompt.
            descriptions: what the assistant says before it draws, one a prompt.
            picture_sizes: instead of `images`, for pictures that the model is given as codes: their (height, width) in
                pixels.

        Raises:
            ValueError: for a size that the model can't draw, or a prompt with special tokens.
        """
        picture = self.picture_tokens(height, width)
        texts = self.request_texts(prompt, images if picture_sizes is None else picture_sizes, picture_tokens=picture)
        without = texts[0][texts[0].rindex("<|im_start|>assistant") :]
        if descriptions is not None:
            start = len("<|vision_start|>" + picture)
            texts = [t[:-start] + words + t[-start:] for t, words in zip(texts, descriptions, strict=True)]
        return self(text=texts, images=images, picture_sizes=picture_sizes), self(text=[without])

    def request_texts(self, prompt: list[str], images: list | None = None, **template) -> list[str]:
        """Conversations in which the user says what to draw, or shows one of `images` and says how to change it, up to
        the header of the assistant's turn; `template` goes to the chat template.

        Raises:
            ValueError: for a prompt with special tokens.
        """
        self.check_words(prompt)
        conversations: list = []
        for index, words in enumerate(prompt):
            content = [{"type": "text", "text": words}]
            if images is not None:
                content.insert(0, {"type": "image", "image": images[index]})
            conversations.append([{"role": "user", "content": content}])
        return list(self.apply_chat_template(conversations, add_generation_prompt=True, **template))

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """What stands for one picture between `<|vision_start|>` and `<|vision_end|>`."""
        if "image_sizes" in image_inputs:
            height, width = image_inputs["image_sizes"][image_idx].tolist()
        else:
            height, width = image_inputs["pixel_values"][image_idx].shape[-2:]
        return self._placeholders(height, width)

    def _placeholders(self, height: int, width: int) -> str:
        num_tokens = (height // self.stride) * (width // self.stride)
        return self.picture_tokens(height, width) + self.image_token * num_tokens

    def _text_around_codes(self, text, picture_sizes: list[tuple[int, int]], **kwargs) -> BatchFeature:
        texts = [text] if isinstance(text, str) else list(text)
        if (count := sum(t.count(self.image_token) for t in texts)) != len(picture_sizes):
            raise ValueError(f"`picture_sizes` has {len(picture_sizes)} sizes, `text` {count} {self.image_token}.")
        texts, _ = self.get_text_with_replacements(texts, [self._placeholders(*size) for size in picture_sizes])
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        return BatchFeature(self.tokenizer(texts, **merged["text_kwargs"]))

    @property
    def unused_input_names(self) -> list[str]:
        """What the image processor returns for `postprocess` and the model doesn't read."""
        return ["original_sizes", "content_sizes"]

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call can return."""
        return ["input_ids", "attention_mask", "pixel_values", "image_sizes", "image_is_target"]

    def _process_images(self, images: ImageInput, **kwargs):
        """Pads pictures of different sizes to the largest, so that they travel as one tensor with `image_sizes`."""
        processed = self.image_processor(images, **kwargs)
        pixel_values = processed["pixel_values"]
        if isinstance(pixel_values, list):
            pictures = [torch.as_tensor(picture) for picture in pixel_values]
            sizes = torch.tensor([picture.shape[-2:] for picture in pictures])
            height, width = sizes.max(0).values.tolist()
            padded = [F.pad(p, (0, width - p.shape[-1], 0, height - p.shape[-2])) for p in pictures]
            processed["pixel_values"], processed["image_sizes"] = torch.stack(padded), sizes
        replacements = [self.replace_image_token(processed, i) for i in range(len(processed["pixel_values"]))]
        return processed, replacements

    def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]] | None = None, **kwargs) -> MultiModalData:
        """How many placeholders pictures of (height, width) pixels take."""
        if image_sizes is None:
            return MultiModalData()
        options = {name: kwargs.get(name, getattr(self.image_processor, name)) for name in ("stride", "fit", "size")}
        targets = [plan_sizes(height, width, **options)[1] for height, width in image_sizes]
        counts = [(height // self.stride) * (width // self.stride) for height, width in targets]
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(counts))

    def _size_and_query_ids(self) -> list[int]:
        names = [f"<|res_{i + 1}|>" for i in range(self.num_size_tokens)]
        names += [f"<|query_{i + 1}|>" for i in range(self.patch_size**2 - 1)]
        return self.tokenizer.convert_tokens_to_ids([*names, "<|vision_end|>"])

    def _picture_starts(self, ids: list[int]) -> list[int]:
        """Positions of `<|vision_start|>` whose picture is given, not one that a prompt begins and leaves to be
        drawn."""
        length = 2 + self.patch_size**2  # <|vision_start|>, two sizes, queries
        return [
            i
            for i, token in enumerate(ids)
            if token == self.vision_start_token_id and self.image_token_id in ids[i + length : i + length + 1]
        ]

    def _assistant_positions(self, ids: list[int]) -> list[bool]:
        """Whether each position is said by the assistant: from the line after its header to the end of its turn."""
        spoken, role, header = [], None, []
        for token in ids:
            spoken.append(role == "assistant" and header is None)
            if token == self.turn_token_id:
                role, header = None, []
            elif header is not None:
                header.append(token)
                words = self.tokenizer.decode(header)
                if "\n" in words:
                    role, header = words.split("\n")[0], None
            elif token == self.turn_end_token_id:
                role, header = None, []
        return spoken


# A saved processor names the class of its image processor, and AutoImageProcessor looks the name up. This stands here
# and not in the package's `__init__`, because it must hold for the processor as remote code too.
AutoImageProcessor.register(UniWeTokConfig, image_processor_classes={"pil": UniWeTokImageProcessor}, exist_ok=True)

__all__ = ["UniWeTokProcessor", "UniWeTokProcessorKwargs"]
