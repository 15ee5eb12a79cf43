"""Two nodes on this machine for launchers that go through ssh: a server each, at its own loopback address."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Self

from audiox_trainer.trainer.core.hardware import free_port
from tests.helpers.slurm import ALONE, PATH, not_alone, until
from tests.helpers.small_config import ROOT

NEEDED = ("sshd", "ssh", "ssh-keygen", "pdsh", "unshare")
ADDRESSES = ("127.0.0.1", "127.0.0.2")
CONF = """Port {port}
ListenAddress {address}
HostKey {folder}/host
AuthorizedKeysFile {folder}/own.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
"""


def why_not() -> str:
    """The reason why there can be no such nodes here, or ""."""
    absent = [name for name in NEEDED if not shutil.which(name, path=PATH)]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: openssh-server, pdsh)"
    return not_alone() if os.geteuid() == 0 else "an ssh server of one's own needs root"


class Hosts:
    """A context manager: the servers, and a hostfile that names them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.servers: list[subprocess.Popen[bytes]] = []
        self.hostfile = folder / "hosts"

    def __enter__(self) -> Self:
        for name in ("host", "own"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(command, check=True)
        self.hostfile.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        try:
            for address in ADDRESSES:
                conf = self.folder / f"sshd-{address}"
                conf.write_text(CONF.format(port=self.port, address=address, folder=self.folder))
                with (self.folder / "sshd.log").open("ab") as log:
                    command = [*ALONE, str(shutil.which("sshd", path=PATH)), "-D", "-e", "-f", str(conf)]
                    self.servers.append(subprocess.Popen(command, stdout=log, stderr=log))
                until(lambda address=address: self.answers(address), 20)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.terminate()
            server.wait(600)

    def options(self) -> list[str]:
        """Options of ssh, with nothing of this user's own configuration."""
        never = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        return ["-F", "none", "-i", str(self.folder / "own"), *never]

    def answers(self, address: str) -> bool:
        command = ["ssh", *self.options(), "-p", str(self.port), address, "true"]
        return subprocess.run(command, capture_output=True, timeout=600).returncode == 0

    def deepspeed(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The launcher, as on any hostfile, with this port and these keys."""
        command = [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(self.hostfile)]
        command += ["--ssh_port", str(self.port), "--no_ssh_check"]
        command += ["--master_addr", ADDRESSES[0], "--master_port", str(free_port())]
        environment = {"PDSH_SSH_ARGS_APPEND": " ".join(self.options()), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
