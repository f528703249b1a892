"""Which field is the image and which the label, in files as people write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrot.data.beton import BetonFile, BetonWriter, Field, Kind, manifest
from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.fields import UNNAMED, NamedFields, choose_image, choose_label
from fastrot.data.beton.format import DESCRIPTOR, HEADER
from fastrot.data.beton.inspect import inspect
from fastrot.data.dataset import count_line
from fastrot.data.open import open_dataset
from fastrot.errors import BadDataError, UsageError

PATH = Path("x.beton")
IMAGE, LABEL, INDEX = Field("image", Kind.IMAGE), Field("label", Kind.INT), Field("index", Kind.INT)
INT8, INT32 = np.dtype(np.int8), np.dtype(np.int32)


def several(name: str, dtype: Any = np.int8, shape: tuple[int, ...] = (3,)) -> Field:
    return Field(name, Kind.ARRAY, np.dtype(dtype), shape)


@pytest.mark.parametrize(
    ("fields", "image"),
    [
        ([IMAGE, LABEL], "image"),
        ([Field("mask", Kind.IMAGE), IMAGE], "image"),
        ([Field("mask", Kind.IMAGE), Field("Image", Kind.IMAGE)], "Image"),
        ([LABEL, Field("photo", Kind.IMAGE)], "photo"),
    ],
)
def test_the_image_is_found_by_its_name(fields, image):
    assert choose_image(fields, UNNAMED, PATH).name == image


def test_of_several_images_without_the_usual_name_one_is_asked_for():
    fields = [Field("mask", Kind.IMAGE), Field("photo", Kind.IMAGE), LABEL]
    with pytest.raises(UsageError) as error:
        choose_image(fields, UNNAMED, PATH)
    assert str(error.value) == (
        "x.beton: 2 image fields, 'mask', 'photo', and none of them is named 'image'; name one: "
        "x.beton:image=mask"
    )
    assert choose_image(fields, NamedFields(image="photo"), PATH).name == "photo"
    with pytest.raises(UsageError, match="'label' must be an image field, but it holds integers"):
        choose_image(fields, NamedFields(image="label"), PATH)
    with pytest.raises(BadDataError, match="has no image field, only 'label'"):
        choose_image([LABEL], UNNAMED, PATH)


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ([INDEX, IMAGE, LABEL], "label"),
        ([LABEL, INDEX, IMAGE], "label"),
        ([several("label", np.int32, (14,)), INDEX], "label"),
        ([INDEX, Field("labels", Kind.INT)], "labels"),
        ([INDEX, Field("Target", Kind.INT)], "Target"),
        ([Field("targets", Kind.INT), LABEL], "label"),
        ([INDEX, Field("breed", Kind.INT)], "breed"),
        ([several("attributes"), IMAGE], "attributes"),
        ([several("attributes"), several("box", np.int32, (4,))], "attributes"),
        ([IMAGE], None),
        ([several("embedding", np.float32, (8,))], None),
    ],
)
def test_the_label_is_found_by_its_name_or_as_the_only_one(fields, label):
    found = choose_label(fields, UNNAMED, PATH)
    assert (found.field and found.field.name, found.why_not) == (label, "")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([Field("breed", Kind.INT), Field("owner", Kind.INT)],
         "fields 'breed', 'owner' hold integers, and none is named 'label'; name one: "
         "x.beton:label=breed"),
        ([several("seen"), Field("owner", Kind.INT)],
         "fields 'seen', 'owner' hold integers, and none is named 'label'; name one: "
         "x.beton:label=seen"),
        *(
            ([IMAGE, Field(name, Kind.INT)],
             f"field '{name}' holds integers, and none is named 'label'; name one: "
             f"x.beton:label={name}")
            for name in ("index", "idx", "id", "image_id", "Sample_Index", "uid")
        ),
        ([IMAGE, several("box", np.int32, (4,))],
         "field 'box' holds integers, and none is named 'label'; name one: x.beton:label=box"),
        ([IMAGE, Field("label", Kind.FLOAT)],
         "field 'label' holds floats; labels are an Int field, or an array of integers with one "
         "dimension"),
        ([IMAGE, several("label", np.float32), INDEX],
         "field 'label' holds arrays of float32, [3]; labels are an Int field, or an array of "
         "integers with one dimension"),
        ([IMAGE, Field("label", Kind.BYTES)],
         "field 'label' holds bytes; labels are an Int field, or an array of integers with one "
         "dimension"),
    ],
)  # fmt: skip
def test_where_no_name_says_which_there_are_no_labels_and_the_reason_is_known(fields, why):
    assert choose_label(fields, UNNAMED, PATH) == (None, why)


def test_a_field_that_is_named_is_taken_or_refused():
    fields = [INDEX, LABEL, several("seen", np.int16), Field("weight", Kind.FLOAT)]
    for name in ("index", "label", "seen"):
        found = choose_label(fields, NamedFields(label=name), PATH)
        assert found.field is not None and found.field.name == name
    with pytest.raises(UsageError) as error:
        choose_label(fields, NamedFields(label="weight"), PATH)
    assert str(error.value) == (
        "x.beton: 'weight' must be an Int field, or an array of integers with one dimension, but "
        "it holds floats; the file has 'index', 'label', 'seen', 'weight'"
    )
    with pytest.raises(UsageError, match="but there is no such field"):
        choose_label(fields, NamedFields(label="class"), PATH)


# --- files ------------------------------------------------------------------------------------


def write(path: Path, fields: list[Field], rows: list[tuple[Any, ...]]) -> Path:
    with BetonWriter(path, fields, capacity=len(rows)) as writer:
        for row in rows:
            writer.add(*row)
        writer.commit()
    return path


def grey(value: int) -> np.ndarray:
    return np.full((6, 5, 3), value, np.uint8)


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Samples of a mask, a photo, a running number and two kinds of labels."""
    fields = [Field("mask", Kind.IMAGE), Field("photo", Kind.IMAGE), INDEX,
              Field("breed", Kind.INT), Field("owner", Kind.INT)]  # fmt: skip
    rows = [(grey(0), grey(50 + i), 100 + i, i % 2, 7 - i) for i in range(4)]
    return write(tmp_path / "x.beton", fields, rows)


def test_fields_are_named_behind_the_file(masked):
    samples = open_dataset(f"{masked}:image=photo,label=breed")
    assert samples.labels.tolist() == [0, 1, 0, 1]
    assert [int(samples.decode(i).mean()) for i in range(4)] == [50, 51, 52, 53]
    assert samples.path == masked
    other = open_dataset(f"{masked}:label=owner,image=photo")
    assert other.labels.tolist() == [7, 6, 5, 4]
    # A run resumes with the same images; features are also distinguished by their labels.
    assert samples.digest == other.digest != open_dataset(f"{masked}:image=mask").digest
    assert (samples.label_choice, other.label_choice) == ("-label=breed", "-label=owner")
    unlabelled = open_dataset(f"{masked}:image=mask")
    assert unlabelled.labels.tolist() == [-1] * 4
    assert unlabelled.unlabelled.startswith("fields 'index', 'breed', 'owner' hold integers")
    with pytest.raises(UsageError, match=r"2 image fields, 'mask', 'photo', .*:image=mask$"):
        open_dataset(masked)
    with pytest.raises(UsageError, match=r"to choose the fields of a .beton file, write a colon"):
        open_dataset(f"{masked}:photo")
    with pytest.raises(UsageError, match="no such file or folder"):
        open_dataset(f"{masked}x:image=photo")


def test_a_file_whose_name_has_a_colon_is_that_file(masked):
    strange = masked.with_name("y.beton:image=photo")
    write(strange, [IMAGE, LABEL], [(grey(9), 3)])
    assert open_dataset(strange).labels.tolist() == [3]


def test_inspect_says_which_fields_it_takes(masked, tmp_path):
    contents = inspect(masked)
    assert (contents.image_field, contents.label_field, contents.images) == (None, None, None)
    assert [line[:31] for line in contents.unclear] == [
        "2 image fields, 'mask', 'photo'",
        "fields 'index', 'breed', 'owner",
    ]
    clear = inspect(write(tmp_path / "y.beton", [INDEX, LABEL, IMAGE], [(5, 1, grey(0))]))
    assert (clear.image_field, clear.label_field, clear.unclear) == ("image", "label", ())
    assert clear.labels == {1: 1}


@pytest.mark.parametrize(
    "dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.bool_]
)
def test_several_classes_an_image_in_every_integer_type(dtype, tmp_path):
    signed = np.issubdtype(dtype, np.signedinteger)
    rows = [[1, 0, -1] if signed else [1, 0, 0], [0, 1, 1]]
    fields = [several("label", dtype), INDEX, IMAGE]
    values = [(np.array(row).astype(dtype), i, grey(0)) for i, row in enumerate(rows)]
    samples = BetonDataset(write(tmp_path / "x.beton", fields, values))
    assert samples.labels.dtype == np.int8
    wanted = [[1, -1, -1], [-1, 1, 1]] if dtype == np.bool_ else rows  # False is plainly absent
    assert samples.labels.tolist() == wanted


@pytest.mark.parametrize(("dtype", "value"), [(np.int32, 256 + 1), (np.uint8, 255), (np.int8, 2)])
def test_arrays_of_other_numbers_are_no_labels(dtype, value, tmp_path):
    """257 would be 1 in eight bits, and 255 would be -1."""
    fields = [several("label", dtype, (2,)), IMAGE]
    path = write(tmp_path / "x.beton", fields, [(np.array([0, value], dtype), grey(0))])
    with pytest.raises(BadDataError, match=rf"sample 0: labels \[0, {value}\] are not all 1, 0"):
        BetonDataset(path)


def test_a_loader_reads_the_field_that_was_named(masked):
    with BetonFile.open(masked, named=NamedFields(image="photo")) as file:
        assert file.image_field.name == "photo" and int(file.widths[0]) == 5


def test_files_whose_fields_are_the_first_of_their_kind_keep_their_digest(tmp_path):
    """Runs and caches of earlier versions name it."""
    path = write(tmp_path / "x.beton", [IMAGE, LABEL, INDEX], [(grey(0), 1, 5)])
    samples = BetonDataset(path)
    with BetonFile.open(path) as file:
        described = manifest.load(file)
    assert described is not None and samples.digest == described.digest
    assert samples.label_choice == ""
    path = write(tmp_path / "y.beton", [INDEX, IMAGE, LABEL], [(5, grey(0), 1)])
    assert BetonDataset(path).label_choice == "-label=label"
    path = write(tmp_path / "z.beton", [INDEX, IMAGE], [(5, grey(0))])
    assert BetonDataset(path).label_choice == "-label="


def test_names_that_ffcv_cut_to_the_same_letters_are_told(tmp_path):
    path = tmp_path / "cut.beton"
    with BetonWriter(path, [Field("image_of_the_cam", Kind.IMAGE), LABEL], capacity=1) as writer:
        writer.add(np.zeros((8, 8, 3), np.uint8), 0)
        writer.commit()
    data = bytearray(path.read_bytes())
    second = HEADER.itemsize + DESCRIPTOR.itemsize
    data[second + 1 : second + 17] = b"image_of_the_cam"
    path.write_bytes(data)
    with pytest.raises(BadDataError, match="FFCV cuts names to 16 characters, and two longer ones"):
        open_dataset(path)
    data[25:41] = data[second + 1 : second + 17] = b"image".ljust(16, b"\0")
    path.write_bytes(data)
    with pytest.raises(BadDataError, match=r"two fields are named 'image'; write the file again"):
        open_dataset(path)


def test_what_is_read_of_several_fields_is_said(masked, tmp_path):
    path = Path(f"{masked}:image=mask,label=breed")
    assert "; fields: image 'mask', label 'breed'" in count_line(open_dataset(path))
    with BetonWriter(tmp_path / "x.beton", [IMAGE, LABEL], capacity=1) as writer:
        writer.add(np.zeros((8, 8, 3), np.uint8), 0)
        writer.commit()
    assert "fields" not in count_line(open_dataset(tmp_path / "x.beton"))
