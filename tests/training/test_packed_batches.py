"""Packed rows: they hold whole samples up to their number of tokens, every sample once on any number of processes, and
the model computes with them what it computes with padded ones."""

import copy
import multiprocessing

import pytest
import torch
from tiny_encoded import build_vision, encode_tasks, language_training
from tiny_mllm import PATCH_SIZES, build, seeded, shared, training_batch
from tiny_models import build_tiny_text_tokenizer
from tiny_training import log_lines, write
from transformers import Qwen3Config

from uniwetok_hf import UniWeTokImageProcessor, UniWeTokProcessor
from uniwetok_hf.data.samples import NOISE, sample_generators
from uniwetok_hf.training.config import read_config
from uniwetok_hf.training.conversation_batches import ConversationBatches
from uniwetok_hf.training.packed_batches import LOOKAHEAD, PackedBatches, PackingPosition, share_positions
from uniwetok_hf.training.run import uncompiled
from uniwetok_hf.training.tasks import TaskMixture, TaskSource
from uniwetok_hf.training.train_mllm import MLLMTrainer, MLLMTrainingConfig, packed_attention


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    fields = encode_tasks(tmp_path_factory.mktemp("tasks"), build_vision())
    return TaskMixture([TaskSource(**source) for source in fields["data"]], seed=1, text_dropout=0.2)


def processor(patch_size: int = 2) -> UniWeTokProcessor:
    image_processor = UniWeTokImageProcessor(stride=8 * patch_size)
    return UniWeTokProcessor(image_processor, build_tiny_text_tokenizer(patch_size), patch_size=patch_size, stride=8)


def batches(mixture, packed_tokens: int = 600, **options) -> PackedBatches:
    return PackedBatches(mixture, processor(), 16, packed_tokens, seed=1, **options)


def numbers(micro_batches) -> list[int]:
    return [number for batch in micro_batches for number in batch.numbers]


def test_rows_are_full_and_hold_whole_samples_of_all_tasks(mixture):
    made = batches(mixture, accumulation_steps=2)
    rows = [row for step in range(6) for row in made[step]]
    assert len(rows) == 12
    lengths = [row.num_tokens for row in rows]
    assert max(lengths) <= 600 and sum(lengths) > 0.97 * 12 * 600
    tasks = [set(row.tasks.tolist()) for row in rows]
    assert set().union(*tasks) == set(range(len(made.names))) and min(len(found) for found in tasks) > 1
    for row in rows:
        starts = (row.inputs["position_ids"] == 0).sum()
        assert starts == len(row.numbers) == len(row.text_tokens) and "attention_mask" not in row.inputs


def test_a_packed_row_is_its_samples_behind_each_other(mixture):
    made = batches(mixture)
    (row,) = made[0]
    apart = ConversationBatches(mixture, processor(), 16, 1, seed=1)
    samples = [apart.collate([(number, mixture[number])]) for number in row.numbers]
    at = 0
    for sample in samples:
        length = sample.inputs["input_ids"].shape[1]
        for name in ("input_ids", "labels"):
            assert (row.inputs[name][:, at : at + length] == sample.inputs[name]).all()
        assert row.inputs["position_ids"][0, at : at + length].tolist() == list(range(length))
        at += length
    assert at == row.num_tokens and row.num_text_tokens == sum(sample.num_text_tokens for sample in samples)


def test_no_sample_waits_for_long(mixture):
    made = batches(mixture)
    seen = [numbers(made[step]) for step in range(30)]
    for step, found in enumerate(seen):
        later = {number for after in seen[step:] for number in after}
        assert max(found) - min(later | set(range(max(found))) - {n for f in seen[:step] for n in f}) <= 2 * LOOKAHEAD


def test_every_sample_comes_once_over_processes(mixture):
    made = [batches(mixture, process_index=index, num_processes=3) for index in range(3)]
    seen = [[number for step in range(20) for number in numbers(one[step])] for one in made]
    for index, found in enumerate(seen):
        assert {number % 3 for number in found} == {index} and len(set(found)) == len(found)
        waiting = made[index].position(20).waiting
        everything = sorted(found + waiting)
        assert everything == list(range(index, 3 * len(everything), 3))


@pytest.mark.parametrize("steps", [1, 7])
def test_a_run_goes_on_where_it_was(mixture, steps):
    straight = batches(mixture, accumulation_steps=2)
    wanted = [numbers(straight[step]) for step in range(12)]
    begun = batches(mixture, accumulation_steps=2)
    for step in range(steps + 1):  # one is read ahead
        begun[step]
    resumed = batches(mixture, accumulation_steps=2)
    resumed.resume(begun.position(steps))
    assert [numbers(resumed[step]) for step in range(steps, 12)] == wanted[steps:]
    again = batches(mixture, accumulation_steps=2)
    again.resume(resumed.position(12))  # of a run that was resumed itself
    assert numbers(again[12]) == numbers(straight[12])


@pytest.mark.parametrize("now", [1, 2, 5])
def test_on_another_number_of_processes_each_sample_still_comes_once(mixture, now):
    before = [batches(mixture, process_index=index, num_processes=3) for index in range(3)]
    seen = [number for one in before for step in range(9) for number in numbers(one[step])]
    positions = [one.position(9) for one in before]
    after = []
    for index in range(now):
        made = batches(mixture, process_index=index, num_processes=now)
        made.resume(share_positions(positions, index, now))
        after.append(made)
        seen += [number for step in range(9, 20) for number in numbers(made[step])]
    assert len(set(seen)) == len(seen)
    waiting = [number for one in after for number in one.position(20).waiting]
    assert sorted(seen + waiting)[: len(seen)] == list(range(len(seen)))


def test_the_same_number_of_processes_keeps_its_positions():
    positions = [PackingPosition(4, [index], 10, 0, index, 2) for index in range(2)]
    assert share_positions(positions, 1, 2) is positions[1]


@pytest.mark.parametrize("start", [0, 3])
def test_readers_read_what_one_process_does(mixture, start):
    """The same rows, positions and skipped samples, also where a run goes on; nothing is drawn from torch's own
    generator, and no process stays."""
    made, read = batches(mixture, max_length=150), batches(mixture, max_length=150, num_readers=2)
    for step in range(start):
        made[step]
    if start:
        read.load_state_dict([made.state_dict(start)])
    before = torch.get_rng_state()
    with read.readers():
        for step in range(start, start + 4):
            (row,), (same,) = made[step], read[step]
            assert row.numbers == same.numbers and made.skipped(step)[0] == read.skipped(step)[0]
            assert row.inputs.keys() == same.inputs.keys()
            for name, value in row.inputs.items():
                pairs = zip(value, same.inputs[name], strict=True) if name == "codes" else [(value, same.inputs[name])]
                assert all(torch.equal(one, other) for one, other in pairs)
            assert made.state_dict(step + 1) == read.state_dict(step + 1)
        assert len(multiprocessing.active_children()) == 2
    assert torch.equal(torch.get_rng_state(), before) and not multiprocessing.active_children()


def test_what_a_reader_raises_is_raised_here(mixture):
    read = batches(mixture, num_readers=1)
    read.check = lambda sample: 1 / 0
    with read.readers(), pytest.raises(ZeroDivisionError, match="^division by zero$"):
        read[0]


def test_steps_come_one_after_the_other(mixture):
    made = batches(mixture)
    with pytest.raises(ValueError, match="0 comes next, not 3"):
        made[3]


def test_longer_samples_than_a_row_are_left_out(mixture):
    made = batches(mixture, packed_tokens=123)
    rows = [row for step in range(20) for row in made[step]]
    assert max(row.num_tokens for row in rows) <= 123
    reasons, num_read = zip(*(made.skipped(step) for step in range(20)), strict=True)
    assert any("`max_length` is 123" in reason for step in reasons for reason in step) and sum(num_read) >= 64


def packed_and_padded(patch_size: int):
    """The inputs of a batch, as padded rows and as one packed row."""
    padded, codes = training_batch(patch_size)
    mask = padded["attention_mask"].bool()
    padded["labels"][mask.cumsum(1) == 1] = -100  # the first token, which nothing in its row predicts
    packed = {name: padded[name][mask][None] for name in ("input_ids", "labels")}
    packed["position_ids"] = torch.cat([torch.arange(int(row.sum())) for row in mask])[None]
    packed["image_is_target"] = padded["image_is_target"]
    return padded | {"codes": codes}, packed | {"codes": codes}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_losses_and_gradients_of_packed_rows(patch_size, attention):
    outputs, gradients = [], []
    for inputs in packed_and_padded(patch_size):
        model = copy.deepcopy(shared(patch_size)).train()
        model.set_attn_implementation(attention)
        output = model(**inputs, generator=[seeded(3), seeded(4)])
        output.loss.backward()
        outputs.append(output)
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    for name in ("loss", "text_loss", "image_loss", "row_text_losses", "row_image_losses", "bit_accuracy"):
        torch.testing.assert_close(outputs[1][name], outputs[0][name], rtol=1e-5, atol=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(one.abs().max().item() for one in gradients[0].values())
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_documents_do_not_see_each_other(patch_size):
    model = shared(patch_size)
    _, packed = packed_and_padded(patch_size)
    hidden = []
    for first in range(2):
        ids = packed["input_ids"].clone()
        ids[0, 1] = first  # in the first document
        inputs = {"position_ids": packed["position_ids"], "codes": packed["codes"], "use_cache": False}
        hidden.append(model.model(ids, **inputs).last_hidden_state)
    changed = (hidden[0] != hidden[1]).any(-1)[0]
    begin = int((packed["position_ids"][0] == 0).nonzero()[1, 0])
    assert changed[1:begin].any() and not changed[begin:].any()


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_the_mask_of_flex_attention_is_the_dense_one(patch_size):
    _, packed = packed_and_padded(patch_size)
    seen = []
    for attention in ("sdpa", "flex_attention"):
        model = build(patch_size)
        model.set_attn_implementation(attention)
        for layer in model.model.language_model.layers:  # which only take the mask

            def take(hidden_states, attention_mask, **_):
                seen.append(attention_mask)
                return hidden_states

            layer.forward = take
        inputs = {"position_ids": packed["position_ids"], "codes": packed["codes"], "use_cache": False}
        with torch.compiler.set_stance("force_eager"):  # transformers compiles the making of the mask
            model.model(packed["input_ids"], **inputs)
    dense, block = seen[0], seen[-1]
    length = packed["input_ids"].shape[1]
    for query in range(length):
        for key in range(length):
            place = torch.tensor(query), torch.tensor(key)
            found = block.mask_mod(torch.tensor(0), torch.tensor(0), *place)
            assert bool(found) == bool(dense[0, 0, query, key]), (query, key)


@torch.no_grad()
@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_flex_attention_computes_what_the_dense_mask_does(patch_size):
    """Forward, and not compiled: on a CPU it has no backward pass; `benchmarks/gpu.py` compares gradients on a GPU."""
    _, packed = packed_and_padded(patch_size)
    inputs = {"position_ids": packed["position_ids"], "codes": packed["codes"], "use_cache": False}
    model, hidden = build(patch_size), {}
    for attention in ("eager", "sdpa", "flex_attention"):
        model.set_attn_implementation(attention)
        with torch.compiler.set_stance("force_eager"):
            hidden[attention] = model.model(packed["input_ids"], **inputs).last_hidden_state
    for attention in ("sdpa", "flex_attention"):
        torch.testing.assert_close(hidden[attention], hidden["eager"], atol=1e-5, rtol=1e-5)


def training(tmp_path, **fields) -> dict:
    given = language_training(tmp_path)
    given = {name: value for name, value in given.items() if name not in ("batch_size", "length_group_steps")}
    return given | {"packed_tokens": 400, "logging_steps": 1, "output_dir": str(tmp_path / "run"), **fields}


def test_a_training_and_its_log(tmp_path, capsys):
    fields = training(tmp_path, max_train_steps=3, gradient_accumulation_steps=2)
    trainer = MLLMTrainer(read_config(MLLMTrainingConfig, write(tmp_path, fields)))
    start = copy.deepcopy(trainer.mllm)
    made = trainer.make_batches(trainer.batches.mixture)
    trainer.train()
    assert "Attention over packed rows by sdpa" in capsys.readouterr().out
    first = log_lines(tmp_path / "run")[0]
    # The loss of the same samples, padded, divided by the tokens of the step.
    rows = made[0]
    apart = ConversationBatches(made.mixture, made.processor, made.num_bits, 1, seed=trainer.config.seed)
    chosen = [(number, made.mixture[number]) for row in rows for number in row.numbers]
    padded = apart.collate(chosen)
    output = start.train()(**padded.inputs, generator=sample_generators(trainer.config.seed, padded.numbers, NOISE))
    assert first["loss"] == pytest.approx(output.loss.item(), rel=1e-5)


def test_a_resumed_training_continues_exactly(tmp_path):
    whole = training(tmp_path, max_train_steps=4, checkpointing_steps=2, lr_scheduler="constant", lr_warmup_steps=0)
    straight, resumed = (whole | {"output_dir": str(tmp_path / name)} for name in ("straight", "resumed"))
    MLLMTrainer(read_config(MLLMTrainingConfig, write(tmp_path / "a", straight))).train()
    MLLMTrainer(read_config(MLLMTrainingConfig, write(tmp_path / "b", resumed | {"max_train_steps": 2}))).train()
    (tmp_path / "resumed" / "pipeline").rename(tmp_path / "half")
    MLLMTrainer(read_config(MLLMTrainingConfig, write(tmp_path / "b", resumed, num_readers=1))).train()
    losses = [[line["loss"] for line in log_lines(tmp_path / name)] for name in ("straight", "resumed")]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 4}, "Give either `batch_size`, in samples, or `packed_tokens`"),
        ({"packed_tokens": None}, "Give either `batch_size`, in samples, or `packed_tokens`"),
        ({"packed_tokens": 0}, "`packed_tokens` must be 1 or more, got 0"),
        ({"num_readers": -1}, "`num_readers` must be 0 or more, got -1"),
        ({"batch_size": 4, "packed_tokens": None, "num_readers": 1}, "`num_readers` read for `packed_tokens`"),
        ({"length_group_steps": 2}, "`length_group_steps` is of no use with `packed_tokens`"),
    ],
)
def test_settings_that_can_not_be(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        read_config(MLLMTrainingConfig, write(tmp_path, training(tmp_path) | fields))


def test_attention_by_device():
    assert packed_attention(torch.device("cpu"), 1, "bf16") == "sdpa"
    assert packed_attention(torch.device("cuda"), 4, "bf16") == "flex_attention"
    assert packed_attention(torch.device("cuda"), 1, "no") == "flex_attention"  # flash attention is of 16 bits


def test_validation_leaves_flex_attention_compiled():
    """Uncompiled it keeps the scores of all positions."""
    config = Qwen3Config()
    for attention, is_compiled, wanted in (("sdpa", True, "force_eager"), ("sdpa", False, "default")) + (
        ("flex_attention", True, "default"),
    ):
        config._attn_implementation = attention
        with uncompiled(is_compiled, config):
            assert torch._dynamo.eval_frame._stance.stance == wanted
    assert torch._dynamo.eval_frame._stance.stance == "default"
