import pytest

from cir_jax.benchmarks import BENCHMARKS, find_benchmark
from cir_jax.image_io import SUFFIXES

COUNTS = {
    "LIVE1": 29,
    "BSDS500": 200,
    "Classic5": 5,
    "Set5": 5,
    "Set14": 14,
    "Urban100": 100,
    "Manga109": 109,
    "ICB": 15,
    "Kodak": 24,
    "DIV2K-valid": 100,
    "CBSD68": 68,
    "SOTS": 500,
    "Rain100L": 100,
    "GoPro": 1111,
    "LOL-v1": 15,
}


def fitting(benchmark):
    """Sizes without anything to complain of."""
    short, long = benchmark.sizes[0] if benchmark.sizes else benchmark.sides or (99, 99)
    sides = [(short, long), (long, short)]
    return {f"{i}.PNG": sides[i % 2] for i in range(benchmark.count)}


def test_the_usual_sets_are_known():
    assert {benchmark.name: benchmark.count for benchmark in BENCHMARKS} == COUNTS
    for benchmark in BENCHMARKS:
        assert set(benchmark.suffixes) < set(SUFFIXES)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("live1", "LIVE1"),
        ("LIVE-1", "LIVE1"),
        ("LIVE1_color", "LIVE1"),
        ("BSDS500-test", "BSDS500"),
        ("bsd500", "BSDS500"),
        ("Classic 5", "Classic5"),
        ("SET14", "Set14"),
        ("urban_100", "Urban100"),
        ("kodak24", "Kodak"),
        ("DIV2K_valid_HR", "DIV2K-valid"),
        ("div2k-val", "DIV2K-valid"),
        ("SOTS-outdoor", "SOTS"),
        ("GoPro test", "GoPro"),
        ("LOL", "LOL-v1"),
    ],
)
def test_common_spellings_find_a_set(spelling, name):
    assert find_benchmark(spelling).name == name


@pytest.mark.parametrize("name", ["", "mine", "DIV2K", "set", "photos:validation"])
def test_other_names_find_none(name):
    assert find_benchmark(name) is None


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_a_whole_set_is_not_complained_of(benchmark):
    assert benchmark.complaints(fitting(benchmark)) == []


def test_what_is_wrong_is_said():
    kodak = fitting(find_benchmark("kodak"))
    del kodak["23.PNG"]
    kodak |= {"2.PNG": (256, 384), "7.PNG": (512, 767)}
    assert find_benchmark("kodak").complaints(kodak) == [
        "Kodak has 23 images here, not 24",
        "Kodak's images are 768x512 pixels, either way up; of another size: 2 of 23, "
        "such as 2.PNG (384x256)",
    ]
    quarter = fitting(find_benchmark("set5")) | {"1.PNG": (57, 86)}
    assert find_benchmark("set5").complaints(quarter) == [
        "Set5's images are 228 to 512 pixels a side; of another size: 1 of 5, such as "
        "1.PNG (86x57)"
    ]
    coded = {f"q10/{number}.jpg": (500, 600) for number in range(29)}
    assert find_benchmark("live1").complaints(coded) == [
        "LIVE1's files end in .bmp, .png, .tif, .tiff; in something else, so "
        "compressed before perhaps: 29 of 29, such as q10/0.jpg"
    ]


@pytest.mark.parametrize("scale", [1, 4])
def test_the_usual_protocol(scale):
    protocols = {benchmark.name: benchmark.protocol(scale) for benchmark in BENCHMARKS}
    if scale == 1:
        assert protocols.pop("Classic5") == "gray"
        restored = {protocols.pop(name) for name in list(COUNTS)[-5:]}
        assert restored == {"all-in-one"}
    assert set(protocols.values()) == {"colour" if scale == 1 else "csr"}


@pytest.mark.parametrize(
    ("name", "made", "root", "found"),
    [
        ("bsds500", "BSR/BSDS500/data/images/test", "", "BSR/BSDS500/data/images/test"),
        ("bsds500", "a/BSDS500/data/images/test", "a", "a/BSDS500/data/images/test"),
        ("bsds500", "data/images/test", "data/images", "data/images/test"),
        ("bsds500", "data/images/test", "data/images/test", "data/images/test"),
        ("live1", "databaserelease2/refimgs", "databaserelease2", "*/refimgs"),
        ("set5", "Set5/HR Set5/LR_bicubic/X4", "", "Set5/HR"),
        ("set5", "Set5/HR Set5/LR_bicubic/X4", "Set5", "Set5/HR"),
        ("urban100", "GTmod12 LRbicx4 original", "", "GTmod12"),
        ("manga109", "Manga109 Set5/HR", "", "Manga109"),
        ("div2k-valid", "DIV2K_train_HR DIV2K_valid_HR", "", "DIV2K_valid_HR"),
        ("sots", "SOTS/outdoor/gt SOTS/outdoor/hazy", "", "SOTS/outdoor/gt"),
        ("sots", "outdoor/clear outdoor/hazy", "outdoor", "outdoor/clear"),
        ("rain100l", "Rain100L/input Rain100L/target", "", "Rain100L/target"),
        ("lol-v1", "eval15/high eval15/low", "eval15", "eval15/high"),
        ("kodak", "pictures", "pictures", "pictures"),
        ("icb", "rgb16bit", "", ""),
    ],
)
def test_the_clean_images_are_found_from_above(tmp_path, name, made, root, found):
    for folder in made.split():
        (tmp_path / folder).mkdir(parents=True)
    (expected,) = tmp_path.glob(found) if found else [tmp_path]
    assert find_benchmark(name).folder(tmp_path / root) == expected
