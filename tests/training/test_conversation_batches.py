"""Batches of conversations: what a step holds, how it is shared out, and the model inputs."""

import pytest
import torch
from tiny_encoded import build_vision, encode, encode_tasks, pictures
from tiny_models import build_tiny_text_tokenizer

from uniwetok_hf import UniWeTokImageProcessor, UniWeTokProcessor
from uniwetok_hf.training.conversation_batches import ConversationBatches, prefetched
from uniwetok_hf.training.tasks import Sample, TaskMixture, TaskSource, text_item


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    fields = encode_tasks(tmp_path_factory.mktemp("tasks"), build_vision())
    return TaskMixture([TaskSource(**source) for source in fields["data"]], seed=1, text_dropout=0.2)


def processor(patch_size: int = 2) -> UniWeTokProcessor:
    image_processor = UniWeTokImageProcessor(stride=8 * patch_size)
    return UniWeTokProcessor(image_processor, build_tiny_text_tokenizer(patch_size), patch_size=patch_size, stride=8)


def batches(mixture, batch_size: int = 8, **options) -> ConversationBatches:
    return ConversationBatches(mixture, processor(), 16, batch_size, seed=1, **options)


def numbers(micro_batches) -> list[int]:
    return [number for batch in micro_batches for number in batch.numbers]


@pytest.mark.parametrize("group", [1, 3])
def test_every_sample_comes_once_in_a_window(mixture, group):
    made = batches(mixture, length_group_steps=group)
    for window in range(2):
        seen = [number for step in range(window * group, (window + 1) * group) for number in numbers(made[step])]
        assert sorted(seen) == list(range(window * group * 8, (window + 1) * group * 8))


def test_a_step_depends_on_seed_and_number_alone(mixture):
    straight = batches(mixture, length_group_steps=3)
    wanted = [numbers(straight[step]) for step in range(7)]
    resumed = batches(mixture, length_group_steps=3)
    assert [numbers(resumed[step]) for step in (4, 5, 6)] == wanted[4:]
    other = ConversationBatches(mixture, processor(), 16, 8, seed=2, length_group_steps=3)
    assert [numbers(other[step]) for step in range(7)] != wanted


@pytest.mark.parametrize("num_processes, micro_batches", [(1, 2), (1, 4), (2, 1), (2, 2), (4, 2)])
def test_processes_and_micro_batches_share_the_same_batch(mixture, num_processes, micro_batches):
    (whole,) = batches(mixture, length_group_steps=2)[1]
    shares = [
        batches(
            mixture,
            length_group_steps=2,
            accumulation_steps=micro_batches,
            process_index=index,
            num_processes=num_processes,
        )[1]
        for index in range(num_processes)
    ]
    assert {len(share) for share in shares} == {micro_batches}
    # One turn after the other, the processes' micro_batches follow each other: they are about equally long.
    assert [
        number for turn in zip(*shares, strict=True) for batch in turn for number in batch.numbers
    ] == whole.numbers
    for name in ("num_text_tokens", "num_image_tokens", "num_tokens"):
        assert sum(getattr(batch, name) for share in shares for batch in share) == getattr(whole, name)


def test_grouping_by_length_saves_padding(mixture):
    def padding(group: int) -> float:
        made = batches(mixture, batch_size=6, length_group_steps=group)
        masks = [made[step][0].inputs["attention_mask"] for step in range(12)]
        return 1 - sum(mask.sum() for mask in masks).item() / sum(mask.numel() for mask in masks)

    assert padding(12) < 0.6 * padding(1)


def test_inputs_and_counts_of_a_micro_batch(mixture):
    made = batches(mixture)
    (batch,) = made[0]
    samples = [mixture[number] for number in batch.numbers]
    inputs = batch.inputs
    codes = [picture for sample in samples for picture in sample.codes(16)]
    assert len(codes) == len(inputs["codes"]) == len(inputs["image_is_target"])
    assert all(torch.equal(ours, given) for ours, given in zip(codes, inputs["codes"], strict=True))
    assert [made.names[task] for task in batch.tasks] == [sample.task for sample in samples]
    assert batch.text_tokens.tolist() == [(row[1:] != -100).sum() for row in inputs["labels"]]
    drawn = [  # of an edit, the target alone
        16 * sum(item["type"] == "image" for m in sample.messages if m["role"] == "assistant" for item in m["content"])
        for sample in samples
    ]
    assert batch.image_tokens.tolist() == drawn
    assert batch.num_image_tokens == sum(drawn) and batch.num_text_tokens == batch.text_tokens.sum()
    text = made.processor.tokenizer.decode(inputs["input_ids"][0])
    assert samples[0].messages[0]["content"][-1].get("text", "") in text
    moved = batch.inputs_on(torch.device("meta"))
    assert moved["labels"].is_meta and all(picture.is_meta for picture in moved["codes"])


def test_conversations_without_pictures(mixture):
    messages = [{"role": "user", "content": [text_item("a")]}, {"role": "assistant", "content": [text_item("b")]}]
    batch = batches(mixture).collate([(0, Sample(messages, [], task="captions"))])
    assert "codes" not in batch.inputs and batch.num_image_tokens == 0 and batch.num_text_tokens > 0


def test_what_does_not_fit_is_named(mixture, tmp_path):
    path = encode({"image": pictures(1), "text": ["a" * 50]}, tmp_path / "codes", build_vision())
    source = TaskMixture([TaskSource(path, "captions")], seed=0)
    with pytest.raises(ValueError, match=r"codes, row 0 is \d+ tokens long, `max_length` is 40"):
        batches(source, batch_size=1, max_length=40)[0]
    small = ConversationBatches(source, processor(patch_size=3), 16, 1, seed=0)
    with pytest.raises(ValueError, match=r"codes, row 0: a picture of 4 x 4 tokens; .* multiples of `patch_size`=3"):
        small[0]


def test_what_does_not_fit_is_replaced_named_once_a_window_and_the_same_on_all_processes(tmp_path):
    texts = ["a", "b" * 200, "", "c", "see <|res_1|>", "d"]
    path = encode({"image": pictures(6), "text": texts}, tmp_path / "codes", build_vision())
    mixture = TaskMixture([TaskSource(path, "captions")], seed=0)
    options = {"batch_size": 6, "max_length": 100, "length_group_steps": 2}
    made = batches(mixture, **options)
    first, second = made[0], made[1]
    reasons, num_read = made.skipped(0)
    assert num_read == 12 and made.skipped(1) == ([], 0)
    assert {reason.split(":")[0].split(",")[1].split()[1] for reason in reasons} == {"1", "2", "4"}
    assert any("tokens long, `max_length` is 100" in reason for reason in reasons)
    assert sorted(numbers(first) + numbers(second)) == list(range(12))
    halves = [batches(mixture, process_index=index, num_processes=2, **options) for index in (0, 1)]
    assert sorted(numbers(halves[0][0]) + numbers(halves[1][0])) == sorted(numbers(first))
    assert all(half.skipped(0) == (reasons, 12) for half in halves)
    with pytest.warns(UserWarning, match="3 rows are left out of the validation: "):
        assert sum(len(batch.numbers) for batch in made.validation_batches(6)) == 3


def test_validation_batches_are_the_same_on_every_process(mixture):
    alone = batches(mixture).validation_batches(5)
    second = batches(mixture, process_index=1, num_processes=2).validation_batches(5)
    assert sorted(numbers(alone)) == sorted(numbers(second)) == list(range(20))
    assert max(len(batch.numbers) for batch in second) == 4


def test_prefetching_keeps_the_order_and_passes_errors_on():
    assert list(prefetched(lambda step: step * step, range(3, 7))) == [9, 16, 25, 36]
    assert list(prefetched(lambda step: step, range(2, 2))) == []
    made = prefetched(lambda step: 1 / (5 - step), range(3, 9))
    assert [next(made), next(made)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(made)
