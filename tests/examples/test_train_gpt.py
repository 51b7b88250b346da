"""The large-model script end to end, on a tiny model: alone, side by side, and on several processes."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import gpt_report
import pytest
import torch
import train_gpt
from forked import Ranks
from gpt_model import SIZES

import snipkern as sk

SCRIPT = Path(train_gpt.__file__)
PNG = b"\x89PNG\r\n\x1a\n"
TINY = ["--model", "tiny", "--validation-batches", "2", "--text", str(SCRIPT.with_name("*.py"))]
WEIGHTS = SIZES["tiny"].weights()


def train(out, *more):
    assert train_gpt.main([*TINY, "--out", str(out), *map(str, more)]) == 0
    return json.loads((out / "report.json").read_text())


def test_dense_and_sparse_side_by_side(tmp_path, capsys):
    report = train(
        tmp_path, "--compare", "--block", 8, 8, "--keep", 0.1, "--steps", 40, "--engine", "auto", "--lr", 5e-3
    )
    learners = report["learners"]
    trained = ["dense", "sparse", "sparse 8x8"]
    timed = [f"{name}, bf16" for name in trained] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else []
    assert list(learners) == trained + timed
    assert learners["dense"]["weights"] == WEIGHTS
    assert learners["sparse"]["weights"] == round(0.1 * WEIGHTS) >= learners["sparse 8x8"]["weights"]
    for name in trained:
        assert len(learners[name]["losses"]) == 40
        assert [step for step, _ in learners[name]["validation"]] == [8, 16, 24, 32, 40]
        # Uniformly random bytes would cost 5.55.
        assert learners[name]["validation_loss"] == learners[name]["validation"][-1][1] < 4.5
    for name in timed:
        assert learners[name]["validation_loss"] is None
        assert len(learners[name]["losses"]) == train_gpt.TIMED_STEPS
    assert learners["dense"]["losses"] != learners["sparse"]["losses"]
    assert report["settings"]["block"] == [8, 8]
    assert report["peak_bytes"] > 50 * 2**20

    printed = capsys.readouterr().out
    for figure in ("loss on held-out text", "tokens/s", "speed / dense", "memory / dense", "MiB in all",
                   f"{WEIGHTS:,}", f"{learners['sparse']['validation_loss']:.4f}",
                   f"{SIZES['tiny'].parameters():,} parameters", "sparse: kept 11,469 of 114,688 weights"):  # fmt: skip
        assert figure in printed
    assert (tmp_path / "losses.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("more", "name", "weights"),
    [
        (["--dense"], "dense", WEIGHTS),
        (["--keep", 0.2, "--engine", "csr"], "sparse", round(0.2 * WEIGHTS)),
        (["--keep", 0.2, "--bf16", "--accumulate", 2, "--context", 16, "--batch", 4], "sparse", round(0.2 * WEIGHTS)),
    ],
)
def test_one_model_alone_repeats_exactly(tmp_path, more, name, weights):
    first, second = (train(tmp_path / turn, *more, "--steps", 4)["learners"] for turn in "ab")
    assert list(first) == [name]
    assert first[name]["weights"] == weights
    assert first[name]["losses"] == second[name]["losses"]
    assert first[name]["validation"] == second[name]["validation"]
    other = train(tmp_path / "c", *more, "--steps", 4, "--seed", 1)["learners"]
    assert other[name]["losses"] != first[name]["losses"]


def test_comparing_changes_nothing_for_those_compared(tmp_path):
    more = ["--keep", 0.2, "--engine", "csr", "--steps", 5]
    both = train(tmp_path / "both", *more, "--compare")["learners"]
    assert both["sparse"]["losses"] == train(tmp_path / "sparse", *more)["learners"]["sparse"]["losses"]
    assert both["dense"]["losses"] == train(tmp_path / "dense", *more, "--dense")["learners"]["dense"]["losses"]


def test_without_matplotlib_there_is_no_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpt_report.importlib.util, "find_spec", lambda name: None)
    train(tmp_path, "--steps", 1)
    assert "no picture of the losses: matplotlib is not installed" in capsys.readouterr().out
    assert not (tmp_path / "losses.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "0"], "must be above 0 and at most 1 (got 0)"),
        (["--steps", "0"], "must be at least 1 (got 0)"),
        (["--lr", "nan"], "must be above 0 (got nan)"),
        (["--weight-decay", "-1"], "must be at least 0 (got -1)"),
        (["--seed", "-1"], "must be at least 0 and below 2**63 (got -1)"),
        (["--seed", str(2**63)], "must be at least 0 and below 2**63 (got 9223372036854775808)"),
        (["--block", "4"], "expected 2 arguments"),
        (["--model", "8b"], "invalid choice"),
        (["--dense", "--compare"], "not allowed with argument"),
        (["--block", "4", "4", "--engine", "csr"], "--block chooses engines itself: --engine auto (got csr)"),
        (["--fsdp", "--engine", "masked"], "--fsdp needs sparse layers: --engine csr (got masked)"),
        (["--memory", "stream", "--block", "4", "4"], "--block needs --memory plain (got stream)"),
        (["--memory", "stream", "--score-batches", "2"], "--memory stream scores one batch: --score-batches 1 (got 2)"),
    ],
)
def test_bad_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        train_gpt.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "no such file"], "text: --text must name files or patterns that match some (got 'no such file')"),
        (["--context", "10000000"], "must have more than --context 10000000 bytes to train on"),
        (["--batch", "6", "--accumulate", "4"], "--batch must be a multiple of processes times --accumulate, 1 x 4 (got 6)"),
        (["--fsdp"], "--fsdp shards over processes: start it with torchrun --nproc-per-node N"),
        (["--lr", "1e30", "--warm-up", "0"], "the loss of sparse must stay finite"),
        (["--keep", "1e-9"], "keep"),
    ],
)  # fmt: skip
def test_errors_are_one_line(tmp_path, arguments, message, capsys):
    assert train_gpt.main([*TINY, "--out", str(tmp_path), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("train_gpt.py: ") and error.count("\n") == 1
    assert message in error


def test_an_unwritable_place_is_said_before_training(tmp_path, capsys):
    place = tmp_path / "file"
    place.touch()
    assert train_gpt.main([*TINY, "--out", str(place), "--steps", "1"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("train_gpt.py: ") and str(place) in printed.err
    assert "step 1/1" not in printed.out


def test_an_interrupt_says_what_is_left(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_gpt, "train", interrupt)
    for more, message in (([], "nothing was saved"), (["--save-every", "1"], "--resume goes on from")):
        assert train_gpt.main([*TINY, "--out", str(tmp_path), *more]) == 130
        assert message in capsys.readouterr().err


def test_help_tells_the_sizes(capsys):
    with pytest.raises(SystemExit):
        train_gpt.main(["--help"])
    printed = capsys.readouterr().out
    assert "small   6 layers of 512, 8 heads, context 128: 19.2 million" in printed
    assert "7b " in printed


def options(out, *more):
    chosen = [*TINY, "--threads", 1, "--engine", "csr", "--keep", 0.2, "--steps", 4, "--out", out, *more]
    return list(map(str, chosen))


def torchrun(processes, out, *more):
    """Runs the script in several processes; returns its report and what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, SCRIPT]
    command += options(out, *more)
    environment = {**os.environ, "PYTHONPATH": str(Path(sk.__file__).parents[1])}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "report.json").read_text())["learners"], done.stdout


@pytest.fixture(scope="module")
def in_ranks(tmp_path_factory):
    """As torchrun, whose variables new processes get; without importing torch for each of them, and for torchrun."""
    server = Ranks("train_gpt")

    def run(processes, out, *more):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        variables = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        log = tmp_path_factory.mktemp("printed") / "rank"
        statuses, printed = server.run("train_gpt.main", [[options(out, *more)]] * processes, variables, log, 300)
        assert not any(statuses), printed
        return json.loads((out / "report.json").read_text())["learners"], printed[0]

    yield run
    server.close()


@pytest.mark.slow
def test_replicas_train_as_one_process_does(tmp_path):
    alone = train(tmp_path / "1", "--engine", "csr", "--keep", 0.2, "--steps", 4, "--accumulate", 4, "--compare")[
        "learners"
    ]
    found, printed = torchrun(2, tmp_path / "2", "--accumulate", 2, "--compare")
    assert "2 processes, replicated (DDP)" in printed
    assert list(found) == ["dense", "sparse"]
    for name, learner in found.items():
        assert learner["losses"] == pytest.approx(alone[name]["losses"], rel=1e-3)
        assert learner["validation_loss"] == pytest.approx(alone[name]["validation_loss"], rel=1e-3)
        assert learner["weights"] == alone[name]["weights"]


@pytest.mark.slow
def test_shards_train_as_one_process_does_and_resume(tmp_path, in_ranks):
    how = ["--engine", "csr", "--keep", 0.2, "--steps", 4, "--score-batches", 1]
    alone = train(tmp_path / "1", *how)["learners"]["sparse"]
    found, printed = torchrun(2, tmp_path / "2", "--fsdp", "--memory", "stream", "--save-every", 2)
    assert "2 processes, sharded (FSDP2)" in printed
    learner = found["sparse"]
    assert learner["losses"] == pytest.approx(alone["losses"], rel=1e-3)
    assert learner["validation_loss"] == pytest.approx(alone["validation_loss"], rel=1e-3)
    assert learner["weights"] == alone["weights"]
    # Each of two ranks holds about half of it.
    assert 0.4 < learner["bytes"]["parameters"] / alone["bytes"]["parameters"] < 0.6

    # A dead run goes on, on as many processes or on another number.
    checkpoints = tmp_path / "2" / "checkpoints"
    assert sorted(path.name for path in (checkpoints / "step-00000002").iterdir()) == [
        "rank-0.safetensors", "rank-1.safetensors", "run.json",
    ]  # fmt: skip
    shutil.rmtree(checkpoints / "step-00000004")
    shutil.copytree(tmp_path / "2", tmp_path / "3")
    again, printed = in_ranks(2, tmp_path / "2", "--fsdp", "--memory", "stream", "--resume")
    assert "going on from" in printed
    assert again["sparse"]["losses"] == learner["losses"]
    assert again["sparse"]["validation"] == learner["validation"]
    other, _ = in_ranks(1, tmp_path / "3", "--fsdp", "--memory", "stream", "--resume")
    assert other["sparse"]["losses"] == pytest.approx(learner["losses"], rel=1e-3)


@pytest.mark.slow
def test_shards_of_layers_that_keep_nothing(tmp_path, in_ranks):
    found, _ = in_ranks(2, tmp_path, "--fsdp", "--keep", 0.00005, "--steps", 2)
    assert found["sparse"]["weights"] == 6  # in nine layers


@pytest.mark.slow
def test_sharded_blocks_train_as_one_process_does_and_resume(tmp_path, in_ranks):
    more = ["--block", 4, 2, "--compare"]
    alone = train(tmp_path / "1", *more, "--engine", "auto", "--keep", 0.2, "--steps", 4)["learners"]
    found, printed = in_ranks(2, tmp_path / "2", "--fsdp", *more, "--engine", "auto", "--save-every", 2)
    assert "engines bsr" in printed and "masked" not in printed
    assert list(found) == ["dense", "sparse", "sparse 4x2"]
    for name, learner in found.items():
        assert learner["weights"] == alone[name]["weights"]
        assert learner["losses"] == pytest.approx(alone[name]["losses"], rel=1e-3)
    shutil.rmtree(tmp_path / "2" / "checkpoints" / "step-00000004")
    again, _ = in_ranks(1, tmp_path / "2", "--fsdp", *more, "--engine", "auto", "--resume")
    assert again["sparse 4x2"]["losses"] == pytest.approx(found["sparse 4x2"]["losses"], rel=1e-3)


def test_streamed_gradients_choose_the_same_weights(tmp_path):
    more = ["--keep", 0.2, "--engine", "csr", "--steps", 2, "--score-batches", 1]
    plain, stream = (train(tmp_path / memory, *more, "--memory", memory) for memory in ("plain", "stream"))
    assert plain["learners"]["sparse"]["losses"] == stream["learners"]["sparse"]["losses"]
