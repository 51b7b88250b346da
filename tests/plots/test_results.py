"""Scores, curves and bars: artists hold the numbers they were given."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest
import torch
from test_plots import random_mask

from snipkern import Mask, plots


def kept_of(scores, share):
    every = torch.cat([score.reshape(-1) for score in scores.values()])
    threshold = every.sort().values[-round(share * every.numel())]
    return {name: Mask.from_dense(score >= threshold) for name, score in scores.items()}, float(threshold)


def made_scores(layers=3):
    generator = torch.Generator().manual_seed(2)
    return {f"{n}.weight": torch.randn(20, 30, generator=generator).exp() * 10.0**-n for n in range(layers)}


def test_saliency_counts_every_positive_score_and_marks_the_threshold():
    scores = made_scores()
    scores["0.weight"][0, :7] = 0
    masks, threshold = kept_of(scores, 0.1)
    axes = plots.saliency_histogram(scores, masks).axes[0]
    counts = [int(sum(step.get_data().values)) for step in axes.patches]
    assert counts == [1800 - 7, 180]
    assert list(axes.patches[0].get_data().edges) == list(axes.patches[1].get_data().edges)
    assert axes.lines[0].get_xdata()[0] == pytest.approx(threshold)
    assert axes.get_title().endswith("; 7 weights score zero")
    assert axes.get_xscale() == axes.get_yscale() == "log"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["before: 1,800 weights", "after: 180 kept weights", f"threshold: {threshold:.2g}"]


def test_saliency_by_layer_has_a_panel_and_a_threshold_each():
    scores = made_scores(4)
    masks, _ = kept_of(scores, 0.3)
    masks["3.weight"] = Mask.full((20, 30))  # no threshold: nothing is pruned
    figure = plots.saliency_histogram(scores, masks, by_layer=True)
    panels = [axes for axes in figure.axes if axes.patches]
    for axes, (name, score) in zip(panels, scores.items(), strict=True):
        assert [int(sum(step.get_data().values)) for step in axes.patches] == [600, masks[name].count()]
        assert axes.get_title().startswith(f"{name}\n{masks[name].density:.1%} kept")
        kept = score[masks[name].to_dense()]
        lines = [line.get_xdata()[0] for line in axes.lines]
        assert lines == ([] if name == "3.weight" or not kept.numel() else [pytest.approx(float(kept.min()))])


def test_saliency_without_one_threshold_has_no_line():
    scores = made_scores(1)
    figure = plots.saliency_histogram(scores, {"0.weight": random_mask(20, 30)})
    assert not figure.axes[0].lines


@pytest.mark.parametrize(
    ("scores", "masks", "message"),
    [
        ({}, {}, r"scores must not be empty \(got none\)"),
        ({"a": torch.ones(2, 2)}, {}, r"'a' needs a mask of shape \(2, 2\) \(got no mask\)"),
        (
            {"a": torch.ones(2, 2)},
            {"a": Mask.full((4,))},
            r"'a' needs a mask of shape \(2, 2\) \(got a mask of shape \(4,\)\)",
        ),
        (
            {"a": torch.tensor([-1.0, 2.0])},
            {"a": Mask.full((2,))},
            r"scores of 'a' must be finite and not negative \(got 1 of 2 that are not\)",
        ),
        ({"a": torch.zeros(2)}, {"a": Mask.full((2,))}, r"scores must not all be zero \(got nothing but zeros\)"),
    ],
)
def test_saliency_refuses_what_has_no_place(scores, masks, message):
    with pytest.raises(ValueError, match=f"^saliency_histogram: {message}"):
        plots.saliency_histogram(scores, masks)


RESULTS = {"snip": {0.95: [2.0, 2.4, 2.2], 0.9: [1.8, 1.9, 2.0]}, "random": {0.9: 3.0, 0.95: np.array([3.5, 4.5])}}


def test_accuracy_curves_draw_means_spreads_and_the_dense_net():
    axes = plots.accuracy_curves(RESULTS, dense=[1.5, 1.7]).axes[0]
    snip, random, dense = axes.get_lines()
    assert [line.get_label() for line in (snip, random, dense)] == ["snip", "random", "dense: 1.6"]
    assert list(snip.get_xdata()) == pytest.approx([0.1, 0.05]) and list(snip.get_ydata()) == pytest.approx([1.9, 2.2])
    assert list(random.get_ydata()) == pytest.approx([3.0, 4.0])
    assert list(dense.get_ydata()) == pytest.approx([1.6, 1.6])
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(2.2 + statistics.stdev([2.0, 2.4, 2.2]))
    assert band[:, 1].min() == pytest.approx(1.9 - statistics.stdev([1.8, 1.9, 2.0]))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["90", "95"]
    assert axes.xaxis_inverted() and axes.get_xscale() == "log" and axes.get_yscale() == "linear"
    assert axes.get_ylabel() == "test error (%)" and "sparsity (%" in axes.get_xlabel()


def test_axis_of_errors_is_logarithmic_where_they_differ_much_or_when_asked():
    wide = {"snip": {0.5: 1.0, 0.99: 50.0}}
    assert plots.accuracy_curves(wide).axes[0].get_yscale() == "log"
    assert plots.accuracy_curves(wide, scale="linear").axes[0].get_yscale() == "linear"
    assert plots.accuracy_curves(RESULTS, scale="log").axes[0].get_ylabel() == "test error (%), logarithmic"


def test_sparsities_that_lie_close_share_a_label():
    close = {"snip": {s / 1000: 1.0 for s in range(900, 999)}}
    axes = plots.accuracy_curves(close).axes[0]
    places = np.log(axes.get_xticks())
    assert 5 < len(places) < 16 and np.abs(np.diff(places)).min() > 0.06 * (np.log(0.1) - np.log(0.002))


def test_training_curves_of_runs_and_seeds():
    runs = {"dense": [2.0, 1.0, 0.5], "pruned": {10: [2.0, 2.2], 20: [1.0, 1.2]}}
    dense, pruned = plots.training_curves(runs, xlabel="step", scale="linear").axes[0].get_lines()
    assert list(dense.get_xdata()) == [1, 2, 3] and list(dense.get_ydata()) == [2.0, 1.0, 0.5]
    assert list(pruned.get_xdata()) == [10, 20] and list(pruned.get_ydata()) == pytest.approx([2.1, 1.1])
    assert dense.get_color() != pruned.get_color() and dense.get_marker() != pruned.get_marker()


def test_many_lines_look_different():
    lines = plots.training_curves({str(n): [n + 1.0, 1.0] for n in range(20)}).axes[0].get_lines()
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 20


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.accuracy_curves({}), r"accuracy_curves: there must be a line, and none without points"),
        (
            lambda: plots.accuracy_curves({"a": {1.0: 2.0}}),
            r"accuracy_curves: sparsities must be in \[0, 1\) \(got 1.0 for 'a'\)",
        ),
        (
            lambda: plots.accuracy_curves({"a": {0.5: [float("nan")]}}),
            r"accuracy_curves: values must be finite, at least one for each point \(got \[nan\] for 'a' at 0.5\)",
        ),
        (
            lambda: plots.accuracy_curves(RESULTS, scale="cubic"),
            r"accuracy_curves: scale must be one of 'auto', 'linear', 'log' \(got 'cubic'\)",
        ),
        (lambda: plots.training_curves({"a": []}), r"training_curves: there must be a line, and none without points"),
        (
            lambda: plots.training_curves({"a": [0.0, 1.0]}, scale="log"),
            r"training_curves: values must be positive on a logarithmic scale \(got 0.0\)",
        ),
        (lambda: plots.rank_correlations({}), r"rank_correlations: correlations must not be empty \(got \{\}\)"),
        (
            lambda: plots.rank_correlations({"a": {"fc": 2.0}}),
            r"rank_correlations: values must be in \[-1, 1\] \(got 2.0 for 'a', 'fc'\)",
        ),
    ],
)
def test_results_that_can_not_be_drawn(draw, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        draw()


def test_rank_correlations_are_bars_on_one_scale():
    axes = plots.rank_correlations({"obd": 0.8, "grasp": -0.25}, of="the loss").axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.8, -0.25]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["obd", "grasp"] and axes.yaxis_inverted()
    assert axes.get_xlim() == (-1.15, 1.15) and axes.get_xlabel() == "rank correlation with the loss"
    groups = plots.rank_correlations({"obd": {"a": 0.5, "b": 0.1}, "snip": {"b": 0.3}})
    assert sorted(bar.get_width() for bar in groups.axes[0].patches) == [0.1, 0.3, 0.5]
    assert [text.get_text() for text in groups.legends[0].get_texts()] == ["a", "b"]


def test_many_layers_with_long_names_do_not_overlap():
    masks = {
        f"transformer.encoder.layers.{n}.attention.output.dense.weight": random_mask(9, 9, seed=n) for n in range(60)
    }
    figure = plots.layer_densities(masks)
    figure.draw_without_rendering()
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == list(masks)  # without their middles they would be the same
    boxes = [label.get_window_extent() for label in labels]
    assert all(upper.y0 > lower.y1 for upper, lower in itertools.pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0


def test_long_names_lose_their_middle():
    [label] = plots.layer_densities({"a" * 30 + "." + "b" * 30: random_mask(3, 3)}).axes[0].get_yticklabels()
    assert label.get_text() == "a" * 20 + "..." + "b" * 21
