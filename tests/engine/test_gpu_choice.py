"""engine="auto" on a GPU, which is not here: its layers say that they are on one, and the roofline of a known one answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from snipkern import backends
from snipkern.engine import choice as engine
from snipkern.engine import covers, gpu_model
from snipkern.engine.choice import Choice, choose, predict
from snipkern.engine.devices import A100, H100
from snipkern.engine.measure import Times
from snipkern.engine.prediction import Prediction
from snipkern.engine.workload import Workload
from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.testing import random_block_mask, random_mask
from snipkern.topology import CoverTopology, build
from snipkern.topology.cover import stored_weights

CUDA = torch.device("cuda", 0)
WIDE = Workload((4096, 4096), 4096**2 // 50, (4096, 4096), device=CUDA)
CONV = Workload((256, 256, 3, 3), 256 * 256 * 9 // 50, (128, 256, 16, 16), device=CUDA, padding=(1, 1))
ADVICE = "; pass block=(32, 32) for speed on this GPU"
FORBIDDEN = "; not measured, deterministic algorithms are asked for"


@pytest.fixture
def gpu(monkeypatch):
    """A function that says which backend serves which ops on CUDA tensors, and on which GPU."""

    def serve(backend="cuda", device=A100, ops=None):
        def active(device="cpu", op=None):
            if torch.device(device).type == "cuda":
                return backend if op is None or ops is None or op in ops else "reference"
            return "cpu"

        monkeypatch.setattr(backends, "active", active)
        monkeypatch.setattr(gpu_model, "gpu_of", lambda _: device)
        monkeypatch.setattr(torch, "backends", Settings(tf32=False))

    serve()
    return serve


class Settings:
    """What torch.backends says of TF32: for matrix products, and for cuDNN, which is the same unless told otherwise."""

    def __init__(self, tf32, cudnn=None):
        precision = "tf32" if tf32 else "none"
        self.fp32_precision = "none"
        self.cuda = type("Cuda", (), {"matmul": type("Matmul", (), {"fp32_precision": precision})})
        self.cudnn = type("Cudnn", (), {"allow_tf32": tf32 if cudnn is None else cudnn})


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)


@pytest.fixture
def never_measured(monkeypatch):
    monkeypatch.setattr(engine, "measure", lambda *_: pytest.fail("a clear case was measured"))


@pytest.fixture
def no_cover(monkeypatch):
    """Masks are not looked at."""
    monkeypatch.setattr(engine, "covered", lambda *_: None)


def foretold(monkeypatch, dense, masked, sparse, name="csr"):
    monkeypatch.setattr(engine, "predict", lambda *_: Prediction(dense, masked, sparse, gpu_model.SPREAD, name))


@pytest.mark.usefixtures("gpu", "never_measured", "no_cover")
class TestSingleWeights:
    def test_float32_at_high_sparsity_is_sparse(self):
        found = choose("auto", WIDE, Mask.full((1, 1)))
        assert found.engine == "csr" and found.predicted > 2 * gpu_model.SPREAD and found.measured is None
        assert found.reason == f"predicted {found.predicted:.1f}x dense for 4096 rows" and found.cover is None

    def test_16_bit_stays_masked_and_hears_of_blocks(self):
        found = choose("auto", replace(WIDE, dtype=torch.bfloat16, kept=WIDE.numel // 20), Mask.full((1, 1)))
        assert found.engine == "masked" and found.predicted < 0.5
        assert found.reason == f"csr would be slower: predicted {found.predicted:.1f}x dense for 4096 rows{ADVICE}"

    def test_so_does_float32_where_tf32_is_permitted(self, monkeypatch):
        assert choose("auto", replace(WIDE, kept=WIDE.numel // 30), Mask.full((1, 1))).engine == "csr"
        monkeypatch.setattr(torch, "backends", Settings(tf32=True))
        found = choose("auto", replace(WIDE, kept=WIDE.numel // 20), Mask.full((1, 1)))
        assert found.engine == "masked" and found.reason.endswith(ADVICE)

    def test_blocks_that_are_fast_only_on_the_plain_grid_are_advised_without_order(self, gpu):
        layer = replace(WIDE, dtype=torch.bfloat16, kept=WIDE.numel // 20)
        gpu(device=H100)
        found = choose("auto", layer, Mask.full((1, 1)))
        assert found.reason.endswith("; pass block=(32, 32), order=False for speed on this GPU")
        blocks = replace(layer, block=(32, 32))
        plain, ordered = (predict(replace(blocks, ordered=ordered), "bsr") for ordered in (False, True))
        assert plain.dense > gpu_model.SPREAD * plain.sparse and ordered.dense < gpu_model.SPREAD * ordered.sparse

    def test_nobody_is_sent_to_blocks_that_would_not_help(self, gpu):
        for layer in (
            replace(WIDE, dtype=torch.bfloat16, kept=WIDE.numel // 2),  # so many
            Workload((100, 300), 15_000, (100_000, 300), torch.bfloat16, CUDA),  # not enough room for blocks
        ):
            found = choose("auto", layer, Mask.full((1, 1)))
            assert found.engine == "masked" and "pass block" not in found.reason
        gpu(ops=("spmm_csr",))
        found = choose("auto", replace(WIDE, dtype=torch.bfloat16, kept=WIDE.numel // 20), Mask.full((1, 1)))
        assert found.engine == "masked" and "pass block" not in found.reason


@pytest.mark.usefixtures("gpu", "never_measured")
class TestWhatIsServed:
    def test_blocks_run_where_they_are_predicted_to_win(self):
        blocks = replace(WIDE, dtype=torch.bfloat16, kept=WIDE.numel // 50, block=(32, 32))
        found = choose("auto", blocks, Mask.full((1, 1)))
        assert found.engine == "bsr" and found.predicted > gpu_model.SPREAD
        many = choose("auto", replace(blocks, kept=WIDE.numel), Mask.full((1, 1)))
        assert many.engine == "masked" and many.reason.startswith("bsr would be slower") and ADVICE not in many.reason

    def test_a_backend_may_have_blocks_of_linear_layers_alone(self, gpu):
        gpu("triton", ops=("spmm_bsr", "sddmm_bsr"))
        assert gpu_model.served(WIDE) == gpu_model.served(CONV) == ()
        assert gpu_model.served(replace(WIDE, cover=(4, 4))) == ("cover",)
        assert gpu_model.served(replace(CONV, cover=(4, 4))) == ()
        assert gpu_model.served(replace(WIDE, block=(32, 32))) == ("bsr",)
        assert gpu_model.served(replace(WIDE, block=(32, 32), singles=9)) == ()
        found = choose("auto", CONV, Mask.full((1, 1)))
        assert found == Choice("masked", "nothing sparse for it in triton kernels")
        assert choose("auto", replace(WIDE, block=(32, 32)), Mask.full((1, 1))).engine == "bsr"
        assert choose("csr", CONV, Mask.full((1, 1))) == Choice("csr", "as asked")

    def test_who_has_block_kernels_alone_hears_of_blocks(self, gpu, monkeypatch):
        gpu("triton", ops=("spmm_bsr",))
        monkeypatch.setattr(engine, "covered", lambda *_: None)
        found = choose("auto", replace(WIDE, dtype=torch.bfloat16, kept=WIDE.numel // 20), Mask.full((1, 1)))
        assert found == Choice("masked", f"nothing sparse for it in triton kernels{ADVICE}")

    def test_our_convolutions_do_not_follow_cudnns_permission(self, monkeypatch):
        layer = replace(CONV, block=(32, 32))
        monkeypatch.setattr(torch, "backends", Settings(tf32=False, cudnn=True))
        found = {tf32: gpu_model.predict(layer, ("bsr",), tf32=tf32) for tf32 in (None, False, True)}
        assert found[None].dense == found[True].dense < found[False].dense
        assert found[None].masked == found[True].masked
        assert found[None].sparse == found[False].sparse > found[True].sparse
        assert 1e6 * gpu_model.seconds_here("bsr", layer) == found[None].sparse
        assert 1e6 * gpu_model.seconds_here("dense", layer) == found[None].dense

    def test_compiled_kernels_serve_all(self):
        assert gpu_model.served(WIDE) == gpu_model.served(CONV) == ("csr",)
        assert gpu_model.served(replace(WIDE, cover=(4, 4))) == ("cover", "csr")
        assert gpu_model.served(replace(CONV, block=(4, 4), singles=1)) == ("bsr", "csr")

    def test_without_kernels_a_gpu_stays_dense(self, gpu):
        gpu("reference")
        found = choose("auto", WIDE, Mask.full((1, 1)))
        assert found == Choice("masked", f"no sparse kernels on this GPU ({engine.missing_kernels(CUDA)})")
        assert engine.missing_kernels(CUDA) == (backends.missing_kernels("cuda") or "cuda kernels are switched off")
        assert engine.missing_kernels(torch.device("cpu")) is None


@pytest.mark.usefixtures("gpu", "no_cover")
class TestMeasuring:
    @pytest.mark.parametrize(("sparse", "expected"), ((0.5, "csr"), (1.2, "masked")))
    def test_unclear_cases_are_measured(self, monkeypatch, sparse, expected):
        foretold(monkeypatch, 10.0, 10.5, 6.0)
        monkeypatch.setattr(
            engine, "measure", lambda work, *_: Times(1.0, 1.05, sparse) if work.device == CUDA else None
        )
        found = choose("auto", WIDE, Mask.full((1, 1)))
        assert found.engine == expected and found.measured == pytest.approx(1 / sparse)

    @pytest.mark.usefixtures("never_measured", "deterministic")
    def test_or_stay_dense_where_nothing_may_be(self, monkeypatch):
        for sparse, expected in ((5.1, "masked"), (4.9, "csr")):
            foretold(monkeypatch, 10.0, 12.0, sparse)
            assert choose("auto", WIDE, Mask.full((1, 1))).engine == expected
        foretold(monkeypatch, 10.0, 12.0, 6.0)
        wanted = f"csr would be not surely faster: predicted 1.7x dense for 4096 rows{FORBIDDEN}{ADVICE}"
        monkeypatch.setattr(engine, "_advice", lambda _: ADVICE)
        assert choose("auto", WIDE, Mask.full((1, 1))).reason == wanted

    def test_a_full_device_is_not_measured(self, monkeypatch):
        def full(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        foretold(monkeypatch, 10.0, 10.5, 6.0)
        monkeypatch.setattr(engine, "measure", full)
        found = choose("auto", WIDE, Mask.full((1, 1)))
        assert found.engine == "masked" and "; not measured, the device's memory is full" in found.reason

    def test_check_measures_what_was_left_masked_too(self, monkeypatch, gpu):
        monkeypatch.setattr(engine, "measure", lambda *_: Times(1.0, 1.1, 0.5))
        left = Choice("masked", "csr would be slower: predicted 0.4x dense")
        found = engine.check(WIDE, Mask.full((1, 1)), left)
        assert found.engine == "masked" and found.reason.startswith("csr would be faster: measured 2.0x dense")
        gpu("triton", ops=("spmm_bsr",))
        assert engine.check(CONV, Mask.full((1, 1)), left) is left

    def test_check_measures_a_cover_with_its_grid(self, monkeypatch):
        grid, seen = Layout((16, 16)), []
        monkeypatch.setattr(engine, "measure", lambda *args: seen.append(args) or Times(1.0, 1.1, 0.5))
        before = Choice("cover", "predicted 9.9x dense", 9.9, None, grid, WIDE.kept * 4)
        found = engine.check(WIDE, Mask.full((1, 1)), before)
        assert found.cover is grid and found.stored == before.stored and found.measured == 2.0
        assert found.reason.startswith("in blocks of 16x16, 25% full: measured 2.0x dense for 4096 rows (predicted")
        ((work, _, layout, cover),) = seen
        assert (work.cover, work.stored, layout, cover) == ((16, 16), before.stored, None, grid)


@pytest.mark.usefixtures("gpu", "never_measured")
class TestCovers:
    @pytest.fixture
    def hidden(self, generator):
        """Blocks of 32 x 32 whose rows and columns are shuffled: as single weights they lie anywhere."""
        blocks = torch.rand(64, 64, generator=generator) < 0.01
        kept = blocks.repeat_interleave(32, 0).repeat_interleave(32, 1)
        for dim in (0, 1):
            kept = kept.index_select(dim, torch.randperm(2048, generator=generator))
        mask = Mask.from_dense(kept)
        return Workload((2048, 2048), mask.count(), (65_536, 2048), torch.bfloat16, CUDA), mask

    def test_masks_that_cluster_are_covered(self, hidden):
        layer, mask = hidden
        found = choose("auto", layer, mask)
        assert found.engine == "cover" and found.cover.ordered and found.predicted > gpu_model.SPREAD
        topology = build(mask, None, found.cover)
        assert isinstance(topology, CoverTopology) and topology.fill == pytest.approx(
            mask.count() / found.stored, rel=0.05
        )
        height, width = found.cover.block
        assert found.reason.startswith(
            f"in blocks of {height}x{width}, {mask.count() / found.stored:.0%} full: predicted"
        )

    def test_others_are_not_even_ordered(self, monkeypatch, generator):
        monkeypatch.setattr(covers, "covering", lambda *_: pytest.fail("a hopeless mask was ordered"))
        mask = random_mask((512, 512), 0.2, generator)
        layer = Workload((512, 512), mask.count(), (65_536, 512), torch.bfloat16, CUDA)
        found = choose("auto", layer, mask)
        assert found.engine == "masked" and found.cover is None and found.stored == 0

    def test_convolutions_keep_their_order(self, generator):
        flat = random_block_mask((256, 256 * 9), (32, 32), 0.02, generator)
        mask = Mask.from_dense(flat.to_dense().view(256, 256, 3, 3))
        found = choose("auto", replace(CONV, dtype=torch.bfloat16, kept=mask.count(), input=(512, 256, 16, 16)), mask)
        assert found.engine == "cover" and not found.cover.ordered

    def test_as_asked_takes_what_is_predicted_to_be_fastest(self, hidden, gpu):
        layer, mask = hidden
        for device in (A100, H100):
            gpu(device=device)
            found = choose("cover", layer, mask)
            grids = [Layout(block, found.cover.row_order, found.cover.col_order) for block in covers.BLOCKS]
            works = [
                replace(layer, cover=grid.block, stored=stored_weights(mask, grid), ordered=True) for grid in grids
            ]
            assert found.engine == "cover" and found.reason.startswith("as asked; in blocks of ")
            best = min(works, key=lambda work: gpu_model.seconds_here("cover", work))
            assert found.cover.block == best.cover
        assert choose("cover", replace(layer, block=(4, 4)), mask) == Choice("bsr", "as asked")

    def test_predictions_know_the_fill(self, hidden):
        layer, _ = hidden
        full, thin = (predict(replace(layer, cover=(32, 32), stored=layer.kept * n), "cover") for n in (1, 8))
        assert full.engine == "cover" and full.sparse < thin.sparse and full.dense == thin.dense < full.masked
        assert full.spread == gpu_model.SPREAD
