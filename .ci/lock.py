"""Write constraints.lock and cuda.lock: the pins of constraints.txt, and the CUDA libraries that this torch asks for.
With --check REPORT, the file of pip's --report, compare what pip has installed with them.

Each pin has the hashes of all files that the package index has of it. `make lock` runs it; it needs uv. The index has
torch for CUDA. CPU builds come from other indexes: the hash of what pip finds on this machine is added, and those that
the former lock knows of the same version stay.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK, CUDA = ROOT / "constraints.lock", ROOT / "cuda.lock"
CPU_BUILDS = ("torch", "torchvision")
UV = "uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 -"


def compiled(requirements: str, *options: str) -> dict[str, set[str]]:
    """Hashes by pin, as `name==version ; marker`."""
    done = subprocess.run([*UV.split(), *options], input=requirements, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return parsed(done.stdout)


def parsed(text: str) -> dict[str, set[str]]:
    pins: dict[str, set[str]] = {}
    for line in text.splitlines():
        if line[:1].isalnum():
            pin = line.removesuffix("\\").strip()
            pins[pin] = set()
        elif found := re.search(r"--hash=(\w+:\w+)", line):
            pins[pin].add(found[1])
    return pins


def found_here(pin: str) -> str:
    """The hash of the file that pip takes for a pin on this machine, by its version alone."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", folder, pin.partition(" ")[0]]
        subprocess.run(pip, check=True)
        (file,) = Path(folder).iterdir()
        return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


def write(path: Path, pins: dict[str, set[str]]) -> None:
    lines = [f"# {path.name}: written by `make lock`, not by hand"]
    for pin, hashes in pins.items():
        lines.append(" \\\n".join([pin, *(f"    --hash={each}" for each in sorted(hashes))]))
    path.write_text("\n".join(lines) + "\n")
    print(f"{path.name}: {len(pins)} pins, {sum(map(len, pins.values()))} hashes")


def check(report: Path) -> None:
    """End with a sentence if pip took a file whose hash no lock has."""
    known = set[str]().union(*parsed(LOCK.read_text()).values(), *parsed(CUDA.read_text()).values())
    for each in json.loads(report.read_text())["install"]:
        url, hashes = each["download_info"]["url"], each["download_info"]["archive_info"]["hashes"]
        if f"sha256:{hashes.get('sha256')}" not in known:
            sys.exit(
                f"{url}: its hash {hashes} is not in constraints.lock or cuda.lock; if it is a build of torch that you "
                f"trust, `make lock` adds it; else remove .venv and install from another index"
            )


def main() -> None:
    if sys.argv[1:2] == ["--check"]:
        return check(Path(sys.argv[2]))
    wanted = (ROOT / "constraints.txt").read_text()
    former = parsed(LOCK.read_text()) if LOCK.exists() else {}
    pins = compiled(wanted, "--no-deps")
    for pin in pins:
        if pin.split("==")[0] in CPU_BUILDS:
            pins[pin] |= former.get(pin, set()) | {found_here(pin)}
    write(LOCK, pins)
    (torch,) = (pin for pin in pins if pin.startswith("torch=="))
    names = {pin.split("==")[0] for pin in pins}
    write(CUDA, {pin: each for pin, each in compiled(torch).items() if pin.split("==")[0] not in names})


if __name__ == "__main__":
    main()
