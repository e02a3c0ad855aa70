"""Two workers on machines of their own: the same numbers as one worker on this one, and what becomes of a link that is cut.

A machine is a network namespace, in a user namespace that lets anybody make one; nothing of this system's network is touched.
"""

import collections
import contextlib
import csv
import functools
import json
import shutil
import subprocess
import sys

import psutil
import pytest
from conftest import ROOT, wait_until
from programs import AS_THEY_ARE

from tff_kit import __main__ as command_line
from tff_kit.tasks.keywords import embed, speech_commands, whisper
from tff_kit.training import runs

pytestmark = [pytest.mark.slow, pytest.mark.process]

PORT = 7000


class Machine:
    """A network namespace, which exists as long as the process that keeps it, or another one in it."""

    def __init__(self, command):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "bufsize": 1}
        self._keeper = subprocess.Popen([*command, "cat"], **pipes)  # Ends with this process, at the latest.
        self.pid = self._keeper.pid
        with contextlib.suppress(BrokenPipeError):
            print("ready", file=self._keeper.stdin)
        if self._keeper.stdout.readline() != "ready\n":
            pytest.skip(f"needs network namespaces: {self._keeper.communicate()[1]}")

    def inside(self, *command):
        """Returns the command that runs `command` there."""
        namespaces = [f"--target={self.pid}", "--user", "--net", "--preserve-credentials"]
        return ["nsenter", *namespaces, *map(str, command)]

    def run(self, *command):
        return subprocess.run(self.inside(*command), cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)

    def stop(self):
        self._keeper.communicate()


class Network:
    """The driver's machine, and two machines with a worker each, which know nobody but the driver."""

    def __init__(self, folder):
        credential = folder / "credential"
        subprocess.run(["bash", ROOT / "scripts/credential.sh", credential], check=True)
        self.driver = Machine(["unshare", "--map-root-user", "--net"])
        self.machines = [Machine(self.driver.inside("unshare", "--net")) for _ in range(2)]
        self.addresses = [f"10.0.{i}.2:{PORT}" for i in range(2)]
        self.workers = []
        for i, machine in enumerate(self.machines):
            self.driver.run("ip", "link", "add", f"to{i}", "type", "veth", "peer", "name", "back", "netns", machine.pid)
            for end, name, address in ((self.driver, f"to{i}", f"10.0.{i}.1"), (machine, "back", f"10.0.{i}.2")):
                end.run("ip", "address", "add", f"{address}/24", "dev", name)
                end.run("ip", "link", "set", "dev", name, "up")
            serve = ["worker", "--port", PORT, "--bind", f"10.0.{i}.2", "--credential", credential]
            command = machine.inside(sys.executable, "-m", "tff_kit", *serve)
            quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            self.workers.append(psutil.Popen(command, cwd=ROOT, **quiet))
        for address, worker in zip(self.addresses, self.workers):
            assert worker.stdout.readline() == f"worker at {address}, TLS\n"
        self._where = ["--workers", ",".join(self.addresses), "--credential", str(credential), "--worker-timeout", "3"]
        self._said = folder / "said"
        with open(self._said, "w") as said:
            command = self.driver.inside(sys.executable, "-c", AS_THEY_ARE + _TRAININGS)
            self._trainings = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=said, stderr=said, text=True)

    def start_training(self, *arguments):
        """Starts a training on both workers."""
        self._already_said = len(self._said.read_text())
        print(json.dumps(["train", *arguments, *self._where]), file=self._trainings.stdin, flush=True)

    def said(self):
        """Returns what the training said so far."""
        return self._said.read_text()[self._already_said :]

    def wait_until_said(self, text):
        wait_until(lambda: text in self.said() or self._trainings.poll() is not None, 120)
        assert text in self.said()

    def set_link(self, i, state):
        self.driver.run("ip", "link", "set", "dev", f"to{i}", state)

    def seconds_computed(self, i):
        times = self.workers[i].cpu_times()
        return times.user + times.system

    def stop(self):
        for process in (self._trainings, *self.workers):
            process.kill()
            process.wait()
        for machine in (*self.machines, self.driver):
            machine.stop()


# One process for all trainings, since TensorFlow takes long to start.
_TRAININGS = """
import json, sys
from tff_kit.__main__ import main
for line in sys.stdin:
    print("ended with", main(json.loads(line)), flush=True)
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program}")
    network = Network(tmp_path_factory.mktemp("network"))
    yield network
    network.stop()


COMPRESSED = ["--broadcast", "uniform:8", "--mean", "eden:2/uniform:8", "--threshold", "1000", "--eval-every", "1"]


@pytest.fixture(scope="module")
def digits(cache_of_writers):
    """A training on the digits of eight writers."""
    return ["emnist", "--data", str(cache_of_writers(8)), "--clients", "6", *COMPRESSED]


@pytest.fixture(scope="module")
def keywords(shared, whisper_folder, unpack, tmp_path_factory):
    """A training on embeddings of what twelve speakers say."""
    folder = tmp_path_factory.mktemp("twelve-speakers")
    with open(shared / "data/speech_commands.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    clips = collections.Counter(row["file"].split("_")[0] for row in rows if row["word"] != "_silence_")
    speakers = [speaker for speaker, count in sorted(clips.items()) if 12 <= count <= 15][:12]
    with open(folder / "speech_commands.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row for row in rows if row["file"].split("_")[0] in speakers)
    for name in ("speech_commands.flac", "background_noise.flac", "background_noise.csv"):
        (folder / name).symlink_to(shared / "data" / name)
    unpack("speech", folder, folder / "speech")
    speech = speech_commands.load_data(folder / "speech", speakers_per_client=2)
    embed.embed(speech, whisper.load_encoder(whisper_folder, "1s"), folder / "store", show_progress=False)
    return ["kws", "--data", str(folder / "store"), "--window", "1s", "--clients", "4", *COMPRESSED]


@pytest.fixture(scope="module")
def of_one_worker(tmp_path_factory):
    """Returns the two rounds of a training on one worker."""

    @functools.cache
    def rounds(*training):
        logdir = tmp_path_factory.mktemp("one")
        assert command_line.main(["train", *training, "--rounds", "2", "--logdir", str(logdir)]) == 0
        return runs.RunDirectory(logdir).read_metrics()

    return rounds


def _assert_same(found, expected):
    """Compares bits exactly, and the first round but for the order of sums. Encoders draw by content, so later ones differ."""
    names = [name for name in expected[0] if name != "seconds"]
    assert [found[0][name] for name in names] == [pytest.approx(expected[0][name], rel=1e-5) for name in names]
    for name in ("round", "broadcast_bits", "aggregate_bits"):
        assert [row[name] for row in found[: len(expected)]] == [row[name] for row in expected]


@pytest.mark.parametrize("task", ["digits", "keywords"])
def test_two_machines_train_as_one_worker_does(network, of_one_worker, task, tmp_path, request):
    training = request.getfixturevalue(task)
    network.start_training(*training, "--rounds", "2", "--logdir", str(tmp_path / "two"))
    network.wait_until_said("ended with 0")
    _assert_same(runs.RunDirectory(tmp_path / "two").read_metrics(), of_one_worker(*training))
    assert "does not answer" not in network.said()


def test_links_that_are_cut_in_mid_round_change_nothing(network, digits, of_one_worker, tmp_path):
    first, second = network.addresses
    before = network.seconds_computed(1)
    network.start_training(*digits, "--rounds", "4", "--logdir", str(tmp_path / "run"))
    wait_until(lambda: network.seconds_computed(1) > before + 0.2, 120)  # In the first round: nothing else is its to compute.
    network.set_link(1, "down")
    network.wait_until_said(f"The worker {second} does not answer any more; the others compute its clients.")
    network.wait_until_said("round   1:")
    network.set_link(1, "up")
    network.wait_until_said(f"The worker {second} answers again.")
    network.set_link(0, "down")  # While the model is on its way; from here on only the one that was lost can compute.
    network.wait_until_said(f"The worker {first} does not answer any more; the others compute its clients.")
    network.wait_until_said("ended with 0")
    network.set_link(0, "up")
    rows = runs.RunDirectory(tmp_path / "run").read_metrics()
    _assert_same(rows, of_one_worker(*digits))
    for name in ("broadcast_bits", "aggregate_bits"):
        assert [row[name] for row in rows] == [n * rows[0][name] for n in (1, 2, 3, 4)]
