"""Masks of any layer as images: what is drawn equals what the mask keeps, cell by cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_plots import drawn_image, random_mask

from snipkern import Mask, plots
from snipkern.plots.views import PARTS


@pytest.mark.parametrize("shape", [(10, 20), (400, 3), (2, 3), (30, 8, 1, 1)])
def test_small_matrices_are_drawn_as_they_are(shape):
    mask = random_mask(*shape)
    figure = plots.retained_connections(mask, title="fc.weight")
    kept = mask.to_dense().view(shape[:2])
    assert torch.equal(drawn_image(figure).bool(), kept)
    axes, bar = figure.axes
    assert [text.get_text() for text in bar.get_yticklabels()] == ["pruned", "kept"]
    dead = f"{int((~kept.any(1)).sum())} of {shape[0]}", f"{int((~kept.any(0)).sum())} of {shape[1]}"
    title = axes.get_title()
    assert title.startswith(f"fc.weight\n{mask.count():,} of {mask.numel:,} connections kept")
    assert all(count in title for count in dead) and title.endswith("keep none")
    assert axes.get_xlim() == (-0.5, shape[1] - 0.5) and axes.get_ylim() == (shape[0] - 0.5, -0.5)
    whole = ("output", "input") if len(shape) == 2 else ("output channel", "input channel")
    assert (axes.get_ylabel(), axes.get_xlabel()) == whole


@pytest.mark.parametrize(("shape", "cell"), [((300, 784), (1, 2)), ((1000, 401), (3, 2)), ((5, 900, 3), (1, 3))])
def test_large_matrices_show_the_share_of_each_cell(shape, cell):
    mask = random_mask(*shape)
    figure = plots.retained_connections(mask)
    kept = mask.to_dense().view(*shape[:2], -1).double()
    image = drawn_image(figure)
    sums, sizes = kept.sum(2).numpy(), np.full(shape[:2], kept.shape[2])
    for axis, side in enumerate(cell):
        sums, sizes = (np.add.reduceat(part, np.arange(0, shape[axis], side), axis) for part in (sums, sizes))
    np.testing.assert_allclose(image.numpy(), 100 * sums / sizes)
    area = " x ".join(map(str, (*cell, *shape[2:])))
    assert figure.axes[1].get_ylabel() == f"kept of each {area} weights (%)"
    left, right, bottom, top = figure.axes[0].images[0].get_extent()
    assert (left, top) == (-0.5, -0.5)
    assert (right, bottom) == (image.shape[1] * cell[1] - 0.5, image.shape[0] * cell[0] - 0.5)
    assert figure.axes[0].get_xlim()[1] == shape[1] - 0.5


def test_the_scale_of_shares_ends_below_the_few_fullest_cells():
    kept = torch.rand(800, 800, generator=torch.Generator().manual_seed(0)) < 0.1
    kept[:2] = True
    figure = plots.retained_connections(Mask.from_dense(kept))
    image = figure.axes[0].images[0]
    assert float(image.get_array().max()) == 100 > image.norm.vmax and image.norm.vmin == 0
    assert image.colorbar.extend == "max"


def test_convolutions_by_channels_and_by_filters():
    mask = random_mask(6, 8, 3, 3)
    assert torch.equal(drawn_image(plots.retained_connections(mask)).long(), mask.to_dense().sum((2, 3)))
    by_filters = plots.retained_connections(mask, view="filters")
    assert drawn_image(by_filters).nansum() == mask.count()
    few = random_mask(6, 3, 3, 3)
    alone = drawn_image(plots.retained_connections(few))
    assert torch.equal(alone.nan_to_num(-1), drawn_image(plots.retained_connections(few, (3, 8, 8))).nan_to_num(-1))
    assert torch.equal(drawn_image(plots.retained_connections(few, view="channels")).long(), few.to_dense().sum((2, 3)))


def test_one_dimensional_filters():
    mask = random_mask(4, 2, 5)
    mosaic = drawn_image(plots.retained_connections(mask))
    for number, taps in enumerate(mask.to_dense().sum(1)):
        columns = (mosaic.shape[1] + 1) // 6
        top, left = number // columns * 2, number % columns * 6
        assert torch.equal(mosaic[top, left : left + 5].long(), taps)


@pytest.mark.parametrize(("parts", "names"), [("LSTM", 4), ("GRU", 3), ("attention", 3), (["up", "gate"], 2)])
def test_parts_are_drawn_apart_and_named(parts, names):
    mask = random_mask(names * 11, 7)
    axes = plots.retained_connections(mask, parts=parts).axes[0]
    image = torch.as_tensor(axes.images[0].get_array().filled(float("nan")))
    gaps = image.isnan().all(1)
    assert int(gaps.sum()) == names - 1 and not image[~gaps].isnan().any()
    assert torch.equal(image[~gaps].bool(), mask.to_dense())
    ticks = dict(zip([t.get_text() for t in axes.get_yticklabels()], axes.get_yticks(), strict=True))
    assert list(ticks) == list(PARTS.get(str(parts), parts))
    assert list(ticks.values()) == [12 * n + 5 for n in range(names)]  # the middle one of each 11 rows
    assert axes.get_ylabel() == "output, 11 of each part"


def test_grids_share_one_scale_and_name_their_masks():
    masks = {f"class {n}": random_mask(10, 24, density=0.1 + 0.1 * n, seed=n) for n in range(7)}
    figure = plots.mask_grid(masks, (4, 6), title="one class each")
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 7 and figure.get_suptitle() == "one class each"
    assert [axes.get_title().split("\n")[0] for axes in panels] == list(masks)
    counts = [mask.to_dense().sum(0).view(4, 6) for mask in masks.values()]
    for axes, expected in zip(panels, counts, strict=True):
        assert torch.equal(torch.as_tensor(axes.images[0].get_array().filled(-1)).long(), expected)
        assert axes.images[0].norm.vmax == max(int(count.max()) for count in counts)
    places = [axes.get_subplotspec() for axes in panels]
    assert [place.colspan.start for place in places] == [0, 1, 2, 3, 0, 1, 2]
    assert len([axes for axes in plots.mask_grid(masks, (4, 6), columns=9).axes if axes.images]) == 7


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: plots.retained_connections(random_mask(5)),
            r"retained_connections: mask must be of a weight of 2 .*\(got \(5,\)\)",
        ),
        (
            lambda: plots.retained_connections(random_mask(5, 4), parts="LSTM"),
            r"retained_connections: 4 parts must have the same number of rows \(got 5 rows\)",
        ),
        (
            lambda: plots.retained_connections(random_mask(4, 4), parts="RNN"),
            r"retained_connections: parts must be names or one of 'LSTM', .* \(got 'RNN'\)",
        ),
        (
            lambda: plots.retained_connections(random_mask(4, 4), view="pixels"),
            r"retained_connections: view must be 'filters', 'channels' or None \(got 'pixels'\)",
        ),
        (
            lambda: plots.retained_connections(random_mask(4, 4), view="filters"),
            r"retained_connections: view is for convolutions \(got 'filters' for a weight \(4, 4\)\)",
        ),
        (
            lambda: plots.retained_connections(random_mask(4, 4, 1, 1, 1), view="filters"),
            r"retained_connections: view='filters' is for windows of 1 or 2 dimensions",
        ),
        (
            lambda: plots.retained_connections(random_mask(4, 4), (2, 2), parts=["a"]),
            r"retained_connections: image_shape must come without parts and view",
        ),
        (lambda: plots.mask_grid({}), r"mask_grid: masks must be of one shape \(got none\)"),
        (
            lambda: plots.mask_grid({"a": random_mask(2, 2), "b": random_mask(2, 3)}),
            r"mask_grid: masks must be of one shape \(got \(2, 2\) and \(2, 3\)\)",
        ),
        (
            lambda: plots.mask_grid({"a": random_mask(2, 2)}, columns=0),
            r"mask_grid: columns must be a positive integer \(got 0\)",
        ),
    ],
)
def test_what_can_not_be_drawn(draw, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        draw()
