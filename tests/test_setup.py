"""Set-up: what a machine without a fitting Python is told, and the list of commands."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


def _machine(folder, **programs):
    """Returns a PATH with the usual tools and `programs`, shell scripts by name, and no other Python."""
    for name in ("bash", "sh", "dirname", "getconf", "cut", "sort", "head", "rm", "uname", "printf", "env"):
        (folder / name).symlink_to(shutil.which(name))
    for name, script in programs.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "checkout/scripts").mkdir(parents=True)
    for name in ("scripts/setup.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / "checkout" / name)
    return tmp_path / "checkout"


def _set_up(checkout, path):
    return subprocess.run(
        ["bash", "scripts/setup.sh"],
        cwd=checkout,
        env={"PATH": str(path)},
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("programs", "found"),
    [
        ({"python3": "[ $1 = --version ] && echo Python 3.13.1 || exit 1"}, "found Python 3.13.1"),
        ({}, "found no python3"),
        ({"uname": "[ $1 = -s ] && echo Darwin || echo arm64"}, "this is Darwin arm64"),
        ({"getconf": "exit 1"}, "this system has no glibc"),
        ({"getconf": "echo glibc 2.28"}, "this system has 2.28"),
    ],
)
def test_a_machine_that_tff_does_not_run_on_gets_one_sentence(checkout, tmp_path, programs, found):
    (tmp_path / "bin").mkdir()
    program = _set_up(checkout, _machine(tmp_path / "bin", **programs))
    assert program.returncode == 1
    assert program.stderr.startswith("error: tff_kit needs Python 3.9, 3.10 or 3.11 on Linux x86-64")
    assert found in program.stderr
    assert program.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()


def test_a_supported_python_is_found_where_the_default_is_not_one(checkout, tmp_path):
    (tmp_path / "bin").mkdir()
    log = tmp_path / "log"
    supported = f'case "$*" in *ensurepip*) exit 0;; --version) echo Python 3.10.1;; *) echo "$*" >> {log}; exit 9;; esac'
    path = _machine(tmp_path / "bin", **{"python3": "exit 1", "python3.10": supported})
    program = _set_up(checkout, path)
    assert program.returncode == 9
    assert log.read_text() == "-m venv .venv\n"
    assert "Python 3.10.1" in program.stdout


def test_every_requirement_is_pinned_once():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    names = [line.split("==")[0] for line in lines]
    assert all(line.count("==") == 1 for line in lines)
    assert len(set(names)) == len(names)
    assert {
        "tensorflow",
        "tensorflow-federated",
        "tensorflow-model-optimization",
        "nest-asyncio",
        "numpy",
        "tensorboard",
        "jupyter",
    } <= set(names)


@pytest.mark.process
@pytest.mark.parametrize(("module", "version"), [("tensorboard.main", "2.14.1"), ("jupyterlab", "4.5.6")])
def test_what_make_opens_in_a_browser_starts(module, version):
    command = [sys.executable, "-m", module, "--version"]
    program = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert program.stdout.strip() == version, program.stderr


def test_make_help_lists_every_target():
    environment = {**os.environ, "MAKEFLAGS": ""}
    text = subprocess.run(["make", "help"], cwd=ROOT, env=environment, text=True, capture_output=True, check=True).stdout
    makefile = pathlib.Path(ROOT / "Makefile").read_text()
    (phony,) = [line for line in makefile.splitlines() if line.startswith(".PHONY:")]
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert sorted(listed) == sorted(phony.split()[1:])
