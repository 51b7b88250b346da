"""The picture of a run has a line for each kind of mask and a bar for each contender that was measured."""

from __future__ import annotations

import xml.etree.ElementTree as tree

import plot
import pytest
from cases import Result
from timing import Timing

pytest.importorskip("matplotlib")


def steady(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, 9, 1)


def sweep() -> Result:
    densities = {
        f"snipkern {kind}{density:.0%}": {
            "density": density,
            "block": kind.strip() or None,
            "auto": "csr",
            "reason": "",
        }
        for kind in ("", "4x1 ", "16x16 ")
        for density in (0.01, 0.1, 0.5)
    }
    speed = {None: 30.0, "4x1": 80.0, "16x16": 120.0}
    timings = {name: steady(facts["density"] * 10 / speed[facts["block"]]) for name, facts in densities.items()}
    timings |= {"torch": steady(0.1), "onednn": steady(0.08)}
    return Result("density", "Linear", {"density": [0.01, 0.1, 0.5]}, timings, {}, {"densities": densities})


def layer(name: str, **seconds: float) -> Result:
    timings = {key.replace("_", " "): steady(value) for key, value in seconds.items()}
    return Result("layers", name, {"density": 0.05}, timings)


def test_lines_cross_where_the_break_even_is(tmp_path):
    path = tmp_path / "folder" / "out.svg"
    bars = layer("one", snipkern=1.0, snipkern_4x1=0.5, torch=9.0, onednn=6.0), layer("two", snipkern=1.0, torch=3.0)
    plot.save([sweep(), *bars], path, "a machine")
    drawn = tree.parse(path).getroot()
    assert drawn.tag.endswith("svg")
    comments = path.read_text()
    for text in (
        "a machine",
        "element, break-even: 24%",
        "16x16, break-even: above all",
        "snipkern, blocks 4x1",
        "best dense",
    ):
        assert f"<!-- {text} -->" in comments
    assert "SparseProp" not in comments  # nobody measured it


def test_each_half_can_be_drawn_alone(tmp_path):
    for results in ([sweep()], [layer("one", snipkern=1.0, torch=9.0)]):
        plot.save(results, tmp_path / "out.png", "")
        assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_either_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"--plot needs the cases density or layers \(got neither\)"):
        plot.save([], tmp_path / "out.png", "")
