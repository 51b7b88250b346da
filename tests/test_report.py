"""The table of what pruning did: readable whatever its cells hold."""

from __future__ import annotations

from snipkern.engine.choice import Choice
from snipkern.report import Layer, table

WHY = "masked would be slower still: measured 0.8x dense for 64 rows (predicted 1.2x)"


def row(name):
    return Layer(name, "Linear", (16384, 16384), 12_345_678, 268_435_456, Choice("csr", WHY), (16, 16))


def test_long_names_and_reasons_are_wrapped_but_not_squashed():
    name = "transformer.encoder.layers.11.attention.output.dense.weight"
    lines = table([row(name), row("0.weight")], "pruned").splitlines()
    assert sum("masked would be slower still:" in line for line in lines) == 2
    assert sum("(predicted 1.2x)" in line for line in lines) == 2
    assert sum(name[:32] in line for line in lines) == 1 and sum("0.weight" in line for line in lines) == 1
    assert all("16384 x 16384" in line for line in lines if "12,345,678" in line)
    assert max(map(len, lines)) < 160


def test_short_rows_stay_on_one_line():
    short = Layer("0.weight", "Linear", (5, 4), 10, 20, Choice("masked", "as asked"))
    lines = table([short], "pruned").splitlines()
    assert sum("0.weight" in line and "as asked" in line for line in lines) == 1 and max(map(len, lines)) < 100
