"""benchmarks/accuracy.py: what it trains, how it goes on after an interruption, and what it refuses."""

from __future__ import annotations

import json

import accuracy
import pytest
import resume
from rich.console import Console

ARGUMENTS = ["--masks", "element,4x4", "--keep", "0.05", "--epochs", "1", "--score-batches", "1"]


def test_a_seed_of_everything_comes_before_the_next():
    runs = accuracy.planned(accuracy.parse(["--seeds", "2", "--models", "lenet-300-100", "lenet-5"]))
    assert len({resume.key(run) for run in runs}) == len(runs)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert sum(run.mask == "dense" for run in runs) == 4  # once for each network and seed, whatever is kept
    assert {run.mask for run in runs if run.model == "lenet-5"} == set(accuracy.CONV_MASKS)


@pytest.mark.slow
def test_goes_on_where_it_was(tmp_path, capsys, train_here):
    path = tmp_path / "found.json"
    accuracy.main([*ARGUMENTS, "--json", str(path)])
    content = json.loads(path.read_text())
    assert [row["mask"] for row in content["results"]] == ["element", "4x4"]
    assert all(0 < row["test_error"] < 60 and 0.04 < row["density"] <= 0.0501 for row in content["results"])
    content["results"].pop()
    content["results"][0]["test_error"] = 12.34  # would be trained again if it were not read
    path.write_text(json.dumps(content))
    train_here()
    accuracy.main([*ARGUMENTS, "--json", str(path)])
    again = json.loads(path.read_text())["results"]
    assert [row["mask"] for row in again] == ["element", "4x4"] and again[0]["test_error"] == 12.34
    capsys.readouterr()
    accuracy.main(["--show", str(path)])
    assert "12.34" in capsys.readouterr().out


def test_shows_mean_and_spread():
    rows = [
        {"model": "m", "dataset": "d", "mask": mask, "keep": keep, "seed": seed, "test_error": error}
        for mask, keep, seed, error in [("dense", 1.0, 0, 1.5), ("4x4", 0.05, 0, 2.0), ("4x4", 0.05, 1, 3.0)]
    ]
    console = Console(width=100, record=True, quiet=False)
    accuracy.show({"results": rows}, console)
    said = console.export_text()
    assert "2.50 (2.00 - 3.00)" in said and "1.50" in said and "d, 5% kept" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "mnist"], "data must be NAME=FOLDER (got 'mnist')"),
        (["--masks", "5x5"], "(got '5x5')"),
        (["--seeds", "0"], "must be positive"),
    ],
)
def test_bad_arguments(arguments, said, capsys):
    with pytest.raises(SystemExit):
        accuracy.parse(arguments)
    assert said in capsys.readouterr().err


def test_another_format_is_refused(tmp_path):
    path = tmp_path / "old.json"
    path.write_text('{"format": 0}')
    with pytest.raises(SystemExit, match=r"accuracy: .*old.json must be of format 1 \(got 0\)"):
        accuracy.main(["--show", str(path)])
