"""Programs for tests, forked from one process that has imported TensorFlow Federated: each import takes 6 s of a processor."""

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time

AS_THEY_ARE = """
from tensorflow_federated.python.core.environments.tensorflow_backend import graph_optimizations

graph_optimizations.optimize_graph_spec = lambda graph, config: graph
"""
"""Code that does for a program what the fixture `graphs_as_they_are` does for tests, so that both are equal to the bit."""

# The parent of all programs. It runs one at a time, and ends when nobody can ask for another.
_PARENT = """
import os, socket, struct, sys
import tensorflow_federated, tff_kit.tasks.emnist  # Not tff_kit.runtime, whose context has a thread, which is lost in a fork.

connection = socket.socket(fileno=int(sys.argv[1]))
while True:
    code, pipes, _, _ = socket.recv_fds(connection, 2**16, 3)
    pid = os.fork() if code else 0
    if pid == 0:
        connection.close()
        for number, pipe in enumerate(pipes):
            os.dup2(pipe, number)
            os.close(pipe)
        break
    for pipe in pipes:
        os.close(pipe)
    connection.sendall(struct.pack("i", pid))
    connection.sendall(struct.pack("i", os.waitpid(pid, 0)[1]))
exec(code)
"""


class Parent:
    """Starts programs in a folder."""

    def __init__(self, folder):
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", AS_THEY_ARE + _PARENT, str(theirs.fileno())],
                cwd=folder,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},  # As the command line has it.
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def start(self, code):
        """Runs `code` as `python -c` would; returns the running program."""
        return Program(self._connection, code)

    def stop(self):
        self._connection.close()
        self._process.wait(60)


class Program:
    """A running program, used as a `subprocess.Popen` with three pipes."""

    def __init__(self, connection, code):
        self.returncode = None
        self._connection = connection
        (stdin, self.stdin), (self.stdout, stdout), (self.stderr, stderr) = (
            [os.fdopen(end, mode, buffering=0) for end, mode in zip(os.pipe(), ("rb", "wb"))] for _ in range(3)
        )
        theirs = (stdin, stdout, stderr)
        socket.send_fds(connection, [code.encode()], [pipe.fileno() for pipe in theirs])
        for pipe in theirs:
            pipe.close()
        self.pid = self._receive(60)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def communicate(self, timeout):
        """Waits for the program to end and for its pipes to close; returns what it printed."""
        deadline = time.monotonic() + timeout
        self.stdin.close()
        printed = tuple(_read_all(pipe, deadline) for pipe in (self.stdout, self.stderr))
        self.returncode = os.waitstatus_to_exitcode(self._receive(deadline - time.monotonic()))
        return printed

    def stop(self):
        """Ends the program where a test has not waited for its end."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.send_signal(signal.SIGKILL)
            self.returncode = os.waitstatus_to_exitcode(self._receive(60))

    def _receive(self, timeout):
        self._connection.settimeout(timeout)
        (number,) = struct.unpack("i", self._connection.recv(4, socket.MSG_WAITALL))
        return number


def _read_all(pipe, deadline):
    chunks = []
    with pipe:
        while select.select([pipe], [], [], max(0, deadline - time.monotonic()))[0]:
            chunks.append(os.read(pipe.fileno(), 2**16))
            if not chunks[-1]:
                return b"".join(chunks).decode()
    raise TimeoutError(f"Expected the pipe to close, found it open after {b''.join(chunks)!r}")
