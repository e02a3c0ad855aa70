"""The Docker image of clients: built without a registry, on a base that is made here, and run as a client of a real server."""

import contextlib
import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import psutil
import pytest
import yaml
from conftest import ROOT
from test_deploy import CLIENTS, FLAGS, PYTHON, children_of, finished, running, wait_for_end

from tff_kit import __main__ as command_line

DOCKER = ROOT / "docker"
BASE = "tff_kit_base"
USER = 1000  # Of the image.


class Builder:
    """buildah with a storage of its own, in which nothing stays. It needs no daemon and no registry."""

    def __init__(self, folder):
        self._command = ["buildah", "--root", folder / "root", "--runroot", folder / "run", "--storage-driver", "vfs"]

    def command(self, *arguments):
        return [str(argument) for argument in (*self._command, *arguments)]

    def run(self, *arguments):
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, cwd=ROOT, timeout=1500, check=False)
        assert done.returncode == 0, f"buildah {arguments[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout.strip()

    def in_container(self, container, *command, options=()):
        return self.command("run", "--isolation", "chroot", "--network", "host", *options, container, "--", *command)


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    if os.getuid():
        pytest.skip("needs root, to build an image")
    for program in ("buildah", "mmdebstrap"):
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program}")
    folder = tmp_path_factory.mktemp("images")
    probe = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder / "probe", "six"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs the package index, from which the image installs")
    yield Builder(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def image(builder, tmp_path_factory):
    """The image, on Debian's Python in the place of the official one, which is in a registry only."""
    base = tmp_path_factory.mktemp("base") / "base.tar"
    packages = "python3,python3-venv,ca-certificates"
    made = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "bookworm", base]
    done = subprocess.run(made, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the packages of Debian bookworm: {done.stderr[-300:]}")
    container = builder.run("from", "scratch")
    builder.run("add", container, base, "/")
    base.unlink()
    subprocess.run(builder.in_container(container, "ln", "-s", "python3", "/usr/bin/python"), check=True)
    builder.run("commit", container, BASE)
    builder.run("rm", container)
    own = [f"--build-arg=PIP_INDEX_URL={os.environ['PIP_INDEX_URL']}"] if "PIP_INDEX_URL" in os.environ else []
    own += ["--volume=/etc/ssl/certs:/etc/ssl/certs:ro"]  # Those of this machine, whose network may have its own.
    options = ["--isolation", "chroot", "--network", "host", "--pull-never", "--build-arg", f"BASE=localhost/{BASE}", *own]
    builder.run("bud", *options, "--tag", "tff_kit", "--file", DOCKER / "Dockerfile", ".")
    return "localhost/tff_kit"


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not PYTHON.exists(), reason="There is no .venv-deploy, which `make setup-deploy` makes.")
def test_a_client_in_the_image_takes_part_beside_one_of_this_machine(builder, image, tmp_path):
    container = builder.run("from", "--pull-never", image)
    described = json.loads(builder.run("inspect", container))["OCIv1"]["config"]
    assert described["User"] == "tff_kit" and "/data" in described["Volumes"]
    with socket.create_server(("127.0.0.1", 0)) as any_server:
        address = f"127.0.0.1:{any_server.getsockname()[1]}"
    finished("credential", tmp_path / "keys", "--nodes", *CLIENTS)
    finished("partition", "emnist", "--data", "digits", "--only", *CLIENTS, "--out", tmp_path / "data")
    inside, outside = CLIENTS
    os.chown(tmp_path / "keys" / inside / "key.pem", USER, USER)
    own = ["--data", tmp_path / "data" / outside, "--credential", tmp_path / "keys" / outside]
    mounts = {tmp_path / "data" / inside: "/data", tmp_path / "keys" / inside: "/credential"}
    options = [f"--volume={source}:{target}:ro" for source, target in mounts.items()]
    join = [*described["Entrypoint"], "join", address, "emnist", "--data", "/data", "--credential", "/credential"]
    server = ["serve", "emnist", *FLAGS, "--rounds", "2", "--min-clients", "2", "--eval-every", "1", "--address", address]
    server += ["--credential", tmp_path / "keys/server", "--logdir", tmp_path / "run"]
    logs = [tmp_path / f"{name}.log" for name in ("outside", "inside", "server")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(logs[0], "join", address, "emnist", *own))
        stack.enter_context(_running(logs[1], builder.in_container(container, *join, options=options)))
        process, _ = stack.enter_context(running(logs[2], *server))
        wait_for_end(process, logs, 900)
    with open(tmp_path / "run/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == ["1", "2"]
    for name in ("clients_dropped", "clients_late", "clients_left_out"):
        assert [float(row[name]) for row in rows] == [0, 0]
    bits = [float(row["aggregate_bits"]) for row in rows]
    assert bits[1] == 2 * bits[0]  # Of two clients, both times.


@contextlib.contextmanager
def _running(log, command):
    """A container while the context lasts; it ends in order when its command is asked to."""
    with open(log, "w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        family = []
        try:
            yield process
        finally:
            family = children_of(process)
            for child in family:  # What runs in the container has no other parent than buildah, which passes nothing on.
                with contextlib.suppress(psutil.NoSuchProcess):  # Some end meanwhile.
                    if child.cmdline()[1:4] == ["-m", "tff_kit", "join"]:
                        child.terminate()
            process.wait(120)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def test_compose_says_what_the_commands_take(capsys):
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert set(services) == {"server", "kitchen", "office"}
    for name, service in services.items():
        command = service["command"].split()
        assert command[0] == ("serve" if name == "server" else "join")
        with pytest.raises(SystemExit):
            command_line.main([*command[:2], "--help"] if name == "server" else ["join", "--help"])
        helped = capsys.readouterr().out
        for flag in (word for word in command if word.startswith("--")):
            assert f"{flag} " in helped


def test_nothing_but_what_is_copied_enters_the_build():
    first, *kept = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] in "*!"]
    assert (first, kept.pop()) == ("*", "**/__pycache__")
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert sorted(line[1:] for line in kept) == sorted(" ".join(copied).split())
