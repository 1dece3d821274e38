"""The usual test sets: where their clean images lie, how many, of which sizes.

A set that is short of an image, holds the degraded ones too or was cut makes a table
that looks like the published ones and is not comparable with them.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from cir_jax.protocols import ALL_IN_ONE, COLOUR, CSR, GRAY

LOSSLESS = (".bmp", ".png", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A test set as published tables use it; `find_benchmark` finds one by its name.

    Attributes:
        name: as tables write it.
        spellings: further ones, letters and digits alone, see `find_benchmark`.
        count: of its images.
        places: folders of clean images in distributions as unpacked, the usual one
            first; the user may have pointed at any folder on the way there.
        note: what else to know, in a sentence.
        sizes: the only sizes of its images, the shorter side first; of any when empty.
        sides: smallest and largest side, pixels, also of copies whose edges were cut to
            a multiple of 12; None where that is not known.
        suffixes: of the original files and their lossless copies.
        usual: the protocol of its tables where nothing is downscaled.
        caution: what the table should warn of, whatever the images.
    """

    name: str
    spellings: tuple[str, ...]
    count: int
    places: tuple[str, ...]
    note: str
    sizes: tuple[tuple[int, int], ...] = ()
    sides: tuple[int, int] | None = None
    suffixes: tuple[str, ...] = LOSSLESS
    usual: str = COLOUR
    caution: str = ""

    def protocol(self, scale: int = 1) -> str:
        """The protocol that its tables usually follow, see `cir_jax.evaluate`.

        Args:
            scale: by how much images are downscaled before they are compressed.
        """
        return self.usual if scale == 1 else CSR

    def folder(self, root: Path) -> Path:
        """The folder of the clean images at or below what the user pointed at.

        Args:
            root: the distribution, or any folder on the way to its images.

        Returns:
            The first of `places` that is there; `root` if none is.
        """
        for place in map(PurePosixPath, self.places):
            for start in range(len(place.parts)):
                folder = root.joinpath(*place.parts[start:])
                if folder.is_dir():
                    return folder
        return root

    def complaints(self, sizes: Mapping[str, tuple[int, int]]) -> list[str]:
        """What tells that images are not those of the set.

        Args:
            sizes: height and width, pixels, by the file's name.

        Returns:
            A sentence for each of: another number of images, other sizes, formats that
            may have lost something.
        """
        found = []
        if len(sizes) != self.count:
            found.append(f"{self.name} has {len(sizes)} images here, not {self.count}")
        wrong = [name for name, size in sizes.items() if not self._is_size(size)]
        if wrong:
            height, width = sizes[wrong[0]]
            found.append(
                f"{self.name}'s images are {self._expected_sizes()}; of another size: "
                f"{len(wrong)} of {len(sizes)}, such as {wrong[0]} ({width}x{height})"
            )
        known = ("", *self.suffixes)
        lossy = [
            name for name in sizes if PurePosixPath(name).suffix.lower() not in known
        ]
        if lossy:
            found.append(
                f"{self.name}'s files end in {', '.join(self.suffixes)}; in something "
                f"else, so compressed before perhaps: {len(lossy)} of {len(sizes)}, "
                f"such as {lossy[0]}"
            )
        return found

    def _is_size(self, size: tuple[int, int]) -> bool:
        """Whether an image of the set may be of that size, either way up."""
        short, long = sorted(size)
        if self.sizes and (short, long) not in self.sizes:
            return False
        low, high = self.sides or (short, long)
        return low <= short and long <= high

    def _expected_sizes(self) -> str:
        """In words, where there is something to expect."""
        if self.sizes:
            either = " or ".join(f"{long}x{short}" for short, long in self.sizes)
            return f"{either} pixels, either way up"
        low, high = self.sides
        return f"{low} to {high} pixels a side"


def find_benchmark(name: str) -> Benchmark | None:
    """The benchmark of a name, if it is one's.

    Args:
        name: in capitals or not, with blanks, hyphens or whatever between the letters
            and digits: "LIVE1", "Live-1", "bsds500 test".
    """
    return _BY_SPELLING.get(_plain(name))


def _plain(name: str) -> str:
    """A name's letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _super_resolution(name: str) -> tuple[str, ...]:
    """Where bundles for super-resolution have their clean images."""
    return (f"{name}/HR", f"{name}/GTmod12", f"{name}/original", name)


BENCHMARKS = (
    Benchmark(
        "LIVE1",
        ("live1color", "live1colour"),
        29,
        ("databaserelease2/refimgs", "LIVE1_color", "LIVE1"),
        "shares most scenes with Kodak24, and monarch with Set14",
        sides=(432, 768),
    ),
    Benchmark(
        "BSDS500",
        ("bsd500", "bsds500test", "bsd500test", "bsds500color", "bsds500colour"),
        200,
        ("BSR/BSDS500/data/images/test", "BSDS500_color", "BSDS500"),
        "its 200 test images alone; BSD100 and CBSD68 lie inside its val images",
        sizes=((321, 481),),
        suffixes=(".jpg", *LOSSLESS),
    ),
    Benchmark(
        "Classic5",
        (),
        5,
        ("Classic5", "classic5"),
        "grey; shows scenes of Set14 (baboon, barbara, lenna, peppers)",
        usual=GRAY,
    ),
    Benchmark(
        "Set5",
        (),
        5,
        _super_resolution("Set5"),
        "where image_SRF_4 holds HR and LR files together, take the HR ones out",
        sides=(228, 512),
    ),
    Benchmark(
        "Set14",
        (),
        14,
        _super_resolution("Set14"),
        "shares monarch with LIVE1",
        sides=(240, 768),
    ),
    Benchmark(
        "Urban100",
        (),
        100,
        _super_resolution("Urban100"),
        "where image_SRF_4 holds HR and LR files together, take the HR ones out",
    ),
    Benchmark(
        "Manga109",
        (),
        109,
        _super_resolution("Manga109"),
        "one page of each of the 109 volumes, as super-resolution bundles have it",
    ),
    Benchmark(
        "ICB",
        ("icb8bit", "icbrgb8bit", "rgb8bit"),
        15,
        ("rgb8bit", "ICB"),
        "comes as PPM, which is not opened here: convert it to PNG",
        sides=(1512, 7216),
    ),
    Benchmark(
        "Kodak",
        ("kodak24",),
        24,
        ("Kodak24", "Kodak", "kodak"),
        "most of LIVE1's scenes are from it",
        sizes=((512, 768),),
    ),
    Benchmark(
        "DIV2K-valid",
        ("div2kval", "div2kvalidation", "div2kvalidhr"),
        100,
        ("DIV2K/DIV2K_valid_HR",),
        "0801 to 0900; networks are trained on the 800 images of DIV2K_train_HR",
    ),
    Benchmark(
        "CBSD68",
        ("bsd68color", "bsd68colour"),
        68,
        ("CBSD68/original_png", "CBSD68"),
        "colour; measured with noise of 15, 25 and 50, as Urban100 and Kodak24 are",
        sizes=((321, 481),),
        suffixes=(".jpg", *LOSSLESS),
        usual=ALL_IN_ONE,
        caution="CBSD68's images are among those of BSDS500 (val): weights that were "
        "trained on them have seen them",
    ),
    Benchmark(
        "SOTS",
        ("sotsoutdoor",),
        500,
        ("SOTS/outdoor/gt", "SOTS/outdoor/clear"),
        "its 500 outdoor images, hazy ones given; some share a clean one",
        suffixes=(".jpg", *LOSSLESS),
        usual=ALL_IN_ONE,
    ),
    Benchmark(
        "Rain100L",
        (),
        100,
        ("Rain100L/target", "Rain100L/gt", "Rain100L/norain"),
        "rainy ones given",
        usual=ALL_IN_ONE,
    ),
    Benchmark(
        "GoPro",
        ("goprotest",),
        1111,
        ("GoPro/test/target", "test/GoPro/target"),
        "its test images, blurred ones given; the original tree has both side by side "
        "in a folder of each video, bundles have one folder of each",
        sizes=((720, 1280),),
        usual=ALL_IN_ONE,
    ),
    Benchmark(
        "LOL-v1",
        ("lol", "loleval15"),
        15,
        ("LOLdataset/eval15/high", "LOL/eval15/high"),
        "its eval15 images, dark ones given",
        sizes=((400, 600),),
        usual=ALL_IN_ONE,
    ),
)


_BY_SPELLING = {
    spelling: benchmark
    for benchmark in BENCHMARKS
    for spelling in (_plain(benchmark.name), *benchmark.spellings)
}
