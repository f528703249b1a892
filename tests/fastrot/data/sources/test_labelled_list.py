from __future__ import annotations

import pytest

from fastrot.data.sources.image_lists import read_labelled_list
from fastrot.errors import BadDataError


def test_names_may_have_spaces_and_lines_any_ending(tmp_path):
    path = tmp_path / "l.txt"
    path.write_bytes(b"a/b c.jpg 3\r\n\n  \n caf\xe9.jpg\t0 \nlast 12")
    names, labels = read_labelled_list(path, num_classes=13)
    assert names == ["a/b c.jpg", "caf\udce9.jpg", "last"] and labels.tolist() == [3, 0, 12]


@pytest.mark.parametrize(
    "line", ["x", "x 13", "x -1", "x +1", "x 1.0", "7", "x " + "1" * 10, "x ٣"]
)
def test_other_lines_are_named(tmp_path, line):
    path = tmp_path / "l.txt"
    path.write_text(f"a.jpg 1\n\n{line}\n")
    with pytest.raises(BadDataError, match=r"l\.txt: line 3, .* label below 13"):
        read_labelled_list(path, num_classes=13)
