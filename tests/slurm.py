"""A Slurm of two nodes on this machine, for tests: real daemons in a folder of their own."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from audiox_turbo.trainer.hardware import free_port

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "munged")
NODES = ("n1", "n2")


def why_not() -> str:
    """Why there can be no Slurm here, or ""."""
    path = os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"
    absent = [name for name in NEEDED if not shutil.which(name, path=path)]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


class Slurm:
    """A context manager; jobs are submitted with its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.env = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin",
        }

    def __enter__(self) -> "Slurm":
        host, ports = socket.gethostname(), [free_port() for _ in range(3)]
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        nodes = "".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=4000\n"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        (self.folder / "slurm.conf").write_text(
            f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket,cred_expire=10
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=5,bf_interval=5
SlurmdParameters=config_overrides
MailProg=/bin/true
MpiDefault=none
ReturnToService=2
SlurmdTimeout=15
KillWait=5
{nodes}PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
        )
        names = ("socket", "log", "pid", "seed")
        files = [
            f"--{'key' if n == 'key' else n}{'' if n == 'socket' else '-file'}={self.folder}/munge.{n}" for n in names
        ]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *files)
        until(lambda: (self.folder / "munge.socket").exists(), 20)
        self._start("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        for node in NODES:
            self.start_node(node)
        until(lambda: self.run("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"], 60)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.env, capture_output=True)
        time.sleep(1)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def start_node(self, node: str) -> None:
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._start(node, "-D", "-N", node, "-f", str(self.folder / "slurm.conf"), program="slurmd")

    def lose_node(self, node: str, job: str) -> None:
        """As when its power goes: everything that ran there is gone at once."""
        self.daemons[node].kill()
        for line in subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout.splitlines():
            number, _, what = line.strip().partition(" ")
            if number.isdigit() and (_variable(number, "SLURMD_NODENAME") == node or f"slurmstepd: [{job}." in what):
                if "slurmstepd" in what and not self._on(number, node):
                    continue
                os.kill(int(number), signal.SIGKILL)

    def _on(self, process: str, node: str) -> bool:
        """Whether a step's daemon is one of this node: its spool is open there."""
        try:
            opened = [os.readlink(f) for f in Path(f"/proc/{process}/fd").iterdir()]
        except OSError:
            return False
        return any(f"spool-{node}" in name for name in opened)

    def run(self, *command: str, **named: object) -> str:
        done = subprocess.run(
            command, env=self.env | dict(named.pop("env", {})), capture_output=True, text=True, **named
        )  # type: ignore[call-overload]
        return done.stdout + done.stderr

    def submit(self, *arguments: str, cwd: Path, **variables: str) -> str:
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments], cwd=cwd, env=self.env | variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What scontrol says of a job."""
        fields = self.run("scontrol", "show", "job", number).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def _start(self, name: str, *arguments: str, program: str = "") -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self.daemons[name] = subprocess.Popen([program or name, *arguments], env=self.env, stdout=log, stderr=log)


def _variable(process: str, name: str) -> str:
    """Of a process's environment."""
    try:
        pairs = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((p.decode().split("=", 1)[1] for p in pairs if p.startswith(name.encode() + b"=")), "")


def until(true: object, seconds: float) -> None:
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)
