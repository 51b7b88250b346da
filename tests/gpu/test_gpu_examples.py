"""The examples train on the device."""

import json

import data
import pytest
import torch
import train_gpt
import train_mnist
from where import DEVICE, ON, few

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")


def digits():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 10
    images = torch.randn(120, 1, 28, 28, generator=generator) + labels.view(-1, 1, 1, 1)
    return data.Digits("noise", images, labels, images[:50], labels[:50])


@pytest.mark.parametrize("engine", few(("csr", "masked")))
def test_lenet(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda folder: digits())
    path = tmp_path / "out.json"
    options = ["--model", "lenet-300-100", "--epochs", "2", "--batch-size", "40", "--score-batches", "2"]
    options += ["--engine", engine, "--device", str(DEVICE), "--out", str(tmp_path), "--json", str(path)]
    assert train_mnist.main(options) == 0
    run = json.loads(path.read_text())["runs"][0]
    assert run["sparse"]["weights"] == round(0.05 * run["dense"]["weights"])
    assert run["sparse"]["bytes"]["parameters"] < run["dense"]["bytes"]["parameters"] or engine == "masked"


@pytest.mark.skipif(ON == "pretend", reason="checkpoints are of tensors with storage")
def test_gpt_resumes(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 400)
    options = ["--model", "tiny", "--text", str(text), "--context", "16", "--batch", "4", "--score-batches", "1"]
    options += ["--device", str(DEVICE), "--engine", "csr", "--save-every", "2", "--steps", "4"]

    def losses(out, *more):
        assert train_gpt.main([*options, "--out", str(out), *more]) == 0
        return json.loads((out / "report.json").read_text())["learners"]["sparse"]["losses"]

    whole = losses(tmp_path / "a")
    assert len(whole) == 4 and all(map(torch.isfinite, torch.tensor(whole)))
    last = sorted((tmp_path / "a" / "checkpoints").glob("step-*"))[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    assert losses(tmp_path / "a", "--resume") == whole


@pytest.mark.parametrize("more", few((("--block", "4", "4"), ("--bf16",), ())), ids=" ".join)
def test_gpt(more, tmp_path):
    if ON == "pretend" and "--bf16" in more:
        pytest.skip("the pretended device knows no autocast")
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 400)
    options = ["--model", "tiny", "--text", str(text), "--context", "16", "--batch", "4", "--accumulate", "2"]
    options += ["--device", str(DEVICE), "--steps", "3", "--out", str(tmp_path / "out"), *more]
    assert train_gpt.main(options) == 0
