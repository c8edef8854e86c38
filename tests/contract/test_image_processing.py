"""transformers' common image processor tests on ours."""

import unittest

import pytest

from tests.contract.library_tests import library_tests, skipped
from uniwetok_hf import UniWeTokImageProcessor


common = library_tests("test_image_processing_common")
pytestmark = pytest.mark.slow


class ImageProcessorTester(common.ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(parent, size={"height": 32, "width": 64}, stride=32, fit="crop")

    def _get_image_processing_classes(self):
        return {"pil": UniWeTokImageProcessor}


class TestImageProcessor(common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageProcessorTester

    test_call_numpy_4_channels = skipped("The models read pictures of three channels; others are refused.")
    test_new_models_require_torchvision_backend = skipped(
        "It asks for a torchvision backend of every new model; ours is PIL alone (see its module)."
    )
