"""The notebooks in `examples/` run from their first cell to their last, as they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# What the last cell that a test adds says of the notebook's own variables.
ASKED = """
import json
print(json.dumps({
    "asr": float(table["asr"].loc["none", "badnets"]), "poison": int(scores["poison"].sum()),
    "removed": int((scores["poison"] & ~scores["kept"]).sum()),
    "tpr": float(rows.set_index("trial").loc[trial, "tpr"]),
    "points": len(roc), "shapes": [list(clean.shape), list(triggered.shape)],
}))
"""


def test_notebooks_hold_no_outputs() -> None:
    for file in NOTEBOOKS:
        cells = json.loads(file.read_text())["cells"]
        code = [one for one in cells if one["cell_type"] == "code"]
        assert code and not any(one["outputs"] or one["execution_count"] for one in code), file
        assert file.stat().st_size < 10_000


@pytest.mark.further
@pytest.mark.slow
def test_the_notebook_of_records_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.delenv("RAYSWEEP_STORAGE", raising=False)
    assert os.environ["OMP_NUM_THREADS"] == "1"
    notebook = nbformat.read(ROOT / "examples" / "records.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(ASKED))
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )  # fmt: skip
    client.execute()
    said = json.loads(notebook.cells[-1].outputs[0].text)
    assert said["asr"] > 0.8, "the attack works"
    assert said["poison"] == 129 and said["removed"] == round(129 * said["tpr"]) > 0
    assert said["points"] > 2
    assert said["shapes"] == [[6, 1, 16, 16]] * 2
    figures = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
        if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]  # fmt: skip
    assert len(figures) == 3
