"""The notebooks run, at reduced size on data that every machine has, and their claims are checked."""

import json
import re
import subprocess
import sys

import jupyter_client
import nbformat
import pytest
from conftest import ROOT
from programs import AS_THEY_ARE

from scripts import run_notebooks

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder beside the package, as in a clone, in which notebooks run at reduced size."""
    clone = tmp_path_factory.mktemp("clone")
    (clone / "tff_kit").symlink_to(ROOT / "tff_kit")
    (clone / "notebooks").mkdir()
    startup = clone / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "as_they_are.py").write_text(AS_THEY_ARE)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"NOTEBOOKS": "small", "EMNIST": "digits", "EMBEDDINGS": "demo"}.items():
            patch.setenv(f"TFF_KIT_{name}", value)
        for name in ("TFF_KIT_SPEECH", "TFF_KIT_WHISPER"):
            patch.delenv(name, raising=False)
        patch.setenv("IPYTHONDIR", str(clone / "ipython"))
        yield clone / "notebooks"


@pytest.fixture(scope="module")
def kernel(folder):
    """One kernel for all notebooks, each of which begins without the names of the one before: TensorFlow takes long to start."""
    manager = jupyter_client.KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(folder))
    yield manager
    manager.shutdown_kernel(now=True)


def test_there_are_five():
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04", "05"]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_runs_and_its_claims_hold(path, kernel):
    client = kernel.blocking_client()
    client.start_channels()
    client.execute_interactive("%reset -f", timeout=60)
    client.stop_channels()
    executed = run_notebooks.execute(path, kernel=kernel)
    assert "All claims hold." in str(executed.cells[-1].outputs)
    for cell in executed.cells:
        assert not ("browser" in cell.metadata.get("tags", []) and cell.outputs)


@pytest.mark.process
def test_a_claim_that_does_not_hold_is_an_error_and_nothing_is_written(folder):
    cells = [nbformat.v4.new_code_cell(source) for source in ("print('found')", "assert 2 + 2 == 5")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    path = folder / "false.ipynb"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    with pytest.raises(run_notebooks.NotebookError, match=r"false.ipynb failed(?s:.*)AssertionError"):
        run_notebooks.execute(path)
    assert path.read_bytes() == before


@pytest.mark.process
def test_outputs_with_a_folder_of_this_machine_are_refused(folder, monkeypatch):
    monkeypatch.setenv("TFF_KIT_SPEECH", str(folder))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os\nos.getcwd()")])
    nbformat.write(notebook, folder / "path.ipynb")
    assert run_notebooks.main([str(folder / "path.ipynb")]) == 1
    assert nbformat.read(folder / "path.ipynb", as_version=4).cells[0].outputs == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_says_what_to_do_where_there_is_no_tff_kit(path, tmp_path):
    (setup,) = [cell.source for cell in nbformat.read(path, as_version=4).cells if "except ImportError" in cell.source]
    program = subprocess.run([sys.executable, "-I", "-c", setup], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert program.returncode == 1
    assert re.search(r"ImportError: No module named 'tff_kit'. Clone .* `make notebooks`", program.stderr)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_is_kept_with_the_outputs_of_a_full_run_and_nothing_else(path):
    text = path.read_text()
    notebook = json.loads(text)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert not re.search(r"/(home|root|tmp|work|Users|mnt)/", text)
    assert len(text) < 1_500_000
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in code:
        assert set(cell["metadata"]) <= {"tags"}
        assert (cell["execution_count"] is None) == ("browser" in cell["metadata"].get("tags", []))
        assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in cell["outputs"])
        assert len("".join(cell["source"]).splitlines()) < 50  # No longer than a screen.
    assert "full size, on" in str(code[0]["outputs"])
    assert "All claims hold." in str(code[-1]["outputs"])
