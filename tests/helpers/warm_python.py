"""Python with everything imported: a stand-in for `sys.executable` in tests that start commands.

A server imports what commands need, once per process that runs tests, and forks for each of them. `python()` is the
beginning of a command line; after it comes a file, `-m` and a module, or `-c` and a program. It ends with the command's
exit code or by its signal, passes on the signals that ask a process to end, and the command dies with it.

It is for commands that are run and waited for. Where a process is stopped or killed, where its start itself is tested,
where variables are read when something is imported, or where ranks must not share the seed of Python's hashes, use
`sys.executable`. A command that starts others, by `sys.executable` or the name `deepspeed`, has them from the server
too if it began with `python_for_children()`.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import random
import runpy
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

PRELOADED = (
    "audiox_trainer.launch.prepare",
    "audiox_trainer.trainer.checkpoint.convert_run",
    "audiox_trainer.trainer.checkpoint.weights_folder",
    "audiox_trainer.trainer.cost.plan_report",
    "audiox_trainer.trainer.distillation.distill",
    "audiox_trainer.trainer.generation.generator",
    "audiox_trainer.trainer.training.pretrain",
    "torch._dynamo",
    "torch.utils.tensorboard",
)
PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
LENGTH, STATUS = struct.Struct("<I"), struct.Struct("<i")
EXECUTABLE = "SYS_EXECUTABLE"  # environment variable: the `sys.executable` of a command
CLIENT = "import sys; sys.path.insert(0, sys.argv.pop(1)); import warm_python; warm_python.ask(*sys.argv[1:])"


@functools.cache
def python() -> list[str]:
    """The words with which a command begins. The server starts at the first call, and ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="warm-python-"))
    end, ours = os.pipe()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        listening.listen()
        number = listening.fileno()
        command = [sys.executable, "-m", __name__, str(number)]
        server = subprocess.Popen(
            command, stdin=end, stdout=subprocess.DEVNULL, pass_fds=[number], cwd=Path(__file__).parents[2]
        )
    os.close(end)

    def close() -> None:
        os.close(ours)
        server.wait()
        (folder / "socket").unlink()
        folder.rmdir()

    atexit.register(close)
    return [sys.executable, "-I", "-S", "-c", CLIENT, str(Path(__file__).parent), str(folder / "socket")]


def python_for_children(folder: Path) -> list[str]:
    """Like `python()`, with `python` and `deepspeed` in `folder` for what the command starts. All of it is in a process
    group of its own, which ends with the command."""
    start = f"{EXECUTABLE}={shlex.quote(str(folder / 'python'))} exec {shlex.join(python())}"
    scripts = {
        # A rank's monitor (-P) inherits files, and imports next to nothing.
        "python": f'[ "$1" != -P ] || exec {shlex.quote(sys.executable)} "$@"\n{start} "$@"\n',
        "deepspeed": f'{start} -m deepspeed.launcher.runner "$@"\n',
    }
    for name, lines in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{lines}")
        (folder / name).chmod(0o755)
    return [str(folder / "python")]


# The process that a test starts. It imports nothing slow.


def ask(address: str, *words: str) -> None:
    """Has the server run a command, and ends as it does."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        request = json.dumps({"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
        socket.send_fds(server, [LENGTH.pack(len(request))], [0, 1, 2])
        server.sendall(request)
        for number in PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        answer = _received(server, STATUS.size)
    (code,) = STATUS.unpack(answer)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _received(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = end.recv(size - len(data))
        if not more:
            raise EOFError("the server of warm_python.py has ended")
        data += more
    return data


# The server.


def serve(listening: socket.socket) -> None:
    """Until standard input is closed."""
    for module in PRELOADED:
        __import__(module)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that watch
    events = select.poll()  # the socket's number may be above those that `select` knows
    events.register(listening, select.POLLIN)
    events.register(sys.stdin, select.POLLIN)
    while [number for number, _ in events.poll()] == [listening.fileno()]:
        client, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _watch(client)
        client.close()


def _watch(client: socket.socket) -> None:
    """Runs a client's command in a process of its own, and tells the client how it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(client, LENGTH.size, 3)
    request = json.loads(_received(client, *LENGTH.unpack(head)))
    with_children = EXECUTABLE in request["environment"]
    command = os.fork()
    if command == 0:
        client.close()
        if with_children:
            os.setpgid(0, 0)
        _become(files, **request)
    for file in (*files, 0, 1):
        os.close(file)
    ended = os.pidfd_open(command)
    while ended not in select.select([ended, client], [], [])[0]:
        asked = client.recv(1)
        if asked:
            os.kill(command, asked[0])
            continue
        os.kill(command, signal.SIGKILL)
        if with_children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command, signal.SIGKILL)
        break
    _, status = os.waitpid(command, 0)
    try:
        client.sendall(STATUS.pack(os.waitstatus_to_exitcode(status)))
    except OSError:
        pass  # it has been killed
    os._exit(0)


def _become(files: list[int], words: list[str], folder: str, environment: dict[str, str]) -> None:
    """This process becomes the command."""
    for file, number in zip(files, (0, 1, 2), strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    import numpy
    import torch

    random.seed()  # otherwise all commands would draw the same
    numpy.random.seed()
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.executable = environment.get(EXECUTABLE, sys.executable)
    code = 0
    try:
        _run(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        code = 1
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    threading._shutdown()  # type: ignore[attr-defined] # waits for threads, as an interpreter does at its end
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


def _run(words: list[str]) -> dict[str, Any]:
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        words = words[1:]
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        return runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    if words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        return {}
    sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
    return runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
