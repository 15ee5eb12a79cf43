"""Settings of every test: few threads, no network, fixed seeds, an own compile cache. Set before torch is imported."""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The tests' tensors are small: on a large machine more threads only wait for one another. Ranks that a test starts
# inherit this and may set less. Workers of pytest-xdist share the cores.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ["OMP_NUM_THREADS"] = str(max(1, min(4, len(os.sched_getaffinity(0)) // WORKERS)))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# Without a GPU the Triton kernels run in Triton's interpreter. It is chosen when they are imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A process killed while it compiles leaves an empty library behind, on which every later run would stumble.
_CACHE = tempfile.mkdtemp(prefix="inductor-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _CACHE


LAUNCHES = {"one", "two", "two_long", "four", "distilled", "references"}  # fixtures that take a minute to make


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests come first. Where workers share the files, what takes long begins first, so that no worker
    is left with it at the end."""
    slow = {item: item.get_closest_marker("slow") is not None for item in items}
    if WORKERS == 1:
        items.sort(key=slow.__getitem__)  # stable: the rest keeps its order
        return
    count = Counter(item.path for item in items if slow[item])
    launches = {item.path for item in items if LAUNCHES.intersection(item.fixturenames)}
    items.sort(key=lambda item: (item.path not in launches, -count[item.path], item.path, slow[item]))


def pytest_collection_finish() -> None:
    """Collecting garbage, which DeepSpeed does for each engine, does not look through all modules again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter) -> None:
    """How many hostile inputs were refused and accepted, and why."""
    reports = [
        r for r in terminalreporter.getreports("passed") + terminalreporter.getreports("failed") if r.when == "call"
    ]
    tests = [counts for report in reports for name, counts in report.user_properties if name == "hostile inputs"]
    if tests:
        from tests.helpers.fuzzing import summary

        terminalreporter.section("hostile inputs")
        for line in summary(tests):
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Processes that the test starts heed Ctrl-C, also where these tests run in a shell's background and do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def small():
    """The small model's run configuration, without data."""
    from tests.helpers.small_config import small_config

    return small_config()


@pytest.fixture(scope="session")
def forkserver() -> None:
    """The process from which others fork has imported what any of them needs; else the first test that starts one would
    decide, and the processes of later tests would import for seconds."""
    multiprocessing.set_forkserver_preload(
        [f"audiox_trainer.trainer.{name}" for name in ("data.reader", "prepare.make_block")]
    )
    multiprocessing.forkserver.ensure_running()


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that all workers of this run of pytest-xdist have in common."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def scenes(shared, forkserver) -> Path:
    """Procedural scenes encoded for the small model, in the streams `audio` and `music`. Nobody may change them."""
    from filelock import FileLock

    from audiox_trainer.trainer.prepare.prepare_scenes import prepare_scenes
    from tests.helpers.small_config import CLIPS, small_config

    folder = shared / "scenes"
    with FileLock(shared / "scenes.lock"):
        if not folder.exists():
            made = shared / "scenes being made"
            shutil.rmtree(made, ignore_errors=True)
            prepare_scenes(made, small_config().model, clips=CLIPS, seed=0, music_share=0.5, workers=1)
            made.replace(folder)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random weights of the small model, sampled in two guided steps by Euler's method."""
    from audiox_trainer.models.audiox import SamplingConfig
    from tests.helpers.random_weights import random_weights

    return random_weights(tmp_path_factory.mktemp("weights") / "random", SamplingConfig("euler", 2, 2.0))


@pytest.fixture(scope="module")
def generator(weights):
    from audiox_trainer.trainer.generation.generator import Generator

    return Generator(weights)


@pytest.fixture
def one_thread():
    """One thread, as `make` computes a clip; with more of them the last bits differ."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """A folder of sounds and films."""
    from tests.helpers.films import write_media

    return write_media(tmp_path_factory.mktemp("media"))


# Launches of one, two and four ranks, each made once for all the tests that read what it left.


@pytest.fixture(scope="session")
def training(shared) -> Path:
    """The folder of these launches."""
    folder = shared / "training"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def two(scenes, training):
    from tests.helpers.scenario_results import TWO_RANKS, Launch

    return Launch(2, scenes, training, TWO_RANKS)


@pytest.fixture(scope="session")
def two_long(scenes, tmp_path_factory):
    from tests.helpers.scenario_results import TWO_RANKS_LONG, Launch

    return Launch(2, scenes, tmp_path_factory.mktemp("training"), TWO_RANKS_LONG)


@pytest.fixture(scope="session")
def four(scenes, two):
    from tests.helpers.scenario_results import FOUR_RANKS, Launch

    return Launch(4, scenes, two.base, FOUR_RANKS)


@pytest.fixture(scope="session")
def one(scenes, two):
    from tests.helpers.scenario_results import ONE_RANK, Launch

    return Launch(1, scenes, two.base, ONE_RANK)
