"""Scorers that the tests write: Python programs, and functions in their place."""

import csv
import json
import shlex
import sys
import tempfile

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from cir_jax import Restorer, cli, image_io
from cir_jax.compression import compressions
from cir_jax.downstream import BUILT_IN, Scorer, parse_scorers
from cir_jax.errors import UserError
from cir_jax.evaluate import evaluate

SAME = """
import json, pathlib, sys
clean, images = map(pathlib.Path, sys.argv[1:])
names, others = (
    sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    for folder in (clean, images)
)
assert names == others
with open("seen", "a") as file:
    folders = len(list(images.parent.iterdir()))
    print(json.dumps({"names": names, "folders": folders}), file=file)
same = [(clean / name).read_bytes() == (images / name).read_bytes() for name in names]
print("of", len(same))
print(sum(same) / len(same))
"""
"""The share of files that are the same."""


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where temporary folders are made; its name has a space. Runs beside it."""
    folder = tmp_path / "a place"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def command(tmp_path):
    """Makes a command of a Python program."""

    def make(text, folders="{clean} {images}"):
        path = tmp_path / "its program.py"
        path.write_text(text)
        return f"{shlex.join([sys.executable, '-S', str(path)])} {folders}"

    return make


@pytest.fixture
def images(photographs):
    """Two small images, sides no multiples of 4."""
    names = {"coffee": "deep/coffee.webp", "autumn": "autumn.jpg"}
    return {
        name: np.ascontiguousarray(photographs[stem][:50, :61])
        for stem, name in names.items()
    }


@pytest.fixture
def folder(tmp_path, images):
    for name, image in images.items():
        image_io.write_png((tmp_path / "set" / name).with_suffix(".png"), image)
    return tmp_path / "set"


def reader(read):
    """A scorer that keeps what it finds: the arrays by file name, for each folder."""

    def score(clean, images):
        found = {
            str(path.relative_to(images)): np.asarray(Image.open(path))
            for path in images.rglob("*.png")
        }
        read.append(found)
        return float(len(read))

    return Scorer("count", "how many came before, and this", score)


def test_a_command_and_built_in_scorers_have_columns(
    folder, command, tmp_path, scratch, capsys
):
    arguments = ["evaluate", "--set", f"a={folder}", "--set", f"b={folder}"]
    arguments += ["--codec", "jpeg,noise", "--quality", "20", "--quality", "0"]
    arguments += ["--downstream", f"same={command(SAME)}", "--downstream", "edges"]
    for kind in ("json", "csv", "markdown", "record"):
        arguments += [f"--{kind}", str(tmp_path / f"out.{kind}")]
    assert cli.run(arguments) == cli.DONE
    printed = capsys.readouterr().out
    head, _, *lines = printed.splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns[-3:] == ["s/image", "same", "edges"]
    assert [cell.strip() for cell in lines[1].split("|")[-3:-1]] == ["1.000", "1.000"]
    notes = printed.split("\n\n")[-1].splitlines()
    assert "same of the clean images: a 1, b 1" in notes
    assert any(
        note.startswith("downstream same: ") and note.endswith("'{clean}' '{images}'")
        for note in notes
    )
    assert "downstream edges: F-measure of edges" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    rows = [(row["set"], row["codec"], row["same"]) for row in written["rows"]]
    assert rows == [
        ("a", "jpeg", 0.0),
        ("a", "noise", 1.0),
        ("b", "jpeg", 0.0),
        ("b", "noise", 1.0),
    ]
    assert 0 < written["rows"][0]["edges"] < written["rows"][1]["edges"] == 1
    with (tmp_path / "out.csv").open() as file:
        read = [(float(r["same"]), float(r["edges"])) for r in csv.DictReader(file)]
    assert read == [(row["same"], row["edges"]) for row in written["rows"]]
    assert (tmp_path / "out.markdown").read_text().strip() in printed
    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert [each["names"] for each in seen] == [["autumn.png", "deep/coffee.png"]] * 6
    assert [each["folders"] for each in seen] == [1, 2, 3, 3, 3, 3]  # clean, and a row
    assert not any(scratch.iterdir())


@pytest.mark.parametrize(
    ("protocol", "scale", "shape"),
    [("colour", 1, (50, 61, 3)), ("gray", 1, (50, 61)), ("csr", 4, (48, 60, 3))],
)
def test_files_are_the_images_that_are_measured(images, protocol, scale, shape):
    read = []
    restorers = {"a/b": Restorer(tiny.Filter())} if scale == 1 else {}
    jpegs = compressions("jpeg", (10, 90))
    scorers = [reader(read)]
    report = evaluate(
        restorers, {"s": images}, jpegs, protocol, scale=scale, scorers=scorers
    )
    rows = report.rows()
    assert [row["count"] for row in rows] == [*range(2, 2 + len(rows))]
    clean = read[0]
    assert {each.shape for found in read for each in found.values()} == {shape}
    if protocol == "colour":
        for name, image in images.items():
            stem = name.partition(".")[0]
            np.testing.assert_array_equal(clean[f"{stem}.png"], image)
    inside = slice(4, -4) if scale == 4 else slice(None)
    for row, found in zip(rows, read[1:], strict=True):
        psnr = [
            10 * np.log10(255**2 / np.square(np.subtract(a, b, dtype=float)).mean())
            for a, b in (
                (clean[name][inside, inside], found[name][inside, inside])
                for name in clean
            )
        ]
        assert row["psnr"] == pytest.approx(np.mean(psnr))


def test_several_devices_fill_one_folder(images, monkeypatch):
    read = []
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1] * 4)
    many = {f"{i}/{name}": image for name, image in images.items() for i in range(8)}
    jpegs = compressions("jpeg", (10, 20, 30))
    report = evaluate({}, {"s": many}, jpegs, scorers=[reader(read)])
    assert [row["count"] for row in report.rows()] == [2, 3, 4]
    assert [len(found) for found in read] == [16] * 4


FAILURES = {
    "import sys; print('bad\\nworse', file=sys.stderr); sys.exit(3)": (
        r"downstream x of the clean images of s: \S+ .*'{images}' failed \(exit status "
        r"3; worse\): mend the command"
    ),
    SAME.replace("print(sum", "assert all(same), 'not the same'; print(sum"): (
        r"downstream x of s jpeg 20 none: .* \(exit status 1; AssertionError: not the"
    ),
    "print(0.5); print('AP = 0.5')": r"printed 'AP = 0.5' last: let the last line of",
    "print('nan')": "printed 'nan' last: .* be a finite number",
    "print('inf')": "printed 'inf' last",
    "print(0.5, 0.6)": "printed '0.5 0.6' last",
    "": r"printed nothing \(it gave no reason\): let",
    "import sys; print('no images', file=sys.stderr)": r"nothing \(no images\): let",
    "print('x' * 999)": "printed 'x{200}' last",
}


@pytest.mark.parametrize("text", FAILURES)
def test_a_failure_is_one_sentence(images, command, scratch, text):
    scorers = parse_scorers([f"x={command(text)}"])
    jpegs = compressions("jpeg", (20,))
    with pytest.raises(UserError, match=FAILURES[text]) as caught:
        evaluate({}, {"s": images}, jpegs, scorers=scorers)
    assert "\n" not in str(caught.value)
    assert not any(scratch.iterdir())


def test_a_program_that_goes_away_is_named(images, tmp_path):
    program = tmp_path / "score"
    program.write_text("no program")
    program.chmod(0o755)
    (scorer,) = parse_scorers([f"x={program} {{images}}"])
    with pytest.raises(UserError, match=r"score '{images}' cannot be run \(Exec"):
        scorer.score(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["edgs"], "unknown downstream scorer 'edgs': did you mean 'edges'"),
        (["python score.py {images}"], "has no name: give NAME=COMMAND, such as map="),
        (["=python {images}"], "an empty name"),
        (["a b=python {images}"], "no blanks"),
        (["map="], r"map: its command has no {images}: give one such as map="),
        (["map=python {clean}"], "no {images}"),
        (["map=python {images} {out}"], "has {out}, but {clean} and {images} are all"),
        (["map=python {images} '"], "mend its quotes"),
        (["map=no-such-program {images}"], "program no-such-program is not installed"),
        (["psnr=python {images}"], "the table has a column psnr already"),
        (["LPIPS=python {images}"], "column LPIPS already: give another name"),
        (["s/image=python {images}"], "column s/image already"),
        (["images=python {images}"], "column images already"),
        (["edges", "edges"], "column edges already"),
        (["edges", "Edges=python {images}"], "column Edges already"),
    ],
)
def test_wrong_use_is_named(texts, words):
    texts = [text.replace("python", shlex.quote(sys.executable)) for text in texts]
    flags = [word for text in texts for word in ("--downstream", text)]
    with pytest.raises(UserError, match=words):
        cli.run(["evaluate", "--set", "s=nowhere", *flags])


def test_files_of_one_name_are_refused(images):
    image = images["autumn.jpg"]
    twice = {"set": {"x.jpg": image, "x.png": image}}
    words = r"x\.jpg and x\.png of set would both be x\.png: rename one"
    with pytest.raises(UserError, match=words):
        evaluate({}, twice, compressions("jpeg", (20,)), scorers=[BUILT_IN["edges"]])


def test_several_processes_are_refused(images, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="wants one process, and there are 2: run one"):
        evaluate({}, {"s": images}, compressions("jpeg", (20,)), scorers=[reader([])])
