"""The roofline's section of the README is what the formulas say now, and says that it is a prediction."""

from __future__ import annotations

import itertools
import re

import covers
import pytest
import roofline


def test_the_readme_is_up_to_date():
    readme = roofline.README.read_text(encoding="utf-8")
    assert roofline.written(readme) == readme, "run: python benchmarks/roofline.py --write"
    heading = next(line for line in reversed(readme.split(roofline.BEGIN)[0].splitlines()) if line.startswith("## "))
    assert heading == "## GPU roofline (prediction; nothing has run on a GPU)"


def test_writing_changes_what_is_between_the_marks_alone(tmp_path, monkeypatch, capsys):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{roofline.BEGIN}\nold\n{roofline.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(roofline, "README", path)
    roofline.main([])
    printed = capsys.readouterr().out.rstrip("\n")
    roofline.main(["--write"])
    assert path.read_text(encoding="utf-8") == f"before\n{roofline.BEGIN}\n\n{printed}\n\n{roofline.END}\nafter\n"


def test_tables_are_whole():
    lines = roofline.text().splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) > 60 and not any(re.search(r"nan|inf|e\+", line) for line in tables)
    for first, second in itertools.pairwise(lines):
        if first.startswith("|") and second.startswith("|"):
            assert first.count("|") == second.count("|")


@pytest.mark.slow
def test_fill_of_covers(capsys, monkeypatch):
    monkeypatch.setattr(covers, "SPARSITIES", (0.98,))
    covers.main(["--width", "48"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1].split()[0] for row in rows] == ["fc1", "fc2", "1", "3"]
    for *_, small, large in rows:
        for cell in (small, large):
            given, own, share = (float(number) for number in re.findall(r"[\d.]+(?=%)", cell))
            assert 0 < given <= own <= 100 and 0 < share <= 100
