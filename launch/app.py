"""Try weights in a browser: a page with a prompt, a video and a sound, that plays what several weights make of them.

examples:
  python launch/app.py --weights weights/tiny
  python launch/app.py --weights weights/released-turbo weights/tiny --device cuda --dtype bf16
  python launch/app.py --weights me/my-audiox --adapter me/bells:0.5 --port 8000

It needs the extra `page` (pip install '.[page]'). Only this machine reaches the page; --host opens it to others, who
may then keep the device busy and upload files. docs/generation.md has a picture of it.
"""

import argparse
import ipaddress
import os
import sys
from pathlib import Path

from audiox_trainer.trainer.core import cli

LOOPBACK = "127.0.0.1"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--weights", required=True, nargs="+", help=f"each a folder made by launch/convert.py, or {cli.HUB}")
    cli.add_adapters(parser)
    add("--host", default=LOOPBACK, help="address to listen on (default: 127.0.0.1, which only this machine reaches)")
    add("--port", type=int, default=7860, help="(default: 7860; 0: any that is free)")
    add("--max-seconds", type=float, default=30.0, help="longest sound (default: 30)")
    add("--max-steps", type=cli.positive, default=100, help="most sampler steps (default: 100)")
    add("--max-upload", type=cli.positive, default=100, metavar="MB", help="largest file (default: 100)")
    add("--max-waiting", type=cli.positive, default=32, help="visitors that wait for their turn (default: 32)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: an NVIDIA or AMD GPU where there is one)")
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the networks (default: fp32)")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.port < 1 << 16 or not 0 < arguments.max_seconds < float("inf"):
        parser.error("--port is 0 to 65535, and --max-seconds a number above 0")
    return arguments


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(a: argparse.Namespace) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    import torch

    from audiox_trainer.trainer.generation.generator import Generator

    try:
        from audiox_trainer.trainer.generation import page
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; the page needs it: pip install '.[page]'") from None
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[a.dtype]
    generators: dict[str, Generator] = {}
    for location in a.weights:
        name = Path(location).name if Path(location).is_dir() else location
        if name in generators:
            raise ValueError(f"--weights: two are called {name!r}; rename a folder")
        generators[name] = Generator(location, a.device, dtype, adapters=a.adapter)
        licence = f", licence {generators[name].license}" if generators[name].license else ""
        print(f"{location}: on {generators[name].device} in {a.dtype}{licence}", flush=True)
    limits = page.PageLimits(a.max_seconds, a.max_steps, a.max_upload, a.max_waiting)
    if not is_loopback(a.host):
        print(f"{a.host}: whoever reaches this machine's port may use the page, and sees no password", flush=True)
    page.serve(page.build_page(generators, limits), limits, a.host, a.port)


def main() -> int:
    arguments = parse()
    return cli.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
