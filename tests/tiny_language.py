"""Small causal language models with random weights, saved with a text tokenizer as their makers do."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from uniwetok_hf.training.run import seeded_weights


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256}
QWEN = {**SMALL, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48}
LLAMA = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48}


def save_language_model(folder, config, *special: str):
    """A checkpoint; its text tokenizer has one token a byte and these special tokens, the first of which ends a
    text."""
    with seeded_weights(5):
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[0]).save_pretrained(folder)
    return model
