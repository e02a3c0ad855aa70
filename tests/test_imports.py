"""What importing the package does: it loads nothing by itself, rooms of a device need no TFF, and nothing global changes."""

import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf
import tomli
from conftest import ROOT, run_python
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tff_kit import requirements

# The rooms that need TFF, and nothing else does.
NEED_TFF = (
    "tff_kit.algorithm",
    "tff_kit.analysis.updates",
    "tff_kit.runtime",
    "tff_kit.training.checkpoints",
    "tff_kit.training.initial",
    "tff_kit.training.rounds",
)
# Of the deployment, what speaks to Flower; requirements-deploy.txt has it, requirements.txt has not.
NEED_FLOWER = ("tff_kit.deploy.engine", "tff_kit.deploy.supernode")
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).replace(".__init__", "") for path in ROOT.glob("tff_kit/**/*.py")
)
_REPORT = """
import contextlib, importlib, io, json, logging, os, runpy, sys, warnings
import psutil

def everything_global():
    loggers = {name: logging.getLogger(name) for name in ("", "tensorflow", "absl", "asyncio")}
    levels = {f"logger {name}": str((log.level, log.disabled, log.handlers)) for name, log in loggers.items()}
    return {**os.environ, **levels, "sys.path": str(sys.path), "warnings": "\\n".join(map(str, warnings.filters))}

def changed_since(before):
    after = everything_global()
    pairs = {name: (before.get(name), after.get(name)) for name in before.keys() | after.keys()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

found, names = {}, json.loads(sys.argv[1])
before = everything_global()
import tff_kit
dir(tff_kit)
found["import changes"] = changed_since(before)
found["import loads"] = sorted({"numpy", "tensorflow", "tensorflow_federated"}.intersection(sys.modules))

sys.modules["tensorflow_federated"] = None  # From here on it is not installed.
import h5py, matplotlib.figure, rich.progress, safetensors.numpy, tensorflow, tensorboard.plugins.hparams.api, tyro
import tensorflow_model_optimization
before = everything_global()
found["errors"] = {}
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        found["errors"][name] = f"{type(error).__name__}: {error}"
found["rooms change"] = changed_since(before)
found["processes"] = len(psutil.Process().children())
try:
    tff_kit.train
except ImportError as error:
    found["train"] = str(error)

told = io.StringIO()
sys.argv = ["tff_kit", "train", "emnist"]
with contextlib.redirect_stderr(told):
    try:
        runpy.run_module("tff_kit", run_name="__main__")
    except SystemExit as end:
        found["exit code"] = end.code
found["stderr"] = told.getvalue()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def report():
    """What one fresh process found."""
    names = json.dumps([name for name in MODULES if name not in ("tff_kit.__main__", *NEED_FLOWER)])
    finished = run_python("-c", _REPORT, names)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_package_alone_loads_and_changes_nothing(report):
    assert report["import loads"] == []
    assert report["import changes"] == {}


def test_all_but_the_simulation_imports_without_tff(report):
    need_it = [name for name in MODULES if name.startswith(NEED_TFF)]
    assert sorted(report["errors"]) == need_it
    assert len(MODULES) - len(need_it) > 50
    for error in report["errors"].values():
        assert error.startswith("ImportError: Expected TensorFlow Federated 0.87")


def test_rooms_without_tff_change_nothing_global_and_start_no_process(report):
    assert report["rooms change"] == {}
    assert report["processes"] == 0


def test_one_sentence_says_that_tff_is_missing(report):
    assert report["train"].startswith("Expected TensorFlow Federated 0.87")
    assert "docs/install.md" in report["train"]
    assert report["exit code"] == 2
    assert report["stderr"] == f"error: {report['train']}\n"


def test_keras_3_is_refused(monkeypatch):
    requirements.require_keras_2()
    monkeypatch.setattr(tf.keras, "version", lambda: "3.15.1", raising=False)
    with pytest.raises(ImportError, match=r"^Expected Keras 2 as tf.keras, found Keras 3.15.1, .*TF_USE_LEGACY_KERAS=1"):
        requirements.require_keras_2()


@pytest.mark.parametrize("installed", [True, False])
def test_commands_take_keras_2_where_it_is_a_package_of_its_own(tmp_path, installed):
    (tmp_path / ("tf_keras.py" if installed else "other.py")).touch()
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    program = "import os, sys, tff_kit.__main__; print(os.environ.get('TF_USE_LEGACY_KERAS'), 'tensorflow' in sys.modules)"
    told = subprocess.check_output(
        [sys.executable, "-c", program], cwd=ROOT, text=True, env={**environment, "PYTHONPATH": str(tmp_path)}
    )
    assert told.split() == ["1" if installed else "None", "False"]


@pytest.mark.parametrize(
    ("pinned", "extras"), [("requirements.txt", ("simulation", "notebooks", "dev")), ("requirements-deploy.txt", ("deploy",))]
)
def test_pinned_environments_meet_what_the_package_asks_for(pinned, extras):
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    lines = (ROOT / pinned).read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in map(Requirement, asked):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement
