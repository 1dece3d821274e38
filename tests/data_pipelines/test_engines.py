"""The recipe of UCIP's data set, by every engine: slow, for it starts processes."""

import pytest

from cir_jax import cli, image_io
from cir_jax.data import manifest
from cir_jax.data.records import Record
from cir_jax.errors import UserError
from data_pipelines import job
from data_pipelines.verify import verify

pytestmark = pytest.mark.slow


def files(folder):
    """Everything in a folder: shards, indices, reports, plan and manifest."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def traditional(tmp_path_factory):
    """UCSR's 12 traditional degradations of 8 crops, and the command; 4 shards."""
    out = tmp_path_factory.mktemp("traditional") / "alone"
    command = ["encode", "--recipe", "ucsr-traditional", "--scale", "4"]
    command += ["--source", "photos:validation"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "LARGEST_SHARD", 2)
        assert cli.run([*command, "--out", str(out)]) == cli.DONE
        yield command, out


def test_ucsr_traditional_rises_with_quality(traditional, tmp_path, capsys):
    _, out = traditional
    assert cli.run(["verify", str(out)]) == cli.DONE
    capsys.readouterr()
    sheet = tmp_path / "sheet.png"
    assert cli.run(["inspect", str(out), "--sheet", str(sheet)]) == cli.DONE
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in row] for row in rows if len(row) == 5][2:]
    for codec, worst_to_best in {
        "jpeg": ["10", "20", "30", "40"],
        "hevc": ["47", "42", "37", "32"],
        "vvc": ["47", "42", "37", "32"],
    }.items():
        of_codec = [row for row in rows if row[0] == codec]
        assert [row[1] for row in of_codec] == worst_to_best  # sorted by PSNR
        rates = [float(row[3]) for row in of_codec]
        assert rates == sorted(rates)
    assert image_io.read_rgb(sheet).shape[0] > 9 * 64


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_make_the_same_bytes_of_video_codecs(traditional, tmp_path, workers):
    command, out = traditional
    again = tmp_path / "again"
    command = [*command, "--workers", str(workers), "--out", str(again)]
    assert cli.run(command) == cli.DONE
    assert files(again) == files(out)


@pytest.mark.parametrize(
    "options",
    [
        "--runner=DirectRunner",
        "--direct_num_workers=2 --direct_running_mode=multi_processing",
    ],
)
def test_beam_makes_the_same_bytes(traditional, tmp_path, options):
    pytest.importorskip("apache_beam")
    command, out = traditional
    again = tmp_path / "again"
    command = [*command, "--engine", "beam", f"--beam-options={options}"]
    assert cli.run([*command, "--out", str(again)]) == cli.DONE
    assert files(again) == files(out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--runner=Nope", "the Beam pipeline failed: "),
        ("--direct_num_workers=abc", "Beam does not take --beam-options="),
        ("'", "the Beam pipeline failed: No closing quotation"),
    ],
)
def test_wrong_beam_options_are_one_sentence(tmp_path, options, words):
    pytest.importorskip("apache_beam")
    command = ["encode", "--quality", "10", "--engine", "beam"]
    command += [f"--beam-options={options}", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=words):
        cli.run(command)


def test_a_learned_codec_goes_through_the_same_command(tmp_path):
    """With random weights: what is shown is the way, not the quality."""
    pytest.importorskip("compressai")
    import torch
    from compressai.zoo import bmshj2018_hyperprior

    torch.manual_seed(0)
    network = bmshj2018_hyperprior(2, "mse")
    torch.save(network.state_dict(), tmp_path / "weights-2.pth")
    codec = f"compressai:bmshj2018-hyperprior:mse:{tmp_path}/weights-{{quality}}.pth"
    command = ["encode", "--source", "photos:validation", "--scale", "4"]
    command += ["--codec", codec, "--quality", "2", "--out", str(tmp_path / "out")]
    assert cli.run(command) == cli.DONE
    assert not verify(tmp_path / "out").damages
    records, contents = manifest.open_records(tmp_path / "out", "cir encode")
    (version,) = Record.from_bytes(records[0]).versions
    assert (version.codec, version.quality) == ("bmshj2018-hyperprior-mse", 2)
    assert version.bits > 0
    version = contents["codecs"]["bmshj2018-hyperprior-mse"]
    assert "weights-{quality}.pth (sha256 " in version

    torch.save(bmshj2018_hyperprior(2, "mse").state_dict(), tmp_path / "weights-2.pth")
    with pytest.raises(UserError, match="holds records of other images or settings"):
        cli.run(command)
