"""Whatever is generated: no wrong label, no image missing without being named, no traceback."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrot.data.beton import BetonWriter, Field, Kind
from fastrot.data.classes import match_classes
from fastrot.data.dataset import Dataset
from fastrot.data.open import open_dataset
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest
from fastrot.data.sources.find import list_source
from fastrot.errors import BadDataError, MismatchError, UsageError
from tests.fastrot.data import generated_sets as grammar

IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def classes_and_numbers(samples: Dataset) -> Counter[tuple[str | None, int]]:
    """How often each image comes with each class."""
    names = samples.class_names
    return Counter(
        (
            None if names is None else names[samples.labels[i]],
            grammar.number_of(samples.decode(i)),
        )
        for i in range(len(samples))
    )


def check_folder(made: grammar.Folder, convert: bool) -> None:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        root, outside = Path(folder) / "data", Path(folder) / "outside"
        outside.mkdir()
        (outside / "o.png").write_bytes(grammar.picture(77, "PNG"))
        made.write(root, outside)
        options = {"split": made.split, "follow_symlinks": made.follow}
        if made.refused:
            with pytest.raises((BadDataError, UsageError)) as refusal:
                open_dataset(root, **options)
            assert refusal.value.exit_code in (64, 65) and "\n" not in str(refusal.value)
            return
        expected = grammar.oracle_of_folder(root / made.inside, made.flat)
        source = list_source(root, **options)
        samples = open_dataset(root, **options)
        assert set(source.paths) == set(expected.images)
        assert grammar.count_all(source.left_out.counts) == expected.left_out
        for i, path in enumerate(source.paths):
            group, pixels = expected.images[path]
            label = int(samples.labels[i])
            assert (None if group is None else source.class_names[label]) == group
            assert group is not None or label == -1
            found = samples.decode(i)
            assert found.shape == pixels.shape
            assert np.abs(found.astype(int) - pixels).max() <= 2
            assert samples.sizes(np.array([i]))[0].tolist() == list(pixels.shape[1::-1])
        if convert:
            out = Path(folder) / "out.beton"
            prepare(PrepareRequest(root, out, **options, workers=0, progress=False))
            beton = open_dataset(out)
            assert classes_and_numbers(beton) == classes_and_numbers(samples)
            assert beton.left_out == str(source.left_out)


def check_shards(files: list[list[tuple[str, grammar.Contents]]]) -> None:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        for i, members in enumerate(files):
            grammar.write_shard(Path(folder) / f"part [{i}] {i}.tar", members)
        expected, left_out = grammar.oracle_of_shards(files)
        if expected is None:
            with pytest.raises(BadDataError, match="no image member"):
                open_dataset(folder)
            return
        samples = open_dataset(folder)
        assert samples.labels.tolist() == [label for label, _ in expected]
        for i, (_, pixels) in enumerate(expected):
            assert np.abs(samples.decode(i).astype(int) - pixels).max() <= 2
        assert sum(map(int, _counts(samples.left_out))) == left_out


def _counts(line: str) -> list[str]:
    """The numbers of a line like "2 .txt ('a', ...), 1 hidden ('b')"."""
    return [part.split()[0] for part in line.split("), ") if part]


def check_beton(fields: grammar.Fields) -> None:
    image, label = grammar.image_of(fields), grammar.label_of(fields)
    kinds = {
        "image": lambda name: Field(name, Kind.IMAGE),
        "int": lambda name: Field(name, Kind.INT),
        "float": lambda name: Field(name, Kind.FLOAT),
        "several": lambda name: Field(name, Kind.ARRAY, np.dtype(np.int8), (3,)),
    }

    def value(place: int, kind: str, i: int):
        if kind == "image":
            return np.full((9, 14, 3), 40 + 20 * place + i, np.uint8)
        if kind == "several":
            return np.array([1, -1, (place + i) % 3 - 1], np.int8)
        return 10 * place + i if kind == "int" else 10.5 * place + i

    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        path = Path(folder) / "x.beton"
        described = [kinds[kind](name) for name, kind in fields.order]
        with BetonWriter(path, described, capacity=fields.count, page_size=2**21) as writer:
            for i in range(fields.count):
                writer.add(*(value(place, kind, i) for place, (_, kind) in enumerate(fields.order)))
            writer.commit()
        if image is None:
            with pytest.raises(UsageError, match="name one"):
                open_dataset(path)
            name = next(name for name, kind in fields.order if kind == "image")
            image, path = name, Path(f"{path}:image={name}")
        samples = open_dataset(path)
        places = {name: place for place, (name, _) in enumerate(fields.order)}
        for i in range(fields.count):
            assert int(samples.decode(i)[0, 0, 0]) == 40 + 20 * places[image] + i
            if label is None:
                assert samples.labels.tolist() == [-1] * fields.count
            else:
                kind = dict(fields.order)[label]
                assert np.array_equal(samples.labels[i], value(places[label], kind, i))


def check_matching(train: grammar.Folder, test: grammar.Folder) -> None:
    """Labels of one set mean, in the other, the class of the same name."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        opened = []
        for name, made in (("train", train), ("test", test)):
            root = Path(folder) / f"set-{name}"
            made.write(root, root)
            opened.append(open_dataset(root, split=made.split))
        known, asked = opened
        if not set(asked.class_names) <= set(known.class_names):
            with pytest.raises(MismatchError):
                match_classes(known, asked)
            return
        translated = match_classes(known, asked).translate(asked.labels)
        assert [known.class_names[i] for i in translated] == [
            asked.class_names[i] for i in asked.labels
        ]


def is_plain(made: grammar.Folder) -> bool:
    return not (made.refused or made.flat or made.links)


def often(examples: int, *, random: bool = False):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=not random,
        suppress_health_check=list(HealthCheck),
    )


any_folder = given(grammar.folders(), st.sampled_from([False, False, False, True]))
any_shards = given(grammar.shards())
any_beton = given(grammar.betons())
any_two = given(grammar.folders().filter(is_plain), grammar.folders().filter(is_plain))

test_folders = often(200)(any_folder(check_folder))
test_shards = often(120)(any_shards(check_shards))
test_betons = often(120)(any_beton(check_beton))
test_two_sets = often(60)(any_two(check_matching))

TEN_THOUSAND = {
    "folders": often(5000, random=True)(any_folder(check_folder)),
    "shards": often(2000, random=True)(any_shards(check_shards)),
    "betons": often(2000, random=True)(any_beton(check_beton)),
    "two sets": often(1000, random=True)(any_two(check_matching)),
}


@pytest.mark.chaos
@pytest.mark.parametrize("kind", TEN_THOUSAND)
def test_many(kind: str) -> None:
    TEN_THOUSAND[kind]()
