"""Text as bytes, and windows of it that are functions of their number."""

import gpt_text
import pytest
import torch
from gpt_text import SEPARATOR, TextError, Windows


@pytest.fixture
def folder(tmp_path):
    """Forty files, each a run of one byte."""
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_bytes(bytes([65 + number]) * (100 + number))
    return tmp_path


def text_of(train, held_out):
    return gpt_text.Text(
        "made up", torch.tensor(train, dtype=torch.uint8), torch.tensor(held_out, dtype=torch.uint8), ""
    )


def test_standard_library_is_found_and_always_the_same():
    first, second = gpt_text.load(), gpt_text.load()
    assert first.digest == second.digest
    assert torch.equal(first.train, second.train)
    assert len(first.train) > 5_000_000
    assert 0.01 < len(first.held_out) / len(first.train) < 0.15
    content = bytes(first.train.numpy()) + bytes(first.held_out.numpy())
    assert b"class OrderedDict(dict):" in content
    # The library's own tests would be half of it, and repeat themselves.
    assert b"class TestOrderedDict" not in content


def test_every_twentieth_file_is_held_out(folder):
    text = gpt_text.load([str(folder / "*.txt")])
    parts = [bytes([65 + number]) * (100 + number) for number in range(40)]
    assert bytes(text.held_out.numpy()) == SEPARATOR.join([parts[19], parts[39]])
    assert bytes(text.train.numpy()) == SEPARATOR.join(parts[:19] + parts[20:39])
    assert text.name.endswith("40 files")


def test_files_are_taken_once_and_in_the_order_of_their_paths(folder):
    names = [str(folder / f"{number:02}.txt") for number in (3, 1, 2)]
    text = gpt_text.load([*names, str(folder / "0[12].txt")])
    assert bytes(text.train.numpy()) == b"B" * 101 + SEPARATOR + b"C" * 102
    assert bytes(text.held_out.numpy()) == b"D" * 103


def test_of_a_single_file_the_end_is_held_out(tmp_path):
    path = tmp_path / "one"
    path.write_bytes(bytes(range(200)))
    text = gpt_text.load([str(path)])
    assert text.train.tolist() == list(range(190))
    assert text.held_out.tolist() == list(range(190, 200))


def test_another_text_has_another_digest(folder):
    before = gpt_text.load([str(folder / "*.txt")]).digest
    (folder / "05.txt").write_bytes(b"changed")
    assert gpt_text.load([str(folder / "*.txt")]).digest != before


@pytest.mark.parametrize("pattern", ["nothing*", "", "."])
def test_patterns_without_files_are_refused(folder, pattern):
    name = str(folder / pattern) if pattern != "" else ""
    with pytest.raises(TextError, match=r"text: --text must name files or patterns that match some \(got"):
        gpt_text.load([str(folder / "00.txt"), name])


@pytest.mark.parametrize(
    ("train", "held_out", "what"), [(8, 20, "train on"), (20, 8, "validate with"), (20, 0, "valid")]
)
def test_too_short_texts_are_refused(train, held_out, what):
    with pytest.raises(TextError, match=f"must have more than --context 8 bytes to {what}.*got {min(train, held_out)}"):
        Windows(text_of([0] * train, [0] * held_out), 2, 8, 0)


def test_shortest_text_has_one_window():
    windows = Windows(text_of(range(9), range(100, 109)), 3, 8, 0)
    for tokens, targets in (windows.training(0), *windows.held_out(2)):
        assert tokens.shape == (3, 8)
        assert torch.equal(targets.view(3, 8), tokens + 1)


def test_targets_are_the_next_bytes_and_parts_make_up_the_batch():
    windows = Windows(text_of([number % 251 for number in range(5000)], range(200)), 12, 16, 7)
    for whole, parts in (
        (windows.training(3), [windows.training(3, part, 4) for part in range(4)]),
        (windows.scoring(2)[1], [windows.scoring(2, part, 3)[1] for part in range(3)]),
        (list(windows.held_out(3))[2], [list(windows.held_out(3, part, 2))[2] for part in range(2)]),
    ):
        tokens, targets = whole
        assert tokens.dtype == targets.dtype == torch.int64
        assert tokens.shape == (12, 16)
        assert torch.equal(targets.view(12, 16), (tokens + 1) % 251)
        for i in range(2):
            assert torch.equal(torch.cat([part[i] for part in parts]), whole[i])


def test_batches_depend_on_seed_number_and_purpose_alone():
    text = text_of(torch.randint(256, (5000,)).tolist(), range(200))
    windows, twin, other = (Windows(text, 8, 16, seed) for seed in (7, 7, 8))
    windows.training(0)
    assert torch.equal(windows.training(5)[0], twin.training(5)[0])
    different = [windows.training(5)[0], windows.training(6)[0], other.training(5)[0], windows.scoring(6)[5][0]]
    for i, left in enumerate(different):
        assert not any(torch.equal(left, right) for right in different[i + 1 :])


def test_held_out_windows_reach_from_end_to_end():
    windows = Windows(text_of([0] * 50, range(200)), 4, 16, 0)
    batches = list(windows.held_out(3))
    assert batches[0][0][0, 0] == 0
    assert batches[-1][1][-1] == 199
    starts = torch.cat([tokens[:, 0] for tokens, _ in batches])
    assert starts.diff().unique().tolist() in ([16, 17], [16], [17])
