"""A frame's path of a label file in, its file below the dataset's root out."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from dtld_tools.errors import LabelError

OTHER_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def locate(image_path: str, root: Path, *, follow_symlinks: bool = False) -> Path | None:
    """Find a frame's file below ``root``, also where a city's archive was unpacked one level deeper.

    Where there is no such file, the one that differs in its ending alone counts: frames are often converted to PNG.
    None if it is missing, or if several differ so. Raises LabelError if the file lies outside ``root`` through a
    symbolic link.
    """
    places = candidates(image_path, root)
    candidate = next(filter(_is_file, places), None)
    if candidate is None:
        others = [place.with_suffix(ending) for place in places for ending in OTHER_ENDINGS]
        there = [other for other in others if other not in places and _is_file(other)]
        if len(there) != 1:
            return None
        (candidate,) = there
    if not follow_symlinks and not _real(candidate).is_relative_to(_real_folder(root)):
        raise LabelError(
            f"{candidate}: a symbolic link leads to {candidate.resolve()}, expected a file below {root}; "
            "pass --follow-symlinks if that is meant"
        )
    return candidate


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name of more than 255 bytes, which no file has
        return False


def _real(path: Path) -> Path:
    """Where a file lies when all links are followed, or the folder that it lies in if it is no link itself."""
    return path.resolve() if path.is_symlink() else _real_folder(path.parent)


@lru_cache(maxsize=256)
def _real_folder(folder: Path) -> Path:
    return folder.resolve()  # looks at each folder above: once for all files of a sequence


def candidates(image_path: str, root: Path) -> tuple[Path, Path]:
    """The places where a frame may lie: ROOT/City/Route/... and ROOT/City/City/Route/..."""
    city = image_path.split("/", 1)[0]
    return root / image_path, root / city / image_path
