"""The GPU's cases run whole at tiny sizes, on a CPU that stands in for the device."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import accelerator
import gpu_cases
import gpu_layer_cases
import pytest
import throughput
import torch
from cases import QUICK_LAYERS
from layers import Layer
from marks import compiled


class StandIn(accelerator.Cuda):
    """The CPU with events, memory and a description as a CUDA device has them."""

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self.flushed = self.synchronized = 0

    def describe(self):
        return {
            "name": "Stand-in", "capability": "0.0", "multiprocessors": 1, "memory_bytes": 2**30, "cuda": None,
            "triton": None, "now": self.clocks(),
        }  # fmt: skip

    def clocks(self):
        return {"clocks.sm": "1410 MHz"}

    def l2_bytes(self):
        self.flushed += 1
        return 1 << 10

    def synchronize(self):
        self.synchronized += 1

    def memory(self, action):
        action()
        return {"held": 1 << 20, "peak": 1 << 21}

    def free_bytes(self):
        return 1 << 30

    def _event(self):
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", time.perf_counter())
        event.elapsed_time = lambda other: (other.at - event.at) * 1e3
        return event


@pytest.fixture
def stand_in(monkeypatch):
    device = StandIn()
    monkeypatch.setattr(accelerator, "missing", lambda: "")
    monkeypatch.setattr(accelerator, "Cuda", lambda: device)
    return device


@compiled
def test_quick_run_of_every_case(stand_in, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    throughput.main(["--device", "cuda", "--quick", "--cases", "all", "--json", str(path)])
    content = json.loads(path.read_text())
    assert content["arguments"]["device"] == "cuda" and "acceptance" not in content
    assert content["machine"]["device"]["name"] == "Stand-in"
    assert content["machine"]["device"]["afterwards"] == {"clocks.sm": "1410 MHz"}
    results = content["results"]
    assert [(r["group"], r["name"]) for r in results] == [
        (c.group, c.name) for c in gpu_cases.cases(gpu_cases.GROUPS, stand_in, quick=True)
    ]
    assert {r["group"] for r in results} == set(gpu_cases.GROUPS)
    assert stand_in.flushed == 1 and stand_in.synchronized > 10
    for result in results:
        assert not [note for note in result["notes"] if "WRONG" in note or "off by" in note]
        for timing in result["timings"].values():
            assert 0 < timing["lower"] <= timing["median"] <= timing["upper"]
    dense = {"torch", "torch tf32", "torch bf16", "snipkern", "snipkern bf16"}
    blocked = {f"snipkern 16x16{end}" for end in ("", " tf32", " bf16")}

    def contenders(group, name):
        return next(r["timings"].keys() for r in results if r["group"] == group and name in r["name"])

    assert dense | blocked | {"masked", "cusparse csr"} == contenders("layers", "Linear")
    assert dense | {"masked"} == contenders("layers", "Conv")
    assert dense | blocked | {"cusparse csr"} <= contenders("forward", "Linear")
    bsr = [
        n for r in results if r["group"] == "forward" for n in (*r["timings"], *r["notes"]) if n.startswith("torch bsr")
    ]
    assert len(bsr) == 2  # timed, or told why not
    assert {
        "torch",
        "torch bf16",
        "torch tf32",
        "snipkern",
        "snipkern csr",
        "snipkern 16x16 bf16",
        "masked",
    } <= contenders("models", "GPT")
    assert {"snipkern", "read", "topk"} == contenders("selection", "")
    shown = capsys.readouterr().out
    for text in (
        "Stand-in (compute capability 0.0)",
        "clocks.sm 1410 MHz",
        "layers: Linear",
        "memory: GPT",
        "selection:",
    ):
        assert text in shown
    throughput.main(["--show", str(path)])
    assert shown[shown.index("layers: Linear") : shown.index(f"{len(results)} cases in")] in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--plot draws runs of the CPU"):
        throughput.main(["--show", str(path), "--plot", str(tmp_path / "x.png")])


def test_reduced_float32_is_for_those_who_ask_for_it(stand_in):
    seen = []
    with accelerator.tf32(False):
        accelerator.rounded(lambda: seen.append(torch.backends.cuda.matmul.allow_tf32))()
        seen += [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]
    assert seen == [True, False, False]


def test_every_call_starts_with_an_empty_cache_and_an_event_of_its_own():
    device, log = StandIn(), []
    device._flushed = SimpleNamespace(zero_=lambda: log.append("flush"))
    device._event = lambda: SimpleNamespace(record=lambda: log.append("event"), elapsed_time=lambda other: 3.0)
    assert device.cold(lambda: log.append("call"), 2) == pytest.approx(3e-3)
    assert log == ["flush", "event", "call", "event"] * 2
    log.clear()
    assert device.running(lambda: log.append("call"), 2) == pytest.approx(1.5e-3)
    assert log == ["event", "call", "call", "event"]


def test_dense_convolutions_read_all_in_the_layout_of_their_weight():
    seen = []

    def step(*tensors):
        seen.append(tensors)
        return lambda: tensors

    linear, conv = (Layer(shape, 0.5) for shape in QUICK_LAYERS)
    gpu_layer_cases.dense(conv, step)
    gpu_layer_cases.dense(linear, step)
    (module, *tensors), plain = seen
    for tensor in (module.weight, *tensors):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(tensors[0], conv.x) and torch.equal(tensors[1], conv.dy)
    assert plain[1] is linear.x and plain[2] is linear.dy


def test_a_contender_with_a_wrong_result_is_left_out(monkeypatch):
    right = gpu_layer_cases.masked

    def broken(found):
        module = right(found)
        module.bias.data += 1
        return module

    monkeypatch.setattr(gpu_layer_cases, "masked", broken)
    contenders, _, notes = gpu_layer_cases.layer(QUICK_LAYERS[0], 0.5, (), torch.device("cpu"), True)
    assert "masked" not in contenders and "snipkern" in contenders
    assert any(note.startswith("masked is left out, its y is off by") for note in notes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(capsys):
    with pytest.raises(SystemExit):
        throughput.parse(["--device", "cuda"])
    assert "--device cuda needs a CUDA device (" in capsys.readouterr().err
    assert throughput.parse(["--device", "cuda", "--show", "x.json"]).cases == gpu_cases.DEFAULT
    with pytest.raises(SystemExit):
        throughput.parse(["--device", "cuda", "--cases", "latency"])
    assert f"cases must be of {', '.join(gpu_cases.GROUPS)} (got 'latency')" in capsys.readouterr().err
