import json
import os

import pytest
import yaml

from uniwetok_hf.evaluation.intervals import Score
from uniwetok_hf.evaluation.reports import METRICS, Report, ScoreRow


@pytest.fixture
def report():
    both = {"psnr": Score(21.5, 7, (21, 22)), "r_precision": Score(0.5, 7, (0.1, 0.9), 0.25)}
    rows = [
        ScoreRow({"what": "model", "size": "64x64"}, both, True),
        ScoreRow({"what": "model", "size": "32x32"}, {"psnr": Score(20.0, 7)}, True),
        ScoreRow({"what": "white"}, {"psnr": Score(float("inf"), 0), "r_precision": Score(0.25, 1200, (0.2, 0.3))}),
    ]
    facts = {"codes at 64": {"stuck_bits": 0, "entropy": 0.98764}, "codes at 32": {"stuck_bits": 3}}
    return Report("reconstruction", "tiny", "emoji", "test", {"crop": "centre"}, rows, facts)


def test_markdown(report):
    lines = report.to_markdown().splitlines()
    assert lines[0] == "## Reconstruction: tiny on emoji, test"
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert table[:5] == [
        ["what", "size", "PSNR dB ↑", "R-precision ↑", "N"],
        ["---"] * 5,
        ["model", "64x64", "21.50 [21.00, 22.00]", "50.0% [10.0, 90.0], chance 25.0%", "7"],
        ["model", "32x32", "20.00", "", "7"],
        ["white", "", "–", "25.0% [20.0, 30.0]", "1,200"],
    ]
    assert table[5:] == [
        ["", "codes at 64", "codes at 32"],
        ["---"] * 3,
        ["stuck bits", "0", "3"],
        ["entropy", "0.9876", ""],
    ]
    assert lines[-1] == "- crop: centre"


def test_counts_that_differ_are_told_in_the_cell():
    row = ScoreRow({"what": "model"}, {"precision": Score(0.5, 10), "recall": Score(0.25, 8)})
    text = Report("generation", "m", "d", "s", {}, [row]).to_markdown()
    assert "| 50.0% | 25.0% (N 8) | 10 |" in text


def test_json(report, tmp_path):
    report.save(tmp_path / "new" / "folder")
    values = json.loads((tmp_path / "new" / "folder" / "results.json").read_text(encoding="utf-8"))
    assert values["task"] == "reconstruction" and values["split"] == "test"
    assert values["results"][0]["scores"]["psnr"] == {"value": 21.5, "count": 7, "interval": [21, 22], "chance": None}
    assert values["results"][2]["scores"]["psnr"]["value"] is None  # JSON has no infinity
    assert values["facts"]["codes at 64"]["entropy"] == 0.98764
    assert values["package"].startswith("uniwetok-hf ")


def test_model_index_lists_the_models_own_scores_apart(report, tmp_path):
    paths = report.save(tmp_path)
    assert [path.name for path in paths] == ["results.json", "results.md", "model-index.yaml"]
    (entry,) = yaml.safe_load((tmp_path / "model-index.yaml").read_text())["model-index"]
    metrics = [(m["type"], m["name"], m["value"]) for result in entry["results"] for m in result["metrics"]]
    assert metrics == [
        ("psnr", "PSNR dB (64x64)", 21.5),
        ("r_precision", "R-precision (64x64)", 0.5),
        ("psnr", "PSNR dB (32x32)", 20.0),
    ]
    assert entry["name"] == "tiny" and entry["results"][0]["dataset"]["split"] == "test"


def test_files_are_replaced_whole(report, tmp_path):
    for name in ("results.md", "model-index.yaml"):
        (tmp_path / name).write_text("old")
    report.rows = [row for row in report.rows if not row.for_card]
    report.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]
    assert "old" not in (tmp_path / "results.md").read_text()


def test_every_metric_has_a_format():
    for title, form in METRICS.values():
        assert title.endswith(("↑", "↓")) and form.format(0.5)


def test_half_of_a_surrogate_pair_is_saved(report, tmp_path):
    """Of a label in JSON, or of an argument that is no UTF-8: hours of computing are behind it."""
    half, argument = json.loads('"a \\\\ \\ud83d"'), os.fsdecode(b"caf\xe9")
    report.rows[0].labels["what"], report.protocol["judge"] = half, argument
    report.save(tmp_path)
    values = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert values["results"][0]["what"] == half and values["protocol"]["judge"] == argument
    assert "- judge: caf\\udce9" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert yaml.safe_load((tmp_path / "model-index.yaml").read_text(encoding="utf-8"))["model-index"]
