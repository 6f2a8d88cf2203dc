"""Where a frame's file lies below the root, and what leads out of it."""

import pytest

from dtld_tools.errors import LabelError
from dtld_tools.labels.locate import candidates, locate

NAME = "Berlin/Berlin1/2015-04-17_10-50-05/DE_BBBR667_2015-04-17_10-50-13-633939_k0.tiff"


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_locate_below_the_root_or_one_city_deeper(tmp_path):
    assert locate(NAME, tmp_path) is None
    deeper = touch(tmp_path / "Berlin" / NAME)
    assert locate(NAME, tmp_path) == deeper
    direct = touch(tmp_path / NAME)
    assert locate(NAME, tmp_path) == direct
    assert candidates(NAME, tmp_path) == (direct, deeper)


def test_a_link_out_of_the_root_needs_leave(tmp_path):
    outside, root = touch(tmp_path / "outside" / "a.tiff"), tmp_path / "root"
    link = root / "City" / "City1" / "s" / "a.tiff"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(LabelError, match=r"symbolic link leads to .*--follow-symlinks"):
        locate("City/City1/s/a.tiff", root)
    assert locate("City/City1/s/a.tiff", root, follow_symlinks=True) == link


def test_a_linked_folder_out_of_the_root_needs_leave(tmp_path):
    touch(tmp_path / "outside" / "City1" / "s" / "a.tiff")
    root = tmp_path / "root"
    root.mkdir()
    (root / "City").symlink_to(tmp_path / "outside")
    with pytest.raises(LabelError, match="--follow-symlinks"):
        locate("City/City1/s/a.tiff", root)


def test_links_within_the_root_and_a_linked_root_are_fine(tmp_path):
    real = touch(tmp_path / "root" / "City" / "City1" / "s" / "a.tiff")
    (real.parent / "b.tiff").symlink_to(real)
    (tmp_path / "linked").symlink_to(tmp_path / "root")
    assert locate("City/City1/s/b.tiff", tmp_path / "linked") is not None


def test_a_broken_link_is_a_missing_frame(tmp_path):
    link = tmp_path / "City" / "City1" / "s" / "a.tiff"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "nowhere")
    assert locate("City/City1/s/a.tiff", tmp_path) is None
