"""The roofline: formulas that count what there is to count, times that follow from them, devices as they describe themselves."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from snipkern.backends.precision import tf32_allowed
from snipkern.engine import gpu_kernels
from snipkern.engine.devices import A100, B200, GPUS, H100, described
from snipkern.engine.gpu_kernels import FORWARD, INPUT_GRAD, WEIGHT_GRAD, kernels, seconds
from snipkern.engine.roofline import LAUNCH, Kernel
from snipkern.engine.workload import Workload
from snipkern.ops.checks import FLOATS

CUDA_SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
LINEAR = Workload((4096, 4096), 4096**2 // 20, (4096, 4096))
CONV = Workload((256, 128, 3, 3), 256 * 128 * 9 // 20, (32, 128, 16, 16), padding=(1, 1))
BLOCKS = replace(LINEAR, block=(32, 32))
COVER = replace(LINEAR, cover=(16, 16), stored=4096**2 // 4, ordered=True)
CASES = [("dense", LINEAR), ("csr", LINEAR), ("bsr", BLOCKS), ("cover", COVER)]
PRODUCTS = [FORWARD, INPUT_GRAD, WEIGHT_GRAD]


def named(engine, layer, name, tf32=False):
    (found,) = [kernel for kernel in kernels(engine, layer, tf32) if kernel.name == name]
    return found


class TestKernel:
    FULL = Kernel("full", 1e12, 1e9, 1e9, 1e9, "fp32", parts=108 * 1000)

    def test_the_slowest_stream_and_a_launch(self):
        cores = replace(A100, fp32=1e12, hbm=1e9, l2=1e9, l1=1e9)
        times = self.FULL.streams(cores)
        assert times == pytest.approx({"arithmetic": 1 / 0.6, "L1": 1 / 0.8, "L2": 1.0, "memory": 1 / 0.85})
        assert self.FULL.seconds(cores) == pytest.approx(1 / 0.6 + LAUNCH) and self.FULL.bound(cores) == "arithmetic"
        for stream, peak in {"L1": "l1", "L2": "l2", "memory": "hbm"}.items():
            assert self.FULL.bound(replace(cores, **{peak: 1e8})) == stream
        idle = Kernel("idle", 0.0, 0.0, 0.0, 0.0, "fp32", launches=3)
        assert idle.seconds(A100) == 3 * LAUNCH and idle.bound(A100) == "launch"

    def test_few_thread_blocks_leave_multiprocessors_idle(self):
        times = [replace(self.FULL, parts=parts).streams(A100) for parts in (108, 54, 109, 216)]
        base = times[0]
        assert times[1]["L2"] == pytest.approx(2 * base["L2"]) and times[3] == pytest.approx(base)
        assert times[2]["arithmetic"] == pytest.approx(base["arithmetic"] * 2 * 108 / 109)
        assert all(time["memory"] == base["memory"] for time in times)

    def test_the_library_has_other_shares_than_our_tensor_cores(self):
        half = replace(self.FULL, unit="half", parts=math.inf)
        ours, library = (replace(half, library=flag).streams(B200)["arithmetic"] for flag in (False, True))
        assert ours == pytest.approx(1e12 / (2250e12 * 0.25 * 0.6)) and library == pytest.approx(1e12 / (2250e12 * 0.7))


class TestFormulas:
    @pytest.mark.parametrize("engine, layer", CASES, ids=[engine for engine, _ in CASES])
    def test_operations_are_two_for_each_sample_and_multiplied_weight(self, engine, layer):
        multiplied = {"dense": layer.numel, "cover": layer.stored}.get(engine, layer.kept)
        for name in PRODUCTS:
            assert named(engine, layer, name).flops == pytest.approx(2 * 4096 * multiplied)

    @pytest.mark.parametrize("item, dtype", ((4, torch.float32), (2, torch.bfloat16), (8, torch.float64)))
    def test_memory_holds_every_operand_once(self, item, dtype):
        x = y = 4096 * 4096 * item
        dense, csr, bsr = (named(e, replace(w, dtype=dtype), FORWARD) for e, w in CASES[:3])
        assert dense.hbm == x + y + 4096**2 * item
        assert csr.hbm == x + y + LINEAR.kept * (item + 2)
        assert bsr.hbm == x + y + BLOCKS.kept * item + BLOCKS.kept / 1024 * 4
        guard = named("guard", replace(LINEAR, dtype=dtype), "zero pruned")
        assert guard.hbm == 4096**2 * (3 * item + 0.25) and guard.flops == 0

    def test_single_weights_read_a_value_for_each_multiply_add(self):
        kernel = named("csr", LINEAR, FORWARD)
        tiles = 4096 * 4 // 128
        assert kernel.l2 == LINEAR.kept * (4096 * 4 + tiles * 6)
        half = named("csr", replace(LINEAR, dtype=torch.float16), FORWARD)
        assert half.l2 == LINEAR.kept * (4096 * 2 + tiles // 2 * 4) and half.unit == "fp32"
        wide = replace(LINEAR, shape=(4096, 70_000), input=(4096, 70_000))
        assert named("csr", wide, FORWARD).l2 == LINEAR.kept * (4096 * 4 + tiles * 8)

    def test_blocks_read_inputs_once_for_the_rows_of_a_tile(self):
        bf16 = replace(LINEAR, dtype=torch.bfloat16)
        reads = 2.0 * 4096 * LINEAR.kept
        for height, pieces in ((16, 1), (32, 1), (64, 1), (128, 2), (24, 1)):
            kernel = named("bsr", replace(bf16, block=(height, 8)), FORWARD)
            assert kernel.l2 == pytest.approx(reads * pieces / height + 2 * LINEAR.kept * 32)
            padded = {24: 32}.get(height, height)
            assert kernel.flops == pytest.approx(2 * 4096 * LINEAR.kept * padded / height)
            assert kernel.parts == -(-4096 // height) * pieces * 32
            back = named("bsr", replace(bf16, block=(8, height)), INPUT_GRAD)
            assert (back.l2, back.flops) == (kernel.l2, kernel.flops)
            grad = named("bsr", replace(bf16, block=(height, 8)), WEIGHT_GRAD)
            assert grad.l2 == pytest.approx(reads * (pieces / height + 1 / 64))

    def test_permission_for_tf32_takes_the_tensor_cores(self):
        assert [named(e, w, FORWARD, tf32).unit for e, w in CASES[:3] for tf32 in (False, True)] == [
            "fp32", "tf32", "fp32", "fp32", "fp32", "tf32",
        ]  # fmt: skip
        assert {named("bsr", replace(BLOCKS, dtype=dtype), FORWARD, True).unit for dtype in FLOATS} == {
            "fp64",
            "tf32",
            "half",
        }

    def test_what_is_not_wanted_and_what_comes_on_top(self):
        for engine, layer in CASES:
            names = [kernel.name for kernel in kernels(engine, replace(layer, input_grad=False))]
            assert INPUT_GRAD not in names and {FORWARD, WEIGHT_GRAD} <= set(names)
        assert "transposing" in [k.name for k in kernels("csr", LINEAR)] and "transposing" not in [
            k.name for k in kernels("csr", CONV)
        ]
        plain, ordered = (seconds("bsr", replace(BLOCKS, ordered=flag), A100) for flag in (False, True))
        assert plain < ordered
        mixed = replace(BLOCKS, singles=LINEAR.kept // 4)
        blocks, single = replace(BLOCKS, kept=mixed.kept - mixed.singles), replace(LINEAR, kept=mixed.singles)
        parts = seconds("bsr", blocks, A100) + seconds("csr", single, A100)
        assert parts < seconds("bsr", mixed, A100) < 1.2 * parts
        same = seconds("bsr", replace(LINEAR, block=(16, 16), kept=COVER.stored, ordered=True), A100)
        assert same < seconds("cover", COVER, A100)
        assert seconds("masked", LINEAR, A100) == seconds("dense", LINEAR, A100) + seconds("guard", LINEAR, A100)

    @pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
    @pytest.mark.parametrize("layer", (LINEAR, CONV), ids=("linear", "conv"))
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_more_work_takes_longer_and_larger_blocks_less(self, gpu, layer, dtype):
        layer = replace(layer, dtype=dtype)
        for engine, block in (("csr", None), ("bsr", (16, 16))):
            few, many = (replace(layer, block=block, kept=layer.numel // part) for part in (100, 10))
            assert 0 < seconds(engine, few, gpu) < seconds(engine, many, gpu)
        sides = [seconds("bsr", replace(layer, block=(side, side)), gpu) for side in (4, 8, 16, 32)]
        assert all(small >= large for small, large in itertools.pairwise(sides)) and sides[0] > sides[2]
        assert all(math.isfinite(seconds(e, replace(layer, block=(3, 200), kept=0), gpu)) for e in ("csr", "bsr"))


class TestDevices:
    def properties(self, **known):
        base = {"name": "NVIDIA Unheard-of", "multi_processor_count": 100, "major": 8, "minor": 0}
        return SimpleNamespace(**(base | known))

    def test_known_ones_by_name_and_size(self):
        assert described(self.properties(name="NVIDIA A100-SXM4-80GB", multi_processor_count=108)) is A100
        assert described(self.properties(name="NVIDIA H100 80GB HBM3", multi_processor_count=132, major=9)) is H100
        assert described(self.properties(name="NVIDIA B200", multi_processor_count=148, major=10)) is B200
        part = described(self.properties(name="NVIDIA A100-SXM4-80GB MIG 3g.40gb", multi_processor_count=42))
        assert part is not A100 and part.multiprocessors == 42

    def test_others_from_what_they_tell(self):
        told = {"clock_rate": 1_410_000, "memory_clock_rate": 1_593_000, "memory_bus_width": 5120}
        gpu = described(self.properties(multi_processor_count=108, **told))
        for name in ("fp64", "fp32", "tf32", "half", "hbm", "l1"):
            assert getattr(gpu, name) == pytest.approx(getattr(A100, name), rel=0.01)
        assert gpu.l2 == pytest.approx(A100.l2, rel=0.15) and gpu.dense_share == A100.dense_share

    def test_what_is_not_told_is_guessed(self):
        gpu = described(self.properties())
        assert all(value > 0 for value in vars(gpu).values() if not isinstance(value, str))
        assert gpu.hbm == 100 * 20e9 and gpu.fp32 == 100 * 1.5e9 * 128
        old, new = described(self.properties(major=7)), described(self.properties(major=13))
        assert old.tf32 == old.fp32 and new.mma_share == described(self.properties(major=12)).mma_share
        assert described(self.properties(major=3)) == replace(old, fp64=old.fp32 / 64)
        assert described(self.properties(minor=9)).fp64 == pytest.approx(gpu.fp64 / 16)

    def test_permission_for_tf32_is_torchs(self, monkeypatch):
        backends = SimpleNamespace(
            fp32_precision="none",
            cuda=SimpleNamespace(matmul=SimpleNamespace(fp32_precision="none")),
            cudnn=SimpleNamespace(allow_tf32=True),
        )
        monkeypatch.setattr(torch, "backends", backends)
        assert not tf32_allowed("linear") and tf32_allowed("conv")
        backends.fp32_precision = "tf32"
        assert tf32_allowed("linear")
        backends.cuda.matmul.fp32_precision = "ieee"
        assert not tf32_allowed("linear")

        class Newer:
            conv = SimpleNamespace(fp32_precision="ieee")

            @property
            def allow_tf32(self):
                raise RuntimeError("mix of the legacy and new APIs")

        backends.cudnn = Newer()
        assert not tf32_allowed("conv")
        backends.cudnn.conv.fp32_precision = "tf32"
        assert tf32_allowed("conv")

    def test_torch_answers(self):
        assert tf32_allowed("linear") in (True, False) and tf32_allowed("conv") in (True, False)


@pytest.mark.parametrize(
    ("files", "constant", "value"),
    [
        ("csr_*.cuh", "kProductRows", gpu_kernels.CSR_ROWS),
        ("feature_major.cuh", "kLineBytes", gpu_kernels.LINE),
        ("*spmm_bsr*", "kSamples", gpu_kernels.SAMPLES),
        ("*sddmm_bsr*", "kColumns", gpu_kernels.COLUMNS),
    ],
)
def test_tiles_are_those_of_the_kernels(files, constant, value):
    sources = [path.read_text(encoding="utf-8") for path in sorted(CUDA_SOURCES.glob(files))]
    if not sources:
        pytest.skip(f"no csrc/cuda/{files} in this checkout")
    found = {int(number) for text in sources for number in re.findall(rf"constexpr int {constant} = (\d+);", text)}
    assert found == {value}, f"{constant} of {files}: change gpu_kernels.py, then python benchmarks/roofline.py --write"
