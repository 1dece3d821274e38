"""What files say of their compression."""

import numpy as np
import pytest
from PIL import Image

from cir_jax import image_headers
from cir_jax.errors import UserError
from cir_jax.image_headers import Header, JPEGHeader, read_header, table_quality

RAMP = np.linspace(0, 255, 24 * 40 * 3, dtype=np.uint8).reshape(24, 40, 3)
# Pillow's names and numbers of subsamplings.
SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def saved(path, image=RAMP, **options):
    Image.fromarray(image).save(path, **options)
    return path


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("quality", [1, 5, 10, 50, 75, 90, 95, 100])
def test_the_quality_of_a_jpeg_is_exact(tmp_path, quality, subsampling):
    path = saved(tmp_path / "a.jpg", quality=quality, subsampling=subsampling)
    expected = Header("JPEG", JPEGHeader(quality, True, subsampling))
    assert read_header(path) == expected
    assert str(expected) == f"JPEG {subsampling}, quality {quality}"


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("quality", [10, 80])
def test_the_quality_of_other_modes_is_exact(tmp_path, mode, quality):
    Image.fromarray(RAMP).convert(mode).save(tmp_path / "a.jpg", quality=quality)
    subsampling = {"L": "4:0:0", "CMYK": "4:4:4"}[mode]
    found = read_header(tmp_path / "a.jpg").jpeg
    assert found == JPEGHeader(quality, True, subsampling)


@pytest.mark.parametrize("limit", image_headers.LIMITS)
def test_every_quality_has_tables_of_its_own(limit):
    """libjpeg's formula as its documentation has it, a step at a time."""
    for quality in range(1, 101):
        percent = 5000 // quality if quality < 50 else 200 - quality * 2
        tables = [
            [min(max((step * percent + 50) // 100, 1), limit) for step in table]
            for table in (image_headers.LUMINANCE, image_headers.CHROMINANCE)
        ]
        assert table_quality(tables) == (quality, True)
        assert table_quality(tables[:1]) == (quality, True)


def scaled(luma, chroma):
    """Tables in per cent of the standard's."""
    return [
        [max(1, step * luma // 100) for step in image_headers.LUMINANCE],
        [max(1, step * chroma // 100) for step in image_headers.CHROMINANCE],
    ]


@pytest.mark.parametrize(
    ("tables", "nearest"),
    [
        ([[16] * 64, [16] * 64], range(85, 95)),
        ([[1] * 63 + [2], [1] * 64], range(100, 101)),
        ([[255] * 64, [254] * 64], range(1, 2)),
        (scaled(50, 54), range(73, 76)),
        (scaled(20, 20)[::-1], range(80, 95)),
    ],
)
def test_other_tables_are_marked(tmp_path, tables, nearest):
    found = read_header(saved(tmp_path / "a.jpg", qtables=tables)).jpeg
    assert found.quality in nearest and not found.standard
    assert str(found) == f"4:2:0, quality ~{found.quality}"


def test_damaged_and_deep_tables_have_a_nearest_quality():
    assert table_quality([[0] * 64]) == (100, True)
    assert table_quality([[65535] * 64, [65535] * 64]) == (1, False)


def patched(data, marker, offset, values):
    start = data.index(marker) + offset
    return data[:start] + values + data[start + len(values) :]


@pytest.mark.parametrize(
    ("luma", "blue", "red", "words"),
    [
        (0x12, 0x11, 0x11, "4:4:0"),
        (0x41, 0x11, 0x11, "4:1:1"),
        (0x22, 0x21, 0x21, "4:4:0"),
        (0x22, 0x11, 0x21, "2x2 1x1 2x1"),
        (0x22, 0x00, 0x00, "2x2 0x0 0x0"),
    ],
)
def test_other_subsamplings_are_told(tmp_path, luma, blue, red, words):
    data = saved(tmp_path / "a.jpg", quality=30).read_bytes()
    # After the frame's marker: length, precision, size, count; 3 bytes a component.
    for component, sampling in enumerate((luma, blue, red)):
        at = 2 + 8 + 3 * component + 1
        data = patched(data, b"\xff\xc0", at, bytes([sampling]))
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_header(tmp_path / "a.jpg").jpeg == JPEGHeader(30, True, words)


def test_a_jpeg_without_its_tables(tmp_path):
    data = saved(tmp_path / "a.jpg").read_bytes()
    other = patched(data, b"\xff\xdb", 4, b"\x03")  # the table has another number
    (tmp_path / "a.jpg").write_bytes(other)
    header = read_header(tmp_path / "a.jpg")
    assert header == Header("JPEG", JPEGHeader(None, False, "4:2:0"))
    assert str(header) == "JPEG 4:2:0"
    assert header.to_json()["jpeg"]["quality"] is None


@pytest.mark.parametrize("name", ["PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF"])
def test_the_content_tells_the_container(tmp_path, name):
    path = saved(tmp_path / "a.jpg", format=name)
    assert read_header(path) == Header(name, None)
    assert read_header(path).to_json() == {"container": name}


def test_two_jpegs_in_a_file_are_a_jpeg(tmp_path):
    image = Image.fromarray(RAMP)
    image.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[image])
    assert read_header(tmp_path / "a.jpg").container == "JPEG"


def test_the_header_alone_is_read(tmp_path):
    path = saved(tmp_path / "a.jpg", quality=20)
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    assert read_header(path).jpeg.quality == 20
    path.write_bytes(data[:100])
    with pytest.raises(UserError, match=r"a\.jpg cannot be decoded \(Truncated"):
        read_header(path)
    path.write_bytes(data)
    with pytest.raises(UserError, match="40x24 pixels, more than the 959"):
        read_header(path, max_pixels=959)
