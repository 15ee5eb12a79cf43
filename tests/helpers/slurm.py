"""A Slurm of two nodes on this machine: real daemons in a folder of their own, and jobs of the shipped scripts."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from audiox_trainer.trainer.core.hardware import free_port
from tests.helpers.small_config import ROOT

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "munged", "unshare")
NODES = ("n1", "n2")
PATH = os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"
# A /dev/shm of its own is what a node of its own would have: streaming's segments are named alike on each.
ALONE = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh")
CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
MailProg=/bin/true
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=5
{nodes}PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """The reason why there can be no Slurm here, or ""."""
    absent = [name for name in NEEDED if not shutil.which(name, path=PATH)]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm, munge)"
    return not_alone() if os.geteuid() == 0 else "Slurm's daemons need root"


def not_alone() -> str:
    """The reason why a process here can have no /dev/shm of its own, or ""."""
    done = subprocess.run([*ALONE, "true"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"no /dev/shm of a process's own: {done.stderr.strip()}"


def alone(script: str, argument: Path, temporary: Path) -> list[str]:
    """The lines that a Python script prints in a /dev/shm of its own; streaming's locks lie in the temporary folder."""
    done = subprocess.run(
        [*ALONE, sys.executable, "-c", script, str(argument)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class Slurm:
    """A context manager; nothing that it has started outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))}
        self.env |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def __enter__(self) -> Self:
        ports = [free_port() for _ in range(3)]
        key, host = self.folder / "munge.key", socket.gethostname()
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        nodes = "".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=1000\n"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        conf = CONF.format(host=host, port=ports[0], folder=self.folder, nodes=nodes)
        (self.folder / "slurm.conf").write_text(conf)
        names = {"socket": "socket", "log": "log-file", "pid": "pid-file", "seed": "seed-file", "key": "key-file"}
        files = [f"--{option}={self.folder}/munge.{name}" for name, option in names.items()]
        try:
            self._start("munged", "munged", "--foreground", "--force", *files)
            until(lambda: (self.folder / "munge.socket").exists(), 20)
            self._start("slurmctld", "slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            until(lambda: self.run("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"], 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self.daemons:
            self.run("scancel", "--user=root")
            deadline = time.monotonic() + 8  # KillWait and a moment
            while self.run("squeue", "-h").strip() and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(600)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self.processes():
            kill(process)

    def start_node(self, node: str) -> None:
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._start(node, *ALONE, "slurmd", "-D", "-N", node)

    def lose_node(self, node: str) -> None:
        """Kills everything that runs there at once, as a power cut does."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        listening = sockets(self.folder / f"spool-{node}")  # of what runs its steps, and would report their end
        processes = self.processes()
        for process in [p for p in processes if listening & opened(p)]:
            kill(process)
        for process in processes:
            if environment(process).get("SLURMD_NODENAME") == node:
                kill(process)

    def processes(self) -> list[int]:
        """All that belong to this Slurm, its daemons apart: what runs a job's steps, and the steps."""
        own = {daemon.pid for daemon in self.daemons.values()}
        numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        conf = self.env["SLURM_CONF"]
        return [n for n in numbers if n not in own and environment(n).get("SLURM_CONF") == conf]

    def ranks(self) -> dict[int, int]:
        """Process numbers of the ranks that train."""
        found = [p for p in self.processes() if "launch/pretrain.py" in command(p) and "RANK" in environment(p)]
        return {int(environment(p)["RANK"]): p for p in found}

    def run(self, *arguments: str) -> str:
        done = subprocess.run(arguments, env=self.env, capture_output=True, text=True, timeout=600)
        return done.stdout + done.stderr

    def submit(
        self, output: Path, script: str, *arguments: str, nodes: int = 2, options: Sequence[str] = (), **variables: str
    ) -> "Job":
        """One of launch/slurm/*.sbatch as a user submits it, but on these nodes and without GPUs."""
        shape = (f"--nodes={nodes}", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0")
        common = {"OUTPUT": str(output), "PYTHON": sys.executable, "MASTER_ADDR": "127.0.0.1"}
        log = output.with_suffix(".out")
        done = subprocess.run(
            ["sbatch", "--parsable", *shape, f"--output={log}", *options, f"launch/slurm/{script}.sbatch", *arguments],
            cwd=ROOT,
            env=self.env | common | {"OMP_NUM_THREADS": "1"} | variables,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return Job(self, done.stdout.strip(), log)

    def _start(self, name: str, program: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen([program, *arguments], env=self.env, stdout=log, stderr=log)


class Job:
    """A submitted job, and its output."""

    def __init__(self, slurm: Slurm, number: str, log: Path) -> None:
        self.slurm, self.number, self.log = slurm, number, log

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def state(self) -> dict[str, str]:
        """The fields of scontrol: JobState, Restarts, ExitCode and so on."""
        fields = self.slurm.run("scontrol", "show", "job", self.number).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def ended(self) -> bool:
        """For good."""
        return self.state()["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def wait(self, seconds: float) -> dict[str, str]:
        """Its state when it has ended."""
        until(self.ended, seconds)
        return self.state()


def environment(process: int) -> dict[str, str]:
    try:
        pairs = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another's
        return {}
    return dict(pair.decode(errors="replace").split("=", 1) for pair in pairs if b"=" in pair)


def command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def opened(process: int) -> set[str]:
    """Its open files, as /proc names them."""
    try:
        return {os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir()}
    except OSError:
        return set()


def sockets(folder: Path) -> set[str]:
    """The local sockets in a folder, as /proc names them where they are open."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return {f"socket:[{line[6]}]" for line in lines if len(line) > 7 and line[7].startswith(f"{folder}/")}


def kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


def until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)
