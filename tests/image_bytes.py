"""What Pillow does not make: 16-bit PNG and ICC profiles, from their standards."""

import struct
import zlib

import numpy as np

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
D50 = (0.9642, 1.0, 0.8249)
SRGB_PRIMARIES = [(0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971)]
ADOBE_PRIMARIES = [(0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609)]


def png(chunks):
    """A PNG of (kind, data) pairs."""
    packed = (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def png_header(width, height, depth, colour_type):
    fields = (width, height, depth, colour_type, 0, 0, 0)
    return b"IHDR", struct.pack(">IIBBBBB", *fields)


def deep_png(values, *chunks):
    """A PNG of uint16 [h, w, c], unfiltered, with more chunks before its pixels."""
    height, width, channels = values.shape
    rows = (b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(
        [
            png_header(width, height, 16, COLOUR_TYPES[channels]),
            *chunks,
            (b"IDAT", zlib.compress(b"".join(rows))),
            (b"IEND", b""),
        ]
    )


def matrix_profile(primaries, gamma):
    """An RGB profile: XYZ of red and green, the rest is blue; one gamma."""
    red, green = primaries
    blue = tuple(w - r - g for w, r, g in zip(D50, red, green, strict=True))
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    tags = {b"rXYZ": _xyz(red), b"gXYZ": _xyz(green), b"bXYZ": _xyz(blue)}
    tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    return _profile(b"mntrRGB XYZ ", tags)


def grey_profile(gamma):
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    return _profile(b"mntrGRAYXYZ ", {b"kTRC": curve})


def ink_profile():
    """A CMYK profile of a printer whose inks are all grey."""
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(-1, 4)
    light = 255 * (1 - inks @ [0.2, 0.2, 0.2, 0.4])
    lab = np.stack([light, 0 * light + 128, 0 * light + 128], -1).astype(np.uint8)
    identity = np.arange(256, dtype=np.uint8).tobytes()
    matrix = struct.pack(">9I", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix
    table += identity * 4 + lab.tobytes() + identity * 3
    return _profile(b"prtrCMYKLab ", {b"A2B0": table})


def _xyz(values):
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))


def _profile(kind, tags):
    """ICC.1:2001-04 (version 2.4): header, tag table, tags."""
    name = b"test\0"
    tags |= {
        b"wtpt": _xyz(D50),
        b"cprt": b"text" + bytes(4) + name,
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78),
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI12s", start + len(body), b"", 0x02400000, kind)
    header += bytes(12) + b"acsp" + bytes(28)
    header += _xyz(D50)[8:]
    return header.ljust(128, b"\0") + table + body
