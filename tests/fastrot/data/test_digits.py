from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fastrot.data.beton.verify import verify
from fastrot.data.digits import digits, split, write_digits
from fastrot.data.open import open_dataset
from fastrot.data.overlap import find_overlap


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits") / "new" / "folder")


def test_files_are_sound_and_stratified(files):
    for path, n in zip(files, (1497, 300), strict=True):
        assert verify(path, progress=False).exit_code == 0
        samples = open_dataset(path)
        assert len(samples) == n
        assert samples.class_names == tuple("0123456789")
        assert samples.sizes(np.arange(n)).tolist() == [[32, 32]] * n
        assert samples.read(0).kind == "raw"
        assert np.count_nonzero(np.diff(samples.labels)) > 0.8 * n, "must be shuffled"
    assert np.bincount(open_dataset(files[1]).labels).tolist() == [30] * 10


def test_held_out_digits_are_not_the_training_data(files):
    """Both files name scikit-learn's digits as their source, of which each holds a part."""
    train, val = (open_dataset(path) for path in files)
    assert find_overlap(train, train).all_of_them
    assert not find_overlap(train, val).all_of_them


def test_images_are_the_digits_of_scikit_learn():
    from sklearn.datasets import load_digits

    images, labels = digits()
    data = load_digits()
    assert np.array_equal(labels, data.target)
    assert np.array_equal(images[..., 0], images[..., 2])
    # Each value of the original fills 4 x 4 pixels, so their mean follows it, in every image.
    means = images[..., 0].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))
    for small, mean in zip(data.images, means, strict=True):
        assert np.corrcoef(small.ravel(), mean.ravel())[0, 1] > 0.95
    assert images.min() == 0 and images.max() == 255


def test_train_and_held_out_rows_share_nothing(files):
    images, labels = digits()
    train, val = split(labels)
    assert sorted([*train, *val]) == list(range(1797))
    stored = open_dataset(files[0])
    for sample in (0, 700, 1496):
        assert np.array_equal(stored.decode(sample), images[train[sample]])
        assert stored.labels[sample] == labels[train[sample]]


def test_writing_again_leaves_good_files_and_mends_bad_ones(files):
    train, val = files
    before = train.stat().st_mtime_ns
    good = val.read_bytes()
    val.write_bytes(good[:1000])
    assert write_digits(train.parent) == files
    assert train.stat().st_mtime_ns == before
    assert val.read_bytes() == good


def test_processes_at_once_all_get_whole_files(tmp_path, files):
    script = (
        "import sys; from fastrot.data.digits import write_digits; "
        "from fastrot.data.beton.verify import verify; "
        "sys.exit(max(verify(p, progress=False).exit_code for p in write_digits(sys.argv[1])))"
    )
    runs = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0]
    for path in files:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    left = [path for path in tmp_path.iterdir() if not path.name.endswith(".checked.json")]
    assert len(left) == 6, "nothing else may be left but what verify notes"
