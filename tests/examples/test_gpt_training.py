"""The GPT, its weights, and its training steps."""

import math
from dataclasses import replace

import gpt_model
import pytest
import torch
from gpt_build import Plan, build
from gpt_model import SIZES
from gpt_parallel import Parallel
from gpt_text import Text, Windows
from gpt_training import Learner, Recipe, TrainingError, bytes_held, index_bytes, parameter_groups, rate

import snipkern as sk
from snipkern.layout import Layout
from snipkern.topology import build as build_topology

TINY = SIZES["tiny"]


@pytest.fixture
def windows():
    generator = torch.Generator().manual_seed(0)
    content = torch.randint(97, 123, (4000,), generator=generator, dtype=torch.uint8)
    return Windows(Text("letters", content[:3000], content[3000:], ""), 4, 16, 0)


def recipe(**changes):
    usual = Recipe(steps=20, warm_up=4, lr=1e-2, weight_decay=0.1, clip=1.0, accumulate=1, validation_batches=2)
    return replace(usual, **changes)


def plan(**changes):
    return replace(Plan(name="net", size=TINY, context=16, seed=1, engine="csr"), **changes)


@pytest.mark.parametrize("name", SIZES)
def test_counts_are_those_of_the_model(name):
    size = SIZES[name]
    model = gpt_model.on_meta(size, size.context)
    assert sum(parameter.numel() for parameter in model.parameters()) == size.parameters()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert sum(module.weight.numel() for module in linear) == size.weights()
    assert all(parameter.is_meta for parameter in model.parameters())


def test_sizes_reach_billions():
    assert [round(SIZES[name].parameters() / 1e9, 1) for name in ("1b", "3b", "7b")] == [1.2, 2.5, 7.3]


def test_later_bytes_do_not_change_earlier_logits(windows):
    model = build(plan(), windows, Parallel()).eval()
    tokens = windows.training(0)[0]
    changed = tokens.clone()
    changed[:, 10:] = 5
    before, after = (model(x).view(4, 16, 256) for x in (tokens, changed))
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10:], after[:, 10:])


def test_weights_are_drawn_by_seed_and_scaled_by_fan_in(windows):
    model, twin, other = (build(plan(seed=seed), windows, Parallel()) for seed in (1, 1, 2))
    drawn = dict(model.named_parameters())
    for (name, left), right, third in zip(drawn.items(), twin.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)
        if left.dim() == 1:
            assert torch.equal(left, torch.full_like(left, name.endswith("weight")))
        else:
            assert not torch.equal(left, third)
            deviation = {"token.weight": 1.0, "position.weight": 0.1}.get(name, left.shape[1] ** -0.5)
            if name.endswith(("out.weight", "down.weight")):
                deviation /= (2 * TINY.layers) ** 0.5
            assert left.std().item() == pytest.approx(deviation, rel=5 / (2 * left.numel()) ** 0.5)


def test_rate_rises_in_a_line_and_falls_along_a_cosine():
    plain = recipe(steps=104, warm_up=4, lr=1.0)
    assert [rate(plain, step) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rate(plain, 54) == pytest.approx(0.55)
    assert rate(plain, 104) == pytest.approx(0.1)
    assert rate(recipe(steps=1, warm_up=0, lr=1.0), 0) == 1.0


@pytest.mark.parametrize("engine", [None, "csr", "masked"])
def test_weights_decay_however_they_are_held(windows, engine):
    model = build(plan(keep=0.1 if engine else None, engine=engine or "csr"), windows, Parallel())
    decayed, rest = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    linear = {f"blocks.{i}.{part}" for i in range(TINY.layers) for part in ("qkv", "out", "up", "down")} | {"head"}
    suffix = ".weight_values" if engine == "csr" else ".weight"
    assert {names[id(parameter)] for parameter in decayed["params"]} == {name + suffix for name in linear}
    assert len(decayed["params"]) + len(rest["params"]) == len(names)


def test_step_writes_its_record_and_repeats_exactly(windows):
    learners = [Learner("net", build(plan(keep=0.1), windows, Parallel()), recipe(), windows, Parallel()) for _ in "ab"]
    for learner in learners:
        for step in range(20):
            learner.step(step)
        learner.validate(20)
    first, second = learners
    assert first.losses == second.losses
    assert first.validation == second.validation
    assert len(first.losses) == len(first.seconds) == 20
    # 26 letters in no order: nothing but their frequency can be learned.
    assert first.losses[0] > 5
    assert math.log(26) < first.validation[20] < 4.5
    assert sum(mask.count() for mask in sk.masks(first.model).values()) == round(0.1 * TINY.weights())


def test_accumulated_parts_are_the_whole_batch(windows):
    whole, parts = (
        Learner("net", build(plan(), windows, Parallel()), recipe(accumulate=n), windows, Parallel()) for n in (1, 4)
    )
    for step in range(3):
        whole.step(step)
        parts.step(step)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)


def test_bf16_computes_in_bf16(windows):
    learner = Learner("net", build(plan(keep=0.2), windows, Parallel()), recipe(), windows, Parallel(), bf16=True)
    seen = []
    learner.model.head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    learner.step(0)
    assert seen == [torch.bfloat16]
    assert {parameter.dtype for parameter in learner.model.parameters()} == {torch.float32}


def test_divergence_is_said(windows):
    learner = Learner("net", build(plan(), windows, Parallel()), recipe(lr=1e30, warm_up=0), windows, Parallel())
    with pytest.raises(TrainingError, match=r"the loss of net must stay finite \(got nan\): lower --lr"):
        for step in range(5):
            learner.step(step)


def test_bytes_are_those_of_the_tensors(windows):
    for keep in (None, 0.1):
        learner = Learner("net", build(plan(keep=keep), windows, Parallel()), recipe(), windows, Parallel())
        learner.step(0)
        stored = TINY.weights() if keep is None else round(0.1 * TINY.weights())
        count = TINY.parameters(16) - TINY.weights() + stored
        held = bytes_held(learner)
        assert held["parameters"] == held["gradients"] == 4 * count
        # Two moments of every number and one count of steps for each parameter.
        assert held["optimizer"] == 8 * count + 4 * len(list(learner.model.parameters()))
        assert (held["index"] > 0) == (keep is not None)


def test_index_bytes_of_all_topologies():
    kept = torch.zeros(8, 24, dtype=torch.bool)
    kept[:4, 4:8] = kept[7, 3] = True
    mask, single = sk.Mask.from_dense(kept), torch.zeros_like(kept)
    single[7, 3] = True
    words = mask.words.nbytes
    # 17 rows and columns in 16 bits, two to a word, 17 places in 32; 9 row and 25 column pointers.
    assert index_bytes(build_topology(mask)) == words + 4 * (9 + 9 + 17 + 9 + 25)
    layout = Layout((4, 4), singles=sk.Mask.from_dense(single))
    mixed = build_topology(mask, layout)
    assert index_bytes(mixed) == words + index_bytes(mixed.blocks) + index_bytes(mixed.singles)
    # One block: 3 starts, 3 row and 7 column pointers, its column, row and place.
    assert index_bytes(mixed.blocks) == words + 4 * (3 + 3 + 7 + 3)
