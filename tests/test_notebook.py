"""The Colab notebook: as it is stored, and run from top to bottom."""

import ast
import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_main import quickstart

from cir_jax import image_io

NOTEBOOK = Path(__file__).parents[1] / "launch" / "evaluate.ipynb"


def cells(kind):
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in stored if cell["cell_type"] == kind]


def parameters():
    """The one cell whose values are the reader's to change."""
    (cell,) = (
        c for c in cells("code") if "parameters" in c["metadata"].get("tags", ())
    )
    return cell


def test_it_is_stored_for_readable_differences():
    text = NOTEBOOK.read_text(encoding="utf-8")
    stored = json.loads(text)
    assert text == json.dumps(stored, indent=1, ensure_ascii=False) + "\n"
    assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
    assert stored["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in stored["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    assert len(cells("code")) + len(cells("markdown")) == len(ids)
    for cell in stored["cells"]:
        lines = "".join(cell["source"]).splitlines(keepends=True)
        assert cell["source"] == lines and not lines[-1].endswith("\n")


def test_it_is_stored_without_outputs():
    for cell in cells("code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]


def test_every_code_cell_compiles():
    for cell in cells("code"):
        compile("".join(cell["source"]), cell["id"], "exec")


def test_parameters_are_plain_assignments():
    tree = ast.parse("".join(parameters()["source"]))
    assert all(isinstance(line, ast.Assign) for line in tree.body)


def with_values(source, values):
    """The cell of parameters with other values."""
    for name, value in values.items():
        source, count = re.subn(
            rf"^{name} = .*$",
            lambda _, n=name, v=value: f"{n} = {v!r}",
            source,
            flags=re.M,
        )
        assert count == 1, name
    return source


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, validation):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    folder = tmp_path / "my photographs"
    shutil.copytree(validation, folder)
    quickstart(tmp_path / "toy", validation)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    toy = {"CONFIG": str(tmp_path / "toy.py"), "STEPS": 2, "FOLDER": str(folder)}
    by_id = {cell["id"]: cell for cell in notebook.cells}
    cell = by_id[parameters()["id"]]
    cell.source = with_values(cell.source, toy)
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()

    for cell in cells("code"):
        assert by_id[cell["id"]].execution_count, cell["id"]
    weights = tmp_path / "runs" / "quickstart" / "weights.safetensors"
    assert f"used: {weights.relative_to(tmp_path)}" in printed(by_id["weights"])
    assert (tmp_path / "restored" / "coffee.png").is_file()
    for name, set_name in (("photographs", "photographs"), ("folder", "mine")):
        (table,) = shown(by_id[name], "text/markdown")
        for quality in (10, 20):
            row = rf"^\| {set_name} +\| jpeg +\| {quality} +\| quickstart +\|"
            assert re.search(row, table, re.M), table
        assert "* protocol: " in table and "* encoder: " in table
        assert len(shown(by_id[name], "image/png")) == 4  # three sheets and the plot

    (html,) = shown(by_id["show"], "text/html")
    images = re.findall(r'<img alt="(\w+)" src="data:image/png;base64,(.+?)"', html)
    assert [label for label, _ in images] == ["before", "after"]
    for (_, data), path in zip(
        images, ("coffee.jpg", "restored/coffee.png"), strict=True
    ):
        pixels = image_io.decode_rgb(base64.b64decode(data), path)
        np.testing.assert_array_equal(pixels, image_io.read_rgb(tmp_path / path))


def printed(cell):
    return "".join(output.text for output in cell.outputs if "text" in output)


def shown(cell, kind):
    """What a cell displayed of a media type."""
    return [o.data[kind] for o in cell.outputs if kind in o.get("data", {})]
