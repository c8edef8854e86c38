"""transformers' common model tests on our models at a tiny size."""

import unittest
from unittest.mock import patch

import pytest
import torch
from tiny_models import TINY_VISION, build_tiny_mllm, tiny_class_to_image_config
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.testing_utils import torch_device

from tests.contract.library_tests import library_tests, skipped
from uniwetok_hf import (
    UniWeTokBinaryHead,
    UniWeTokClassToImageConfig,
    UniWeTokClassToImageModel,
    UniWeTokConfig,
    UniWeTokForCausalLM,
    UniWeTokHeadConfig,
    UniWeTokMLLMConfig,
    UniWeTokMLLMModel,
    UniWeTokModel,
)


common = library_tests("test_modeling_common")
pytestmark = pytest.mark.slow


def seeded_randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch_device)


class ModelTest(common.ModelTesterMixin):
    """The library's tests ask these tables of its own models which classes have a loss, and which loss."""

    tables = {
        "MODEL_MAPPING_NAMES": {
            "uniwetok": "UniWeTokModel",
            "uniwetok_class_to_image": "UniWeTokClassToImageModel",
            "uniwetok_head": "UniWeTokBinaryHead",
            "uniwetok_mllm": "UniWeTokMLLMModel",
        },
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": {"uniwetok_mllm": "UniWeTokForCausalLM"},
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": {"uniwetok_mllm": "UniWeTokForCausalLM"},
        "MODEL_FOR_PRETRAINING_MAPPING_NAMES": {"uniwetok_mllm": "UniWeTokForCausalLM"},
    }

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for name, ours in cls.tables.items():
            cls.enterClassContext(patch.dict(getattr(common, name), ours))


class ImageTokenizerTester:
    """Two pictures, and the noise with which they are decoded: a forward that draws its own never repeats itself."""

    batch_size, seq_length, is_training = 2, 6, True  # 4 registers and 2 tokens
    num_hidden_layers = 2 * TINY_VISION["num_hidden_layers"]  # those of the encoder, then those of the decoder
    num_attention_heads = TINY_VISION["num_attention_heads"]
    hidden_size = 16

    def get_config(self) -> UniWeTokConfig:
        return UniWeTokConfig(**TINY_VISION)

    def prepare_config_and_inputs_for_common(self):
        pictures, noise = seeded_randn(2, 3, 32, 64), seeded_randn(2, 16, 1, 2)
        return self.get_config(), {"pixel_values": pictures.clamp(-1, 1), "noise": noise}


class TestImageTokenizer(ModelTest, unittest.TestCase):
    all_model_classes = (UniWeTokModel,)
    test_resize_embeddings = False  # it embeds no words

    def setUp(self):
        self.model_tester = ImageTokenizerTester()
        if self._testMethodName.startswith("test_eager_matches_sdpa_inference"):
            # tests/modeling/test_modeling_uniwetok.py compares the two.
            self.skipTest("An argument called `noise` is given numbers of another model's shape.")

    test_model_get_set_embeddings = skipped("It embeds pictures by a convolution; the test wants an nn.Embedding.")


class HeadTester:
    """Three patches of four tokens."""

    batch_size, seq_length, is_training = 3, 4, True
    num_hidden_layers = 2
    hidden_size = 32

    def get_config(self) -> UniWeTokHeadConfig:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_modulation_layers": 1, "head_dim": 16}
        return UniWeTokHeadConfig(num_bits=16, condition_size=24, **sizes)

    def prepare_config_and_inputs_for_common(self):
        inputs = {"noisy_codes": seeded_randn(3, 4, 16), "condition": seeded_randn(3, 4, 24)}
        return self.get_config(), inputs | {"timesteps": seeded_randn(3).sigmoid()}


class TestHead(ModelTest, unittest.TestCase):
    all_model_classes = (UniWeTokBinaryHead,)
    test_resize_embeddings = False  # it embeds no words
    has_attentions = False  # it returns the prediction and nothing else

    def setUp(self):
        self.model_tester = HeadTester()

    test_model_get_set_embeddings = skipped("It embeds no words.")
    test_hidden_states_output = skipped("It returns a tensor.")
    test_model_outputs_equivalence = skipped("It returns a tensor.")
    test_retain_grad_hidden_states_attentions = skipped("It returns a tensor.")


class ClassToImageTester:
    """Two pictures of two classes."""

    batch_size, seq_length, is_training = 2, 18, True  # 3 class tokens and all tokens of a picture but the last
    num_hidden_layers = 2
    num_attention_heads = 2
    hidden_size = 32

    def __init__(self, patch_size: int):
        self.patch_size = patch_size

    def get_config(self) -> UniWeTokClassToImageConfig:
        return tiny_class_to_image_config(self.patch_size)

    def prepare_config_and_inputs_for_common(self):
        labels = torch.tensor([0, 3], device=torch_device)
        return self.get_config(), {"codes": seeded_randn(2, 16, 4, 4).sign(), "class_labels": labels}


class TestClassToImage(ModelTest, unittest.TestCase):
    all_model_classes = (UniWeTokClassToImageModel,)
    test_resize_embeddings = False  # it embeds no words
    has_attentions = False
    patch_size = 1

    def setUp(self):
        self.model_tester = ClassToImageTester(self.patch_size)

    test_hidden_states_output = skipped("It returns a loss and conditions.")
    test_retain_grad_hidden_states_attentions = skipped("It returns a loss and conditions.")

    # tests/modeling/test_modeling_uniwetok_class_to_image.py compares these with a generator.
    random_loss = "Each call draws other times and other noise for its loss, and the test gives it no generator."
    test_batching_equivalence = skipped(random_loss)
    test_determinism = skipped(random_loss)
    test_model_outputs_equivalence = skipped(random_loss)
    test_save_load = skipped(random_loss)


class TestClassToImagePatches(TestClassToImage):
    patch_size = 2


class LanguageModelTester:
    """Two rows, a picture of two patches in each."""

    batch_size, is_training = 2, True
    num_hidden_layers = 2
    num_attention_heads = 2
    hidden_size = 32

    def __init__(self, patch_size: int):
        self.patch_size = patch_size
        config = self.get_config()
        self.vocab_size = config.text_config.vocab_size
        block = config.tokens_per_patch
        size = [config.size_token_id + patch_size - 1, config.size_token_id + 2 * patch_size - 1]
        queries = [config.query_token_id + n for n in range(block - 1)]
        picture = [config.vision_start_token_id, *size, *queries, *[config.image_token_id] * 2 * block]
        picture.append(config.vision_end_token_id)
        self.input_ids = torch.tensor([[5, 6, *picture, 7], [8, 9, *picture, 10]])
        self.seq_length = self.input_ids.shape[1]

    def get_config(self) -> UniWeTokMLLMConfig:
        return UniWeTokMLLMConfig.from_dict(build_tiny_mllm(self.patch_size).config.to_dict())

    def prepare_config_and_inputs_for_common(self):
        input_ids = self.input_ids.to(torch_device)
        side = 32 * self.patch_size
        pictures = seeded_randn(2, 3, side, 2 * side).clamp(-1, 1)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pictures}
        return self.get_config(), inputs


class LanguageModelTest(ModelTest, common.GenerationTesterMixin):
    all_model_classes = (UniWeTokForCausalLM, UniWeTokMLLMModel)
    patch_size = 1
    _is_composite = True
    skip_test_image_features_output_shape = True  # pictures of any sizes: the tokens of all in a row, no batch

    def setUp(self):
        self.model_tester = LanguageModelTester(self.patch_size)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Pictures to generate, too, with the same noise each time."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is UniWeTokForCausalLM:
            inputs["image_is_target"] = torch.ones(len(inputs["input_ids"]), dtype=torch.bool)
            inputs["generator"] = torch.Generator().manual_seed(0)
        return inputs

    without_states = (
        "Codes are all that the language model sees of a picture; `vision_model` returns what led to them."
    )
    test_get_image_features_hidden_states = skipped(without_states)
    test_get_image_features_attentions = skipped(without_states)

    # The image tokenizer is frozen.
    test_all_params_have_gradient = False

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        """The library looks at the first layer that can be checkpointed; that is the image tokenizer's, which is
        frozen and therefore never run twice. Here it looks at the first one of the language model."""
        with patch.object(common, "GradientCheckpointingLayer", Qwen3DecoderLayer):
            super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)


class TestSingleTokens(LanguageModelTest, unittest.TestCase):
    pass


class TestPatches(LanguageModelTest, unittest.TestCase):
    patch_size = 2
