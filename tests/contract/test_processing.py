"""transformers' common processor tests on ours."""

import unittest

import pytest
from tiny_models import build_tiny_text_tokenizer
from transformers import ProcessorMixin

from tests.contract.library_tests import library_tests, skipped
from uniwetok_hf import UniWeTokImageProcessor, UniWeTokProcessor


common = library_tests("test_processing_common")
pytestmark = [
    pytest.mark.slow,
    # transformers does not close the additional chat templates that it reads.
    pytest.mark.filterwarnings("ignore:unclosed file .*jinja:ResourceWarning"),
]


class TestProcessor(common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = UniWeTokProcessor

    @staticmethod
    def does_processor_return_mm_offsets(processor_class, method_name):
        """The library asks the first base class, which here is the mixin that gives `push_to_hub` its option."""
        return getattr(processor_class, method_name) is not getattr(ProcessorMixin, method_name)

    @classmethod
    def _setup_tokenizer(cls):
        return build_tiny_text_tokenizer()

    @classmethod
    def _setup_image_processor(cls):
        return UniWeTokImageProcessor(size={"longest_edge": 64})

    @classmethod
    def _setup_test_attributes(cls, processor):
        """What the tests write in a text for a picture: here a picture is never a placeholder alone."""
        cls.image_token = f"<|vision_start|>{processor.image_token}<|vision_end|>"

    # tests/modeling/test_processing_uniwetok.py shows that options reach the image processor.
    fixed_values = "The tests change how pixels are scaled, which the method fixes and the image processor refuses."
    test_kwargs_overrides_default_subprocessor_kwargs_0_images = skipped(fixed_values)
    test_save_load_pretrained_additional_features = skipped(fixed_values)
    test_structured_kwargs_nested_from_dict_0_images = skipped(fixed_values)
    test_subprocessor_defaults_preserved_by_kwargs_0_images = skipped(fixed_values)
    test_unstructured_kwargs_0_images = skipped(fixed_values)
    test_unstructured_kwargs_batched_0_images = skipped(fixed_values)

    test_model_input_names = skipped("`image_sizes` is among them only for pictures of different sizes.")
    test_init_arguments_not_in_processor_kwargs = skipped(
        "`stride` is that of a token here and that of a patch in the image processor; both are saved by this name."
    )
