"""transformers' common configuration tests on our configurations."""

import unittest

import pytest
from tiny_models import TINY_CLASS_TO_IMAGE, TINY_VISION, build_tiny_mllm

from tests.contract.library_tests import library_tests
from uniwetok_hf import UniWeTokClassToImageConfig, UniWeTokConfig, UniWeTokHeadConfig, UniWeTokMLLMConfig


common = library_tests("test_configuration_common")
pytestmark = pytest.mark.slow


class TestConfigurations(unittest.TestCase):
    def run_tests(self, config_class, common_properties=None, has_text_modality=False, **fields):
        options = {"common_properties": common_properties, "has_text_modality": has_text_modality}
        common.ConfigTester(self, config_class=config_class, **options, **fields).run_common_tests()

    def test_image_tokenizer(self):
        self.run_tests(UniWeTokConfig, **TINY_VISION)

    def test_head(self):
        self.run_tests(UniWeTokHeadConfig, num_bits=16, condition_size=64, hidden_size=32, head_dim=16)

    def test_class_to_image(self):
        self.run_tests(UniWeTokClassToImageConfig, **TINY_CLASS_TO_IMAGE)

    def test_language_model(self):
        self.model_tester = self  # of which the common tests want `get_config`
        self.run_tests(
            UniWeTokMLLMConfig, ["text_config", "vision_config", "head_config"], patch_size=2, text_loss_weight=0.5
        )

    def get_config(self) -> UniWeTokMLLMConfig:
        return build_tiny_mllm(2).config
