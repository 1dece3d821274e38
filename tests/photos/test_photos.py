import pathlib
import re

import pytest
from PIL import Image

from cir_jax import errors, photos

FILES = [
    path
    for split in ("train", "validation")
    for path in sorted(photos.folder(split).iterdir())
]


def chunks(path: pathlib.Path) -> list[bytes]:
    """The names of a WebP file's RIFF chunks, in order."""
    data = path.read_bytes()
    assert (data[:4], data[8:12]) == (b"RIFF", b"WEBP")
    names, at = [], 12
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        names.append(data[at : at + 4])
        at += 8 + size + size % 2
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_is_a_bare_lossless_rgb_webp(path):
    assert chunks(path) == [b"VP8L"]  # lossless, and no profile or metadata
    with Image.open(path) as image:
        image.load()
        assert (image.format, image.mode) == ("WEBP", "RGB")
        assert min(image.size) >= 256
        if path.parent.name == "validation":
            assert image.size == (384, 256)


def test_they_are_small_together():
    assert sum(path.stat().st_size for path in FILES) <= 5_000_000


def test_the_credits_name_exactly_the_files_there_are():
    credits = (photos.folder("train").parent / "CREDITS.md").read_text("utf-8")
    named = re.findall(r"^\| `(\S+)` \|", credits, re.MULTILINE)
    assert sorted(named) == sorted(f"{p.parent.name}/{p.name}" for p in FILES)


def test_the_splits_share_no_photograph():
    credits = (photos.folder("train").parent / "CREDITS.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)/\S+` \| ([^|]+) \|", credits, re.MULTILINE)
    titles = {
        split: {title for of, title in rows if of == split}
        for split in ("train", "validation")
    }
    assert titles["train"] and titles["validation"]
    assert not titles["train"] & titles["validation"]
    names = [path.name for path in FILES]
    assert len(set(names)) == len(names)


def test_an_unknown_split_is_refused():
    with pytest.raises(errors.UserError, match="'validation'"):
        photos.folder("valid")
