"""Every block of docs/hub.md runs, in order, in one place, as a reader would run them."""

import shlex
import shutil
from pathlib import Path

from huggingface_hub import ModelCard
from markdown_blocks import blocks
from PIL import Image
from tiny_models import build_tiny_mllm, build_tiny_pipeline

from uniwetok_hf.adapters import lora_config, save_adapter
from uniwetok_hf.cli.main import main
from uniwetok_hf.evaluation.intervals import Score
from uniwetok_hf.evaluation.reports import Report, ScoreRow


PAGE = (Path(__file__).parent.parent / "docs" / "hub.md").read_text(encoding="utf-8")
BLOCKS = blocks(PAGE)


def test_all_blocks(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = build_tiny_pipeline()
    pipeline.save_pretrained("runs/emoji_mllm/pipeline")
    adapted = build_tiny_mllm()
    adapted.add_adapter(lora_config(r=2))
    save_adapter(adapted, "runs/my_style/adapter")
    rows = [ScoreRow({"what": "model"}, {"psnr": Score(21.5, 10)}, for_card=True)]
    Report("reconstruction", "emoji_mllm/pipeline", "emoji", "test", {}, rows).save("results/reconstruction")
    Image.linear_gradient("L").resize((100, 75)).convert("RGB").save("photo.jpg")
    names = {}
    assert [language for language, _ in BLOCKS] == ["bash", "python", "python", "python", "bash", "python"]
    for language, code in BLOCKS:
        if language == "python":
            exec(compile(code, "docs/hub.md", "exec"), names)
            continue
        for command in code.splitlines():
            assert main(shlex.split(command)[1:]) == 0, command

    assert {name: repository.private for name, repository in hub.repositories.items()} == {
        "org/emoji": False,
        "org/draft": True,
        "org/my-style": False,
        "org/emoji-tokenizer": True,
    }
    assert type(names["tokenizer"]) is type(pipeline.mllm.vision_model) and Path("photo.safetensors").exists()
    assert type(names["language_model"]) is type(pipeline.mllm)
    card = ModelCard(hub.files("org/emoji")["README.md"].decode())
    assert "It knows emoji only." in card.text and card.data.eval_results[0].metric_value == 21.5
    assert not any(path.endswith(".py") for name in hub.repositories for path in hub.files(name))
    shutil.rmtree("runs")
