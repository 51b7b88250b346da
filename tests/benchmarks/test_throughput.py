"""The benchmark runs whole at tiny sizes, its timer takes turns, and its verdicts follow from the figures."""

from __future__ import annotations

import json
import math

import layer_cases
import model_cases
import pytest
import throughput
from cases import GROUPS, QUICK_LAYERS, QUICK_NETS, cases
from marks import compiled
from timing import Effort, Timing, interleave

from snipkern import backends


class FakeMachine:
    """A clock that only work moves: each function takes a time of its own, and is written down."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def worker(self, name: str, *seconds: float):
        """Takes these times in turn, the last one from then on."""
        times = list(seconds)

        def work() -> None:
            self.log.append(name)
            self.now += times.pop(0) if len(times) > 1 else times[0]

        return work


EFFORT = Effort(seconds=10.0, least=3, most=10, sample=0.5)


def test_contenders_take_turns():
    machine = FakeMachine()
    found = interleave({"a": machine.worker("a", 1.0), "b": machine.worker("b", 1.0)}, EFFORT, machine.clock)
    assert machine.log == ["a", "a", "b", "b"] + ["a", "b"] * 10
    assert found["a"] == Timing(1.0, 1.0, 1.0, 10, 1)


def test_slow_ones_sit_out_rounds_evenly():
    machine = FakeMachine()
    found = interleave({"fast": machine.worker("f", 1.0), "slow": machine.worker("s", 100.0)}, EFFORT, machine.clock)
    assert (found["fast"].samples, found["slow"].samples) == (10, 3)
    assert "".join(machine.log[4:]) == "ffffsfffsfffs"


def test_very_slow_ones_warm_up_once():
    machine = FakeMachine()
    effort = Effort(1.0, 3, 5, 0.5, warm_up=1)
    assert interleave({"slow": machine.worker("s", 100.0)}, effort, machine.clock)["slow"].samples == 3
    assert len(machine.log) == 1 + 3


def test_fast_ones_are_called_several_times_a_sample():
    machine = FakeMachine()
    found = interleave({"tiny": machine.worker("t", 0.125)}, EFFORT, machine.clock)
    assert found["tiny"] == Timing(0.125, 0.125, 0.125, 10, 4)
    assert len(machine.log) == 2 + 4 * 10


def test_median_and_quartiles_leave_out_warm_up_and_outliers():
    machine = FakeMachine()
    worker = machine.worker("w", 900.0, 1.0, 1.0, 2.0, 3.0, 4.0, 500.0)
    found = interleave({"w": worker}, Effort(5.0, 3, 5, 0.5), machine.clock)["w"]
    assert found == Timing(3.0, 2.0, 4.0, 5, 1)


def test_the_collector_is_off_while_the_clock_runs_and_back_on_after_an_error():
    import gc

    calls: list[bool] = []

    def work() -> None:
        calls.append(gc.isenabled())
        if len(calls) == 4:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        interleave({"w": work}, Effort(1e-9, 3, 3, 0.0))
    assert calls == [True, True, False, False]
    assert gc.isenabled()


def finite_numbers(value: object) -> int:
    """Checks all numbers in a JSON value; returns how many there are."""
    if isinstance(value, dict):
        return sum(map(finite_numbers, value.values()))
    if isinstance(value, list):
        return sum(map(finite_numbers, value))
    if isinstance(value, float):
        assert math.isfinite(value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@compiled
def test_quick_run_of_every_case(tmp_path, capsys, restore_threads):
    path = tmp_path / "folder" / "out.json"
    picture = tmp_path / "pictures" / "out.png"
    throughput.main(["--quick", "--cases", "all", "--threads", "1", "--json", str(path), "--plot", str(picture)])
    content = json.loads(path.read_text())
    assert finite_numbers(content) > 200
    assert content["format"] == throughput.FORMAT
    assert content["machine"]["threads"] == 1
    assert content["machine"]["isa"] == backends.isa()
    assert {"cpu", "cores", "torch", "date", "load_average", "commit"} <= content["machine"].keys()
    results = content["results"]
    assert [(r["group"], r["name"]) for r in results] == [(c.group, c.name) for c in cases(quick=True)]
    assert {r["group"] for r in results} == set(GROUPS)
    for result in results:
        assert not [note for note in result["notes"] if "WRONG" in note or "off by" in note]
        for timing in result["timings"].values():
            assert 0 < timing["lower"] <= timing["median"] <= timing["upper"]
            assert timing["samples"] >= 3
    products = next(r for r in results if r["group"] == "products" and r["settings"]["kind"] == "conv")
    assert {f"{p} snipkern" for p in ("forward", "input gradient", "value gradient")} <= products["timings"].keys()
    assert products["facts"]["operations"]["snipkern"] > 0
    limits = next(r for r in results if r["group"] == "limits")["facts"]["rates"]["1"]
    assert limits.keys() == {"multiply-adds", "L1", "L2", "memory"}
    for net in ("VGG", "ResNet", "GPT"):
        model = next(r for r in results if r["group"] == "models" and net in r["name"])
        assert {"snipkern", "torch", "bf16", "snipkern bf16"} <= model["timings"].keys()
        for shares in model["facts"]["shares"].values():
            assert shares["products"] > 0 and shares["optimizer"] > 0 and shares["rest"] > 0
    linear = next(r for r in results if r["group"] == "layers" and r["settings"]["kind"] == "linear")
    assert {"snipkern", "torch", "onednn", "tuned", "bf16", "snipkern bf16", "torch csr"} <= linear["timings"].keys()
    conv = next(r for r in results if r["group"] == "layers" and r["settings"]["kind"] == "conv")
    assert {"snipkern", "torch", "channels_last", "bf16", "snipkern bf16"} <= conv["timings"].keys()
    median = {name: timing["median"] for name, timing in linear["timings"].items()}
    assert linear["ratios"]["torch"] == pytest.approx(median["torch"] / median["snipkern"])
    shown = capsys.readouterr().out
    for title in (
        "limits: what", "selection", "element masks, float32", "blocks and bfloat16", "products at 5 %", "density sweep",
        "thread scaling", "inference", "recurrent layers at 5 %", "training steps", "where the time of a step goes",
        "memory held", "scoring: all gradients",
    ):  # fmt: skip
        assert title in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "acceptance" not in shown  # tiny sizes prove nothing
    throughput.main(["--show", str(path), "--plot", str(tmp_path / "again.svg")])
    again = capsys.readouterr().out
    tables = shown[shown.index("limits: what") : shown.index(f"{len(results)} cases in")]
    assert again.splitlines()[0] == shown.splitlines()[0]
    assert again[again.index("limits: what") :] == tables
    assert "<svg" in (tmp_path / "again.svg").read_text()


def test_only_files_of_this_format_are_shown(tmp_path):
    path = tmp_path / "old.json"
    path.write_text('{"format": 0}')
    with pytest.raises(SystemExit, match=rf"must be of format {throughput.FORMAT} \(got 0\)"):
        throughput.main(["--show", str(path)])


def test_groups_can_be_chosen_and_unknown_ones_are_refused(capsys):
    assert {case.group for case in cases(throughput.parse(["--cases", "memory,models"]).cases)} == {"models", "memory"}
    with pytest.raises(SystemExit):
        throughput.parse(["--cases", "layers,speed"])
    assert f"cases must be of {', '.join(GROUPS)} (got 'speed')" in capsys.readouterr().err
    assert throughput.parse(["--cases", "layers"]).cases == ("limits", "layers")
    with pytest.raises(SystemExit):
        throughput.parse(["--threads", "0"])
    assert "threads must be a positive integer (got '0')" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        throughput.parse(["--device", "tpu"])
    assert "invalid choice: 'tpu'" in capsys.readouterr().err


def test_a_contender_with_a_wrong_result_is_left_out(monkeypatch):
    right = layer_cases.Layer.torch_default

    def broken(self):
        step = right(self)
        return lambda: tuple(2 * t for t in step())

    monkeypatch.setattr(layer_cases.Layer, "onednn", broken)
    contenders, _, notes = layer_cases.build(QUICK_LAYERS[0], 0.5)
    assert "onednn" not in contenders and "torch" in contenders
    assert any(note.startswith("onednn is left out, its y is off by") for note in notes)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_bytes_are_those_of_kept_weights(optimizer):
    net = QUICK_NETS[0]
    _, pruned, handle = model_cases._pair(net, optimizer, "csr")
    pruned.step()
    held = pruned.held_bytes()
    trained = 4 * (handle.kept + 2 * 96)
    moments = {"sgd": 1, "adamw": 2}[optimizer]
    steps = {"sgd": 0, "adamw": 4 * 4}[optimizer]
    words = 2 * 8 * math.ceil(96 * 96 / 64)
    assert held["parameters"] == held["gradients"] == trained
    assert held["optimizer"] == moments * trained + steps
    entries = 4 * handle.kept + 2 * 4 * math.ceil(handle.kept / 2)  # positions in 32 bits, rows and columns in 16
    assert held["index"] == words + 2 * 4 * (2 * 96 + 2) + entries
