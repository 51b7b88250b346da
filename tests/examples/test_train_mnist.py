"""The demo end to end on small made-up digits, and the pieces that it counts and times with."""

import json

import lenets
import pytest
import torch
import train_mnist
import training
from torch import nn

import snipkern as sk

PNG = b"\x89PNG\r\n\x1a\n"


def test_parameter_counts_are_the_papers():
    for name, weights, biases in (("lenet-300-100", 266_200, 410), ("lenet-5", 430_500, 580)):
        parameters = list(lenets.MODELS[name](None).parameters())
        assert sum(p.numel() for p in parameters if p.dim() > 1) == weights
        assert sum(p.numel() for p in parameters) == weights + biases


def test_lenet_5_has_no_activation_after_its_convolutions():
    kinds = [type(layer).__name__ for layer in lenets.lenet_5_caffe()]
    assert kinds == ["Conv2d", "MaxPool2d", "Conv2d", "MaxPool2d", "Flatten", "Linear", "ReLU", "Linear"]


@pytest.mark.parametrize("name", sorted(lenets.MODELS))
def test_initial_weights_are_variance_scaled_and_reproducible(name):
    net, twin = (lenets.MODELS[name](torch.Generator().manual_seed(5)) for _ in range(2))
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    for left, right in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(left, right)
    for parameter in net.parameters():
        if parameter.dim() == 1:
            assert not parameter.any()
            continue
        expected = parameter[0].numel() ** -0.5
        # Five standard errors of the standard deviation, taken as if the weights were normal.
        assert parameter.std().item() == pytest.approx(expected, rel=5 / (2 * parameter.numel()) ** 0.5)
        assert parameter.abs().max() <= 2 * expected / lenets.TRUNCATED_STD + 1e-6


@pytest.mark.parametrize(("optimizer", "state"), [("sgd", 4 * 66), ("adamw", 8 * 66 + 4 * 2)])
def test_bytes_are_those_of_the_tensors(optimizer, state):
    recipe = training.Recipe(epochs=1, lr=0.1, weight_decay=0.0)
    learner = training.Learner(nn.Linear(10, 6), optimizer, recipe, steps=1)
    assert learner.tensor_bytes() == {"parameters": 4 * 66, "gradients": 0, "optimizer": 0}
    learner.step(torch.randn(5, 10), torch.arange(5))
    assert learner.tensor_bytes() == {"parameters": 4 * 66, "gradients": 4 * 66, "optimizer": state}


def test_learning_rate_falls_twice_by_ten():
    recipe = training.Recipe(epochs=1, lr=0.5, weight_decay=0.0)
    learner = training.Learner(nn.Linear(4, 3), "sgd", recipe, steps=20)
    rates = []
    for _ in range(20):
        rates.append(learner.optimizer.param_groups[0]["lr"])
        learner.step(torch.randn(2, 4), torch.tensor([0, 1]))
    assert rates == pytest.approx([0.5] * 12 + [0.05] * 5 + [0.005] * 3)


def test_step_time_is_the_median_after_warm_up():
    recipe = training.Recipe(epochs=1, lr=0.5, weight_decay=0.0)
    learner = training.Learner(nn.Linear(4, 3), "sgd", recipe, steps=1)
    learner.seconds = [9.0] * training.WARM_UP_STEPS + [0.001, 0.5, 0.002]
    assert learner.milliseconds() == pytest.approx(2)
    learner.seconds = [0.003]
    assert learner.milliseconds() == pytest.approx(3)


def test_accuracy_counts_right_answers_over_all_batches():
    net = nn.Flatten()
    labels = torch.arange(2500) % 10
    images = nn.functional.one_hot(labels, 10).float()
    images[::5] = images[::5].roll(1, dims=1)
    assert training.accuracy(net, images, labels) == pytest.approx(80)
    assert net.training


@pytest.mark.parametrize(
    ("name", "optimizer", "engine"),
    [("lenet-300-100", "adamw", "csr"), ("lenet-300-100", "sgd", "masked"), ("lenet-5", "sgd", "csr")],
)
def test_demo_end_to_end(write_digits, tmp_path, capsys, name, optimizer, engine):
    out, report = tmp_path / "pictures", tmp_path / "deep" / "report.json"
    arguments = ["--data", write_digits(), "--model", name, "--epochs", 1, "--keep", 0.1, "--optimizer", optimizer]
    arguments += ["--batch-size", 20, "--engine", engine, "--out", out, "--json", report]
    assert train_mnist.main([str(argument) for argument in arguments]) == 0

    content = json.loads(report.read_text())
    (run,) = content["runs"]
    assert (run["model"], run["keep"], run["epochs"], run["steps"]) == (name, 0.1, 1, 15)
    weights = {"lenet-300-100": 266_200, "lenet-5": 430_500}[name]
    assert run["dense"]["weights"] == weights == sum(layer["numel"] for layer in run["layers"])
    assert run["sparse"]["weights"] == round(0.1 * weights) == sum(layer["kept"] for layer in run["layers"])
    assert run["density"] == pytest.approx(0.1, abs=1e-4)
    for kind in ("dense", "sparse"):
        # The bars are easy: 15 steps must beat chance (10 %) by far.
        assert run[kind]["test_accuracy"] > 40
        assert run[kind]["test_accuracy"] + run[kind]["test_error"] == pytest.approx(100)
        assert run[kind]["ms_per_step"] > 0
    biases = {"lenet-300-100": 410, "lenet-5": 580}[name]
    assert run["dense"]["bytes"]["parameters"] == run["dense"]["bytes"]["gradients"] == 4 * (weights + biases)
    assert run["dense"]["bytes"]["optimizer"] >= 4 * (weights + biases)
    assert run["dense"]["bytes"]["index"] == 0
    assert {layer["engine"] for layer in run["layers"]} == {engine}
    # Masked layers hold all of their weights.
    stored = run["sparse" if engine == "csr" else "dense"]["weights"]
    assert run["sparse"]["bytes"]["parameters"] == run["sparse"]["bytes"]["gradients"] == 4 * (stored + biases)
    assert (run["sparse"]["bytes"]["index"] > 0) == (engine == "csr")

    printed = capsys.readouterr().out
    assert "ms per training step" in printed
    assert f"{run['sparse']['weights']:,}" in printed
    assert len(run["figures"]) == 3
    for path in run["figures"]:
        assert path in printed
        picture = (out / path.rpartition("/")[2]).read_bytes()
        assert picture.startswith(PNG)
        assert len(picture) > 5000


def test_both_networks_run_by_default_and_repeat_exactly(write_digits, tmp_path):
    arguments = ["--data", str(write_digits(train=60, test=40)), "--epochs", "1", "--batch-size", "30", "--seed", "3"]
    runs = []
    for turn in ("a", "b"):
        out, report = tmp_path / turn, tmp_path / f"{turn}.json"
        assert train_mnist.main([*arguments, "--out", str(out), "--json", str(report)]) == 0
        runs.append(json.loads(report.read_text())["runs"])
    assert [run["model"] for run in runs[0]] == list(lenets.MODELS)
    for first, second in zip(*runs, strict=True):
        assert first["layers"] == second["layers"]
        for kind in ("dense", "sparse"):
            assert first[kind]["test_accuracy"] == second[kind]["test_accuracy"]


def test_index_bytes_are_those_of_the_topology():
    mask = sk.Mask.from_dense(torch.eye(8, 24) > 0)
    net = nn.Sequential(sk.nn.SparseLinear.from_dense(nn.Linear(24, 8), mask), nn.Linear(8, 2))
    # Of 8 kept weights: rows and columns in 16 bits, order in 32; 8 row and 24 column pointers; 192 bits of mask.
    assert train_mnist.index_bytes(net) == 2 * 8 * 2 + 4 * (8 + 9 + 25) + 24


def test_kept_weights_are_the_masked_ones():
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    generator = torch.Generator().manual_seed(0)
    masks = {
        name: sk.Mask.from_dense(torch.rand(parameter.shape, generator=generator) < 0.5)
        for name, parameter in net.named_parameters()
        if parameter.dim() > 1
    }
    kept = train_mnist.kept_weights(net, masks)
    parts = [net[n].weight.detach()[masks[f"{n}.weight"].to_dense()] for n in (0, 2)]
    assert torch.equal(kept, torch.cat(parts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "0"], "must be above 0 and at most 1 (got 0)"),
        (["--keep", "1.5"], "must be above 0 and at most 1 (got 1.5)"),
        (["--keep", "nan"], "must be above 0 and at most 1 (got nan)"),
        (["--epochs", "0"], "must be at least 1 (got 0)"),
        (["--lr", "-1"], "must be above 0 (got -1)"),
        (["--model", "vgg"], "invalid choice"),
    ],
)
def test_bad_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        train_mnist.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_unreadable_data_ends_with_a_message(tmp_path, capsys):
    assert train_mnist.main(["--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"train_mnist.py: data: {tmp_path} must contain train-images")


def test_divergence_ends_with_advice(write_digits, tmp_path, capsys):
    arguments = ["--data", str(write_digits()), "--model", "lenet-300-100", "--epochs", "3", "--out", str(tmp_path)]
    assert train_mnist.main([*arguments, "--lr", "1e30"]) == 1
    assert "must stay finite" in capsys.readouterr().err
