"""What the pictures show equals what the masks and weights hold."""

import subprocess
import sys

import pytest
import torch

from snipkern import Mask, plots

pytest.importorskip("matplotlib")


def random_mask(*shape, density=0.3, seed=0):
    return Mask.from_dense(torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density)


def drawn_image(figure):
    """The values of the one image of a figure, without those of its colour bar."""
    return torch.as_tensor(figure.axes[0].images[0].get_array().filled(float("nan")))


@pytest.mark.parametrize("image_shape", [(4, 6), (1, 4, 6), (2, 4, 3)])
def test_linear_first_layer_counts_connections_per_pixel(image_shape):
    mask = random_mask(10, 24)
    figure = plots.retained_connections(mask, image_shape)
    counts = drawn_image(figure)
    expected = torch.zeros(image_shape[-2:], dtype=counts.dtype)
    for row in mask.to_dense():
        expected += row.view(-1, *image_shape[-2:]).sum(0)
    assert torch.equal(counts, expected)
    assert counts.sum() == mask.count()
    title = figure.axes[0].get_title()
    assert f"{mask.count()} of 240 connections kept" in title


def test_linear_title_counts_the_pixels_that_nothing_reads():
    kept = torch.ones(3, 6, dtype=torch.bool)
    kept[:, [1, 4]] = False
    figure = plots.retained_connections(Mask.from_dense(kept), (2, 3))
    assert "2 of 6 input pixels are read by none" in figure.axes[0].get_title()


@pytest.mark.parametrize("shape", [(20, 1, 5, 5), (1, 1, 3, 2), (7, 3, 2, 4)])
def test_conv_first_layer_shows_every_filter_once(shape):
    filters, channels, height, width = shape
    mask = random_mask(*shape)
    mosaic = drawn_image(plots.retained_connections(mask, (channels, 28, 28)))
    columns = (mosaic.shape[1] + 1) // (width + 1)
    for number, taps in enumerate(mask.to_dense().sum(1)):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        assert torch.equal(mosaic[top : top + height, left : left + width], taps.to(mosaic.dtype))
    assert mosaic.nansum() == mask.count()
    assert int(mosaic.isfinite().sum()) == filters * height * width


def test_conv_title_counts_empty_filters_and_groups_are_read():
    kept = torch.ones(4, 1, 3, 3, dtype=torch.bool)
    kept[2] = False
    figure = plots.retained_connections(Mask.from_dense(kept), (2, 8, 8))
    assert "1 of 4 filters keep none" in figure.axes[0].get_title()


@pytest.mark.parametrize(
    ("shape", "image_shape", "message"),
    [
        ((5, 10), (3, 3), r"mask must be \[out, 9\] or \[out, 1 / groups, kh, kw\] for images of shape \(3, 3\) \(got"),
        ((5, 3, 2, 2), (1, 8, 8), r"mask must be .* \(got \(5, 3, 2, 2\)\)"),
        ((5, 10), (10,), r"image_shape must be \(height, width\) or \(channels, height, width\) \(got \(10,\)\)"),
    ],
)
def test_retained_connections_refuses_masks_of_other_layers(shape, image_shape, message):
    with pytest.raises(ValueError, match=f"^retained_connections: {message}"):
        plots.retained_connections(random_mask(*shape), image_shape)


def test_colour_bar_has_whole_numbers_only():
    mask = random_mask(4, 3, 2, 2)
    figure = plots.retained_connections(mask, (3, 8, 8))
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert labels == [str(count) for count in range(int(mask.to_dense().sum(1).max()) + 1)]


def test_histogram_counts_every_weight_once_in_shared_bins():
    generator = torch.Generator().manual_seed(1)
    before = torch.randn(50, 40, generator=generator)
    after = 2 * before[before.abs() > 1]
    steps = plots.weight_histogram(before, after).axes[0].patches
    counts, edges = zip(*((torch.tensor(step.get_data().values), step.get_data().edges) for step in steps), strict=True)
    assert list(edges[0]) == list(edges[1])
    assert [int(count.sum()) for count in counts] == [before.numel(), after.numel()]
    middle = len(counts[0]) // 2
    assert edges[0][middle] < 0 < edges[0][middle + 1]
    assert counts[0][middle] == (before.abs() < edges[0][middle + 1]).sum() > 0
    assert counts[1][middle] == 0
    labels = [text.get_text() for text in plots.weight_histogram(before, after).axes[0].get_legend().get_texts()]
    assert labels == ["before: 2,000 weights", f"after: {after.numel()} kept weights"]


def test_histogram_of_zeros_and_low_precision(tmp_path):
    figure = plots.weight_histogram(torch.zeros(5, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16))
    assert [sum(step.get_data().values) for step in figure.axes[0].patches] == [5, 2]
    figure.savefig(tmp_path / "zeros.png")


@pytest.mark.parametrize("bad", [torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")]), torch.empty(0)])
def test_histogram_refuses_what_has_no_bin(bad):
    good = torch.ones(3)
    with pytest.raises(ValueError, match=r"^weight_histogram: before must be finite and not empty \(got"):
        plots.weight_histogram(bad, good)
    with pytest.raises(ValueError, match=r"^weight_histogram: after must be finite and not empty \(got"):
        plots.weight_histogram(good, bad)


def test_densities_are_bars_in_the_order_of_the_model():
    masks = {"fc1.weight": random_mask(30, 20), "fc2.weight": random_mask(5, 30, density=0.9, seed=1)}
    axes = plots.layer_densities(masks).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([100 * mask.density for mask in masks.values()])
    assert [label.get_text() for label in axes.get_yticklabels()] == list(masks)
    assert axes.yaxis_inverted()
    overall = 100 * sum(mask.count() for mask in masks.values()) / 750
    assert list(axes.lines[0].get_xdata()) == pytest.approx([overall, overall])
    texts = {text.get_text() for text in axes.texts}
    assert f"{masks['fc2.weight'].density:.1%}  ({masks['fc2.weight'].count()} of 150)" in texts


def test_densities_without_masks_or_with_nothing_kept():
    with pytest.raises(ValueError, match=r"^layer_densities: masks must not be empty \(got none\)$"):
        plots.layer_densities({})
    axes = plots.layer_densities({"w": Mask.from_dense(torch.zeros(3, 3, dtype=torch.bool))}).axes[0]
    assert axes.patches[0].get_width() == 0


def test_importing_loads_no_matplotlib_and_drawing_no_pyplot():
    script = (
        "import sys, torch; from snipkern import Mask, plots; assert 'matplotlib' not in sys.modules;"
        "plots.layer_densities({'w': Mask.full((2, 2))}).savefig(sys.argv[1]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, "/dev/null"], check=True)


def test_missing_matplotlib_is_named(monkeypatch):
    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name == "matplotlib":
                raise ModuleNotFoundError("No module named 'matplotlib'", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match=r"^plots: matplotlib must be installed .*snipkern\[plots\]"):
        plots.layer_densities({"w": Mask.full((2, 2))})
