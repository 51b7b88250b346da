"""What the benchmark concludes from timings: speed-ups, break-even, auto's mistakes, and the acceptance table."""

from __future__ import annotations

import pytest
import verdicts
from cases import ACCEPTED_IMAGES, ACCEPTED_LAYERS, ACCEPTED_NET, ACCEPTED_SEQUENCES, ACCEPTED_TOKENS, Result
from layers import Shape
from timing import Timing


def steady(seconds: float, spread: float = 0.0) -> Timing:
    return Timing(seconds, seconds - spread, seconds + spread, 9, 1)


def timed(group: str, name: str, settings: dict, facts: dict | None = None, **seconds: float) -> Result:
    """A result without noise; underscores in names stand for spaces, but for dense layouts."""
    names = {name: name if name == "channels_last" else name.replace("_", " ") for name in seconds}
    timings = {names[name]: steady(value) for name, value in seconds.items()}
    return Result(group, name, settings, timings, {}, facts or {})


def layer(auto: str, sparse: Timing, dense: Timing) -> Result:
    timings = {"snipkern": sparse, "torch": dense}
    return Result("layers", "layer", {"density": 0.05}, timings, {}, {"auto": auto, "reason": "predicted"})


def test_choices_are_judged_beyond_noise():
    slow, fast, vague = steady(2.0), steady(1.0), steady(1.5, spread=0.6)
    assert [j.ratio for j in verdicts.judgements([layer("csr", slow, fast)])] == [0.5]
    assert [j.ratio for j in verdicts.judgements([layer("bsr", slow, fast)])] == [0.5]
    assert [j.ratio for j in verdicts.judgements([layer("masked", fast, slow)])] == [2.0]
    assert verdicts.judgements([layer("csr", fast, slow), layer("masked", slow, fast)]) == []
    assert verdicts.judgements([layer("csr", vague, fast), layer("masked", vague, slow)]) == []


def test_every_kind_of_mask_and_dtype_is_judged_against_dense_of_its_dtype():
    choices = {
        "snipkern bf16": {"auto": "csr", "reason": "half"},
        "snipkern 4x1": {"auto": "bsr", "reason": "block"},
        "snipkern 4x1 bf16": {"auto": "masked", "reason": "both"},
        "snipkern 16x16": {"auto": "bsr", "reason": "not timed"},
    }
    result = Result(
        "layers", "layer", {"density": 0.05},
        {"snipkern": steady(3.0), "snipkern bf16": steady(3.0), "snipkern 4x1": steady(3.0),
         "snipkern 4x1 bf16": steady(1.0), "torch": steady(4.0), "bf16": steady(2.0)},
        {}, {"auto": "csr", "reason": "right", "choices": choices},
    )  # fmt: skip
    found = verdicts.judgements([result])
    assert [(j.case, j.auto, j.reason) for j in found] == [
        ("layer, 5%, bf16", "csr", "half"),
        ("layer, 5%, 4x1 bf16", "masked", "both"),
    ]


def test_densities_are_judged_one_by_one():
    facts = {
        "densities": {
            "snipkern 5%": {"density": 0.05, "block": None, "auto": "csr", "reason": "a"},
            "snipkern 4x1 50%": {"density": 0.5, "block": "4x1", "auto": "bsr", "reason": "b"},
        }
    }
    timings = {"snipkern 5%": steady(1.0), "snipkern 4x1 50%": steady(4.0), "torch": steady(2.0)}
    found = verdicts.judgements([Result("density", "layer", {"density": [0.05, 0.5]}, timings, {}, facts)])
    assert [(j.case, j.ratio) for j in found] == [("layer, 50%, 4x1", 0.5)]


def test_break_even_is_read_off_between_points():
    assert verdicts.break_even([(0.01, 4.0), (0.04, 1.0)]) == pytest.approx(0.04)
    assert verdicts.break_even([(0.01, 4.0), (0.1, 2.0), (0.4, 0.5)]) == pytest.approx(0.2)
    assert verdicts.break_even([(0.01, 4.0), (0.5, 1.5)]) is None
    assert verdicts.break_even([(0.01, 0.9), (0.5, 0.2)]) == 0.01


def test_speedups_are_over_the_fastest_that_is_meant():
    result = timed("models", "net", {}, snipkern=1.0, torch=4.0, tuned=3.0, bf16=2.0)
    assert verdicts.speedup(result, "snipkern", "torch") == 4.0
    assert verdicts.speedup(result, "snipkern", verdicts.BEST) == 3.0
    assert verdicts.speedup(result, "snipkern", verdicts.BEST_BF16) == 2.0
    assert verdicts.speedup(result, verdicts.BEST, "torch") == pytest.approx(4 / 3)
    assert verdicts.speedup(result, "snipkern", "sparseprop") is None
    assert verdicts.speedup(timed("models", "net", {}, snipkern=1.0), "snipkern", verdicts.BEST) is None


def lines(*results: Result) -> dict[str, tuple[bool, str]]:
    return {v.requirement: (v.passed, v.measured) for v in verdicts.acceptance(results)}


def accepted_layer(kind: str, **seconds: float) -> Result:
    shape = next(shape for shape in ACCEPTED_LAYERS if shape.kind == kind)
    facts = {"auto": "csr", "reason": "", "choices": {}}
    return timed("layers", shape.name, {"kind": kind, "density": 0.05}, facts, **seconds)


def test_linear_layers_are_held_to_every_line_of_the_table():
    found = lines(
        accepted_layer(
            "linear", snipkern=1.0, torch=12.0, onednn=7.0, tuned=5.9, sparseprop=3.0, torch_csr=3.9, bf16=6.0,
            snipkern_bf16=2.0, snipkern_4x1=0.5,
        )
    )  # fmt: skip
    name = f"{ACCEPTED_LAYERS[0].name}, snipkern"
    assert found == {
        f"{name}: at least 12x torch": (True, "12.0x"),
        f"{name}: at least 6x best dense": (False, "5.9x"),
        f"{name}: at least 3x sparseprop": (True, "3.0x"),
        f"{name}: at least 4x torch csr": (False, "3.9x"),
        f"{name} bf16: at least 3x best bf16 dense": (True, "3.0x"),
        f"{name} 4x1: at least 10x best dense": (True, "11.8x"),
        f"{name} 16x16: at least 10x best dense": (False, "not measured"),
        "every layer that auto computes sparsely: at least 1.0x dense, within noise": (True, "none is slower"),
    }


def test_convolutions_need_no_sparseprop_but_a_fast_dense_peer():
    found = lines(accepted_layer("conv", snipkern=1.0, torch=0.5, channels_last=6.0))
    assert [passed for passed, _ in found.values()] == [False, False]
    assert "sparseprop" not in " ".join(found)
    slower = found["every layer that auto computes sparsely: at least 1.0x dense, within noise"]
    assert slower == (False, "1 slower, the worst 0.50x")


def test_steps_of_whole_models_are_accepted():
    found = lines(
        timed("models", "vgg", {"net": ACCEPTED_IMAGES}, snipkern=1.0, torch=9.0, channels_last=4.0),
        timed("models", "gpt", {"net": ACCEPTED_TOKENS}, snipkern=1.0, torch=3.5, tuned=2.4),
        timed("models", "other", {"net": "another"}, snipkern=9.0, torch=1.0),
    )
    assert list(found.values()) == [(True, "4.0x"), (True, "3.5x"), (False, "2.4x")]
    assert "training step of vgg, snipkern: at least 4x best dense" in found


def test_answers_of_memory_bound_layers_are_accepted():
    settings = {"kind": "linear", "inputs": 4096, "outputs": 4096, "batch": 1}
    small = {**settings, "inputs": 64}
    found = lines(
        timed("latency", "big", settings, snipkern=1.0, torch=5.0, onednn=2.9),
        timed("latency", "small", small, snipkern=1.0, torch=0.1),
        timed("latency", "net", {"net": ACCEPTED_TOKENS}, snipkern=1.0, torch=0.1),
    )
    assert found == {"inference, big, snipkern: at least 3x best dense": (False, "2.9x")}


def test_only_the_long_sequences_of_an_lstm_are_promised():
    name = ACCEPTED_SEQUENCES.name
    found = lines(
        timed("recurrent", name, {}, **{"snipkern": 1.0, "torch": 2.5, "torch without onednn": 1.9}),
        timed("recurrent", "GRU", {}, snipkern=1.0, torch=0.1),
    )
    assert found == {
        f"{name}, snipkern: at least 2x torch": (True, "2.5x"),
        f"{name}, snipkern: at least 2x torch without onednn": (False, "1.9x"),
    }


def test_bytes_are_accepted_without_index_and_scratch():
    settings = {"net": ACCEPTED_NET}
    dense = {"parameters": 100, "gradients": 100, "optimizer": 200}
    pruned = {"parameters": 12, "gradients": 12, "optimizer": 24, "index": 900, "scratch": 900}
    held = Result("memory", "mlp", settings, facts={"dense": dense, "snipkern": pruned})
    step = timed("models", "mlp", settings, snipkern=1.0, torch=3.99)
    assert [(v.passed, v.measured) for v in verdicts.acceptance([step, held])] == [(False, "4.0x"), (True, "12.0%")]


def test_nothing_is_promised_about_other_layers():
    other = timed("layers", Shape("linear", 3, 5, 7).name, {"kind": "linear", "density": 0.05}, {"auto": "csr", "reason": ""},
                  snipkern=1.0, torch=0.1)  # fmt: skip
    assert lines(other) == {}


def selection(weights: int, data: str = "normal", notes: tuple[str, ...] = (), reads: int = 1, **seconds: float):
    settings = {"weights": weights, "dtype": "float32", "gradient_dtype": "float32", "keep": 0.05, "data": data}
    facts = {"bytes_read": 8 * weights, "extra_bytes": weights // 8, "reads": reads}
    result = timed("sweep", f"{weights:,}", settings, facts, **seconds)
    result.notes.extend(notes)
    return result


def test_selections_are_judged_by_time_memory_and_exactness():
    good = selection(10**8, snipkern=1.7, read=1.0, topk=30.0, numpy=5.0)
    assert [v.measured for v in verdicts.acceptance([good])] == ["1.70x", "17.6x", "2.9x", "1.56%", "exact"]
    assert [v.passed for v in verdicts.acceptance([good])] == [True, True, False, True, True]
    slow = selection(5 * 10**8, snipkern=1.4, read=1.0)
    assert [v.passed for v in verdicts.acceptance([slow])] == [False, True, True]
    other = selection(10**7, "all equal", ("WRONG: the mask does not hold the largest scores",), 5, snipkern=1, read=1)
    assert [(v.passed, v.measured) for v in verdicts.acceptance([other])] == [(False, "5"), (False, "wrong")]
    assert verdicts.acceptance([selection(10**7)]) == []  # skipped
