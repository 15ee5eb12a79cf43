"""Measure how long the page of launch/app.py takes to answer a prompt: one visitor alone, and several at once."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from audiox_trainer.trainer.benchmarks.summary import SPREAD_COLUMNS, format_table, spread

SCRIPT = Path(__file__).with_name("app.py")
WARM_UP = 2  # visits


def measure(weights: str, text: str, rounds: int, visitors: int) -> dict[str, Any]:
    """Seconds from sending a prompt to having its sound, its spectrogram and its words: of a visitor alone, and of the
    first and the last of `visitors` who press the button together. Every visit has another seed, so nothing is known.

    Raises ValueError with the message of a page that does not start, or where the extra `page` is not installed.
    """
    try:
        from gradio_client import Client

        from audiox_trainer.trainer.generation.page import Form
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; the page needs it: pip install '.[page]'") from None
    name = Path(weights).name if Path(weights).is_dir() else weights
    with _page(weights) as address, ThreadPoolExecutor(visitors) as pool:
        client = Client(address, verbose=False)

        def visit(seed: int) -> float:
            """When the answer is there."""
            form = Form([name], text, "", None, None, "vary it", "", 0.6, None, None, None, seed, False)
            client.submit(*vars(form).values(), api_name="/generate").result()
            return time.perf_counter()

        for seed in range(WARM_UP):
            visit(seed)
        alone, first, last = [], [], []
        for k in range(rounds):
            seed, begin = 1000 * (k + 1), time.perf_counter()
            alone.append(visit(seed) - begin)
            begin = time.perf_counter()
            ends = sorted(end - begin for end in pool.map(visit, range(seed + 1, seed + 1 + visitors)))
            first.append(ends[0])
            last.append(ends[-1])
    return {"visitors": visitors, "alone": spread(alone), "first": spread(first), "last": spread(last)}


def summary_lines(result: dict[str, Any]) -> list[str]:
    names = {"alone": "one visitor", "first": "first of {}", "last": "last of {}"}
    rows = [{"name": f"{words.format(result['visitors'])}, s"} | result[key] for key, words in names.items()]
    return format_table(rows, SPREAD_COLUMNS)


@contextmanager
def _page(weights: str) -> Iterator[str]:
    """The address of a page that serves these weights."""
    command = [sys.executable, str(SCRIPT), "--weights", weights, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        said = []
        try:
            for line in process.stdout:
                said.append(line)
                if found := re.match(r"page: (http://\S+)", line):
                    yield found[1]
                    return
            raise ValueError(f"the page did not start: {''.join(said[-3:]).strip()}")
        finally:
            process.terminate()
