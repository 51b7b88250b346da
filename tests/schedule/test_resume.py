"""Runs that were killed go on; and what schedules refuse."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from nets import make_mlp

import snipkern as sk

pytestmark = pytest.mark.usefixtures("one_thread")


def train(model, optimizer, batches) -> None:
    for inputs, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def make(seed: int):
    torch.manual_seed(seed)
    model = make_mlp()
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


@pytest.mark.parametrize("killed, rewinds", [(0, False), (2, True), (3, False)])
def test_a_killed_run_goes_on_to_the_same_numbers(killed, rewinds, vectors):
    options = {"keep": 0.05, "rounds": 3, "criterion": "magnitude", "engine": "csr"}

    def stages_of(model, optimizer, snapshot):
        return sk.prune_retrain(model, vectors, optimizer=optimizer, rewind=snapshot if rewinds else None, **options)

    model, optimizer = make(1)
    snapshot = sk.Snapshot(model)
    stages = stages_of(model, optimizer, snapshot)
    saved = None
    for stage in stages:
        for epoch in range(2):
            if (stage.number, epoch) == (killed, 1):
                saved = through_a_file(
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "stages": stages.state_dict(),
                        "snapshot": snapshot.state_dict(),
                        "epoch": epoch,
                    }
                )
            train(model, optimizer, vectors)
    other, _ = make(2)
    sk.load_(other, saved["model"])
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.01)
    other_optimizer.load_state_dict(saved["optimizer"])
    again = stages_of(other, other_optimizer, sk.Snapshot.from_state_dict(saved["snapshot"]))
    again.load_state_dict(saved["stages"])
    seen = []
    for stage in again:
        seen.append((stage.number, stage.resumed))
        assert (stage.pruned is None) == (stage.number == 0)
        if stage.pruned is not None:
            assert stage.pruned.masks == sk.masks(other) and "csr" in str(stage.pruned)
        for _ in range(saved["epoch"] if stage.resumed else 0, 2):
            train(other, other_optimizer, vectors)
    assert seen == [(i, i == killed) for i in range(killed, 4)]
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_gradual_pruning_goes_on(vectors):
    def begin(seed):
        model, optimizer = make(seed)
        return model, optimizer

    def gradual_of(model, optimizer):
        return sk.Gradual(
            model, vectors, keep=0.1, end=9, every=2, optimizer=optimizer, engine="csr", criterion="magnitude"
        )

    model, optimizer = begin(1)
    gradual = gradual_of(model, optimizer)
    for step in range(12):
        if step == 5:
            saved = through_a_file([model.state_dict(), optimizer.state_dict(), gradual.state_dict()])
        train(model, optimizer, [vectors[step % 4]])
        gradual.step()
    other, _ = begin(2)
    sk.load_(other, saved[0])
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.01)
    other_optimizer.load_state_dict(saved[1])
    again = gradual_of(other, other_optimizer)
    again.load_state_dict(saved[2])
    assert again.steps == 5
    for step in range(5, 12):
        train(other, other_optimizer, [vectors[step % 4]])
        again.step()
    assert again.done and again.pruned.masks == gradual.pruned.masks
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_state_that_does_not_fit_is_refused(mlp, vectors):
    stages = sk.prune_retrain(mlp, vectors, 0.1, rounds=3, engine="csr")
    next(stages), next(stages)
    state = stages.state_dict()
    fresh = sk.prune_retrain(make_mlp(), vectors, 0.1, rounds=3)
    with pytest.raises(ValueError, match=r"load its state first, by snipkern.load_ \(got 1306 of 1306\)"):
        fresh.load_state_dict(state)
    with pytest.raises(ValueError, match=r"must be of 4 rounds \(got stage 1 of 3\)"):
        sk.prune_retrain(mlp, vectors, 0.1, rounds=4).load_state_dict(state)
    with pytest.raises(ValueError, match=r"with an entry 'number' \(got None\)"):
        fresh.load_state_dict({})
    with pytest.raises(ValueError, match=r"must be a mapping \(got list\)"):
        fresh.load_state_dict([])
    gradual = sk.Gradual(mlp, vectors, 0.1, end=10, every=2, engine="masked")
    with pytest.raises(ValueError, match=r"one of Gradual with an entry 'steps'"):
        gradual.load_state_dict(state)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"keep": 0.1}, ValueError, r"rounds must be given for this schedule, the number of prunings \(got None\)"),
        ({"rounds": 3}, ValueError, r"give either keep or sparsity"),
        ({"keep": 0.1, "rounds": 0}, ValueError, r"rounds must be a positive integer \(got 0\)"),
        ({"keep": 0.1, "rounds": 3, "schedule": "one-shot"}, ValueError, r"prunes once; rounds must be 1 \(got 3\)"),
        ({"keep": 0.1, "rounds": 3, "rewind": "start"}, ValueError, r"rewind must be a Snapshot or None \(got str\)"),
        ({"keep": 2.0, "rounds": 3}, ValueError, r"keep must be a fraction in \(0, 1\]"),
        ({"keep": 0.1, "rounds": 3, "criterium": "snip"}, TypeError, r"unexpected keyword argument 'criterium'"),
        ({"keep": 0.1, "rounds": 3, "schedule": "cosine"}, ValueError, r"must be one of linear, cubic"),
        ({"schedule": []}, ValueError, r"give either keep or sparsity"),
    ],
)
def test_bad_arguments_are_told_at_once(options, error, message, mlp, vectors):
    with pytest.raises(error, match=message):
        sk.prune_retrain(mlp, vectors, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"end": 10, "every": 2}, r"optimizer must be given, .* or engine='masked' \(got optimizer=None\)"),
        ({"end": 10, "every": 0}, r"every must be an integer of at least 1 \(got 0\)"),
        ({"end": 5, "every": 2, "begin": 5}, r"end must be after begin, 5 \(got 5\)"),
        ({"end": 10, "every": 2, "engine": "masked", "schedule": [0.1]}, r"as many as prunings, 5 \(got 1\)"),
    ],
)
def test_bad_arguments_of_gradual_pruning(options, message, mlp, vectors):
    with pytest.raises(ValueError, match=message):
        sk.Gradual(mlp, vectors, 0.1, **options)


def test_a_failing_pruning_can_be_tried_again(mlp, vectors):
    fails = [True]

    def loss(model, batch):
        if fails[0]:
            raise RuntimeError("not now")
        return F.cross_entropy(model(batch[0]), batch[1])

    stages = sk.prune_retrain(mlp, vectors, 0.1, rounds=2, dense_first=False, loss_fn=loss, engine="csr")
    before = copy.deepcopy(mlp.state_dict())
    with pytest.raises(RuntimeError, match="not now"):
        next(stages)
    assert all(torch.equal(value, before[name]) for name, value in mlp.state_dict().items())
    fails[0] = False
    assert [str(stage) for stage in stages] == [
        "stage 1 of 2: 31.62% of the weights",
        "stage 2 of 2: 10.03% of the weights",
    ]


def test_a_snapshot_that_does_not_fit_is_told_before_anything_is_pruned(mlp, vectors):
    wrong = sk.Snapshot(torch.nn.Linear(2, 2))
    stages = sk.prune_retrain(mlp, vectors, 0.1, rounds=2, rewind=wrong, engine="csr")
    next(stages)
    with pytest.raises(ValueError, match="must have what the snapshot has"):
        next(stages)
    assert not sk.masks(mlp)
    stages.rewind = sk.Snapshot(mlp)  # as it is after some steps
    next(stages)
    assert sum(mask.count() for mask in sk.masks(mlp).values()) == 413


def test_an_iterator_serves_one_pruning_alone(mlp, vectors):
    """Told before the first one, and not when the second finds it empty."""
    stream = (batch for batch in vectors)
    text = r": loader must be iterable once for each pruning, such as a list \(got generator\)"
    with pytest.raises(ValueError, match="prune_retrain" + text):
        sk.prune_retrain(mlp, stream, 0.1, rounds=2)
    with pytest.raises(ValueError, match="gradual" + text):
        sk.Gradual(mlp, stream, 0.1, end=3, every=2, engine="masked")
    assert not sk.masks(mlp)
    [stage] = sk.prune_retrain(mlp, stream, 0.1, rounds=1, dense_first=False, engine="masked")
    assert round(stage.density * 1306) == round(0.1 * 1306)
    gradual = sk.Gradual(mlp, iter(vectors), 0.05, end=2, every=2, engine="masked")
    assert gradual.step() is None and gradual.step().kept == round(0.05 * 1306)
