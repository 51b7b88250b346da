"""Checkpoints: a killed run goes on to the same losses, bit for bit, whatever it was killed at."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpt_checkpoint
import pytest
import torch
import train_gpt
from gpt_checkpoint import Checkpoint, CheckpointError
from safetensors import safe_open

import snipkern as sk

SCRIPT = Path(train_gpt.__file__)
OPTIONS = ["--model", "tiny", "--keep", "0.1", "--engine", "csr", "--validation-batches", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def text(tmp_path):
    """A text of its own for each test; threads as they were afterwards."""
    path = tmp_path / "text"
    path.write_bytes(SCRIPT.read_bytes() * 3)
    threads = torch.get_num_threads()
    yield path
    torch.set_num_threads(threads)


def train(text, out, *more):
    return train_gpt.main([*OPTIONS, "--text", str(text), "--out", str(out), *map(str, more)])


def losses(out):
    learners = json.loads((out / "report.json").read_text())["learners"]
    return {name: (learner["losses"], learner["validation"]) for name, learner in learners.items()}


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(sk.__file__).parents[1])}


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--compare", "--bf16"]], ids=["sparse", "compare-bf16"])
def test_killed_and_resumed_it_continues_with_the_same_masks_and_losses(text, tmp_path, more):
    more = [*more, "--steps", "30", "--save-every", "5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, str(SCRIPT), *OPTIONS, "--text", str(text), "--out", str(killed), *more]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints" / "step-00000010").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = gpt_checkpoint.newest(killed / "checkpoints")[0]
    assert 10 <= reached.step < 30

    assert train(text, whole, *more) == 0
    assert train(text, killed, *more, "--resume") == 0
    assert losses(killed) == losses(whole)
    ends = [Checkpoint(folder / "checkpoints" / "step-00000030") for folder in (whole, killed)]
    assert ends[0].keys == ends[1].keys
    masks = [key for key in ends[0].keys[0] if key.endswith("weight_mask")]
    assert len(masks) == 9
    for key in masks:
        assert torch.equal(reached.tensor(key), ends[0].tensor(key))
    for key in ends[0].keys[0]:
        if not key.endswith("seconds"):
            assert torch.equal(ends[0].tensor(key), ends[1].tensor(key)), key


@pytest.mark.parametrize("more", [["--block", "16", "16", "--engine", "auto"], ["--dense"], ["--engine", "masked"]])
def test_every_kind_of_model_resumes(text, tmp_path, more):
    more = [*more, "--steps", 6, "--save-every", 3]
    assert train(text, tmp_path / "a", *more) == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-00000006")
    assert train(text, tmp_path / "b", *more, "--resume") == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_files_are_safetensors_and_json_and_the_newest_two_stay(text, tmp_path):
    assert train(text, tmp_path, "--steps", 7, "--save-every", 2) == 0
    folder = tmp_path / "checkpoints"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [f"step-0000000{n}/{name}" for n in (6, 7) for name in ("rank-0.safetensors", "run.json")]
    with safe_open(folder / "step-00000007" / "rank-0.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {"sparse/model/head.weight_values", "sparse/model/head.weight_mask", "random/0", "sparse/losses",
            "sparse/optimizer/head.weight_values/exp_avg"} <= names  # fmt: skip
    run = json.loads((folder / "step-00000007" / "run.json").read_text())
    assert (run["step"], run["settings"]["keep"], run["settings"]["steps"]) == (7, 0.1, 7)


def test_half_written_and_damaged_checkpoints_are_passed_over(text, tmp_path, capsys):
    more = ["--steps", 6, "--save-every", 2]
    assert train(text, tmp_path, *more) == 0
    expected = losses(tmp_path)
    folder = tmp_path / "checkpoints"
    # Killed while it wrote the next one; and the last one was cut off by a full disk.
    (folder / "step-00000008.partial").mkdir()
    (folder / "step-00000008.partial" / "rank-0.safetensors").write_bytes(b"half")
    file = folder / "step-00000006" / "rank-0.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    capsys.readouterr()
    assert train(text, tmp_path, *more, "--resume") == 0
    printed = capsys.readouterr().out
    assert "left out: checkpoint: " in printed and "step-00000006 cannot be read" in printed
    assert "going on from" in printed and "step-00000004" in printed
    assert losses(tmp_path) == expected
    assert Checkpoint(folder / "step-00000006").step == 6


@pytest.mark.parametrize("content", ["{", "{}", '{"format": 2, "step": 4}', "[]"])
def test_only_damaged_checkpoints_are_an_error(text, tmp_path, content, capsys):
    folder = tmp_path / "checkpoints" / "step-00000004"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"checkpoint: .*step-00000004 (cannot be read|must have format 1)"):
        gpt_checkpoint.newest(folder.parent)
    assert train(text, tmp_path, "--resume") == 1
    assert capsys.readouterr().err.startswith("train_gpt.py: checkpoint: ")


def test_missing_tensors_are_named(text, tmp_path):
    assert train(text, tmp_path, "--steps", 1, "--save-every", 1) == 0
    saved = Checkpoint(tmp_path / "checkpoints" / "step-00000001")
    with pytest.raises(CheckpointError, match=r"must hold .sparse/model/tail. .got none"):
        saved.parameter("sparse", "tail")


def test_a_checkpoint_of_another_run_is_refused(text, tmp_path, capsys):
    more = ["--steps", 2, "--save-every", 1]
    assert train(text, tmp_path, *more) == 0
    for changes, message in (
        (["--keep", "0.2", "--resume"], "--keep must be as in"),
        (["--seed", "3", "--resume"], "--seed must be as in"),
        (["--validation-batches", "3", "--resume"], "--validation-batches must be as in"),
        ([], "holds another run's; --resume it, or choose another --out"),
    ):
        capsys.readouterr()
        assert train(text, tmp_path, *more, *changes) == 1
        assert message in capsys.readouterr().err
    text.write_bytes(b"another text " * 1000)
    assert train(text, tmp_path, *more, "--resume") == 1
    assert "the bytes of --text must be as in" in capsys.readouterr().err


def test_resume_without_a_checkpoint_begins(text, tmp_path, capsys):
    assert train(text, tmp_path, "--steps", 2, "--resume") == 0
    assert "starting from the beginning" in capsys.readouterr().out
    assert not (tmp_path / "checkpoints").exists()


def test_a_finished_run_resumes_to_its_report(text, tmp_path):
    more = ["--steps", 3, "--save-every", 3]
    assert train(text, tmp_path, *more) == 0
    before = losses(tmp_path)
    assert train(text, tmp_path, *more, "--resume") == 0
    assert losses(tmp_path) == before
