import pytest

from cir_jax import results
from cir_jax.errors import UserError
from cir_jax.scores import Report, Score


def report(psnr, quality=10):
    def score(method, value):
        metrics = {"psnr": value, "ssim": 0.7}
        return Score("LIVE1", "a", "jpeg", quality, method, metrics, 0.5, 1.0)

    return Report(
        {"scale": 1},
        [score("none", 25.0), score("net", psnr)],
        {"LIVE1": "colour"},
        {"jpeg": "libjpeg 1 | 4:2:0"},
    )


CARDS = {"net": (["abcdef0123456789"], "promptcir XT", None)}


def rows(path):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in path.read_text().splitlines()
        if line.startswith("| LIVE1")
    ]


def test_rows_are_added_and_take_the_place_of_their_like(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\nSome words.\n")
    results.record(path, report(26.0), CARDS, "2026-01-01")
    results.record(path, report(27.0, quality=20), CARDS, "2026-01-02")
    results.record(path, report(26.5), CARDS, "2026-01-03")
    found = rows(path)
    shown = [(row[5], row[6], row[7], row[8], row[14], row[-1]) for row in found]
    assert shown == [
        ("10", "none", "", "25.00", "", "2026-01-03"),
        ("10", "net", "abcdef012345", "26.50", "+1.50", "2026-01-03"),
        ("20", "none", "", "25.00", "", "2026-01-02"),
        ("20", "net", "abcdef012345", "27.00", "+2.00", "2026-01-02"),
    ]
    assert all(len(row) == len(results.HEADINGS) for row in found)
    assert path.read_text().startswith(
        "# Results\nSome words.\n\n<!-- scores -->\n| set"
    )


def test_what_stands_around_the_table_stays(tmp_path):
    path = tmp_path / "RESULTS.md"
    results.record(path, report(26.0), CARDS, "2026-01-01")
    path.write_text(f"before\n\n{path.read_text()}\nafter\n")
    results.record(path, report(27.0), CARDS, "2026-01-02")
    text = path.read_text()
    assert text.startswith("before\n\n<!--") and text.endswith(
        "<!-- /scores -->\n\nafter\n"
    )
    assert len(rows(path)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "<!-- scores -->\n| set | method |\n|---|---|\n<!-- /scores -->\n",
        "<!-- scores -->\n<!-- /scores -->\n",
        "<!-- scores -->\n| set | and no end\n",
    ],
)
def test_another_table_is_refused(tmp_path, text):
    path = tmp_path / "RESULTS.md"
    path.write_text(text)
    with pytest.raises(UserError, match=r"RESULTS\.md has no table between"):
        results.record(path, report(26.0), CARDS, "2026-01-01")
    assert path.read_text() == text


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="is no text"):
        results.record(path, report(26.0), CARDS, "2026-01-01")
