"""A rank's verdict reaches all others, also those that cannot read it for a while."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from audiox_trainer.trainer.core.cli import ExitCode
from audiox_trainer.trainer.core.config import TimeoutsConfig
from audiox_trainer.trainer.core.hardware import free_port
from audiox_trainer.trainer.resilience import monitor, signed_store
from audiox_trainer.trainer.resilience.watchdog import RankRecord, RankStatus, Watchdog
from tests.helpers.small_config import ROOT
from tests.helpers.warm_python import python

pytestmark = pytest.mark.slow

# Threads of a library call Python, one after the other for some seconds, during many signs of life.
ATTACHING = """
    import ctypes, time
    import torch.distributed as dist
    from audiox_trainer.trainer.core.config import TimeoutsConfig
    from audiox_trainer.trainer.resilience.watchdog import Watchdog

    libc, kind = ctypes.CDLL(None), ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    called = kind(lambda _: 0)
    with Watchdog(TimeoutsConfig(start=60, first_step=60, step=60, save=60)) as watchdog:
        watchdog.pause = 0.001
        dist.init_process_group("gloo")
        watchdog.connect(dist.get_rank(), 2)
        end, step = time.monotonic() + 5, 0
        while time.monotonic() < end:
            watchdog.enter("step", step := step + 1)
            threads = [ctypes.c_ulong() for _ in range(8)]
            for thread in threads:
                libc.pthread_create(ctypes.byref(thread), None, called, None)
            for thread in threads:
                libc.pthread_join(thread, None)
"""

# Rank 0 fails at once. Rank 1 is in a library call that keeps Python's lock, so none of its threads can read.
SCRIPT = """
    import ctypes, os, sys
    import torch.distributed as dist
    from audiox_trainer.trainer.core.cli import run
    from audiox_trainer.trainer.core.config import TimeoutsConfig
    from audiox_trainer.trainer.data.shards import DamagedError
    from audiox_trainer.trainer.resilience.watchdog import Watchdog

    def work():
        with Watchdog(TimeoutsConfig(start=60, first_step=60, step=10, save=60)) as watchdog:
            dist.init_process_group("gloo")
            watchdog.connect(dist.get_rank(), 2)
            if dist.get_rank() == 0:
                raise DamagedError("shard 7 has changed")
            ctypes.PyDLL(None).sleep(int(sys.argv[1]))
            dist.barrier()

    sys.exit(run(work))
"""

# Somebody who knows no secret writes to the store, while rank 1 never comes to the barrier.
FORGER = """
    import json, os, sys, time
    from datetime import timedelta
    import torch.distributed as dist
    from audiox_trainer.trainer.core.cli import run
    from audiox_trainer.trainer.core.config import TimeoutsConfig
    from audiox_trainer.trainer.resilience.watchdog import Watchdog

    def work():
        with Watchdog(TimeoutsConfig(start=60, first_step=60, step=5, save=60)) as watchdog:
            dist.init_process_group("gloo")
            watchdog.connect(dist.get_rank(), 2)
            watchdog.enter("step", 3)
            if dist.get_rank() == 0:
                port, found = watchdog.store.port, []
                for name in ("tcp", "tcp6"):
                    for line in open(f"/proc/net/{name}").readlines()[1:]:
                        host, listening = line.split()[1], line.split()[3] == "0A"
                        if listening and int(host.split(":")[1], 16) == port:
                            found.append(host.split(":")[0])
                print("listens", *found, file=sys.stderr)
                forger = dist.TCPStore("127.0.0.1", port, None, False, timedelta(seconds=5), wait_for_workers=False)
                forger.set("verdict", json.dumps([0, "forged"]))
                forger.set("rank/1", json.dumps([10**6, ["step", 10**6, "", 1], "forged", False]))
                dist.barrier()
            time.sleep(100)

    sys.exit(run(work))
"""


# A rank's native call keeps Python's lock forever, or the rank is stopped or killed.
STUCK = """
    import ctypes, os, signal, sys, time
    import torch.distributed as dist
    from audiox_trainer.trainer.core.cli import run
    from audiox_trainer.trainer.core.config import TimeoutsConfig
    from audiox_trainer.trainer.resilience.watchdog import Watchdog

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def work():
        with Watchdog(TimeoutsConfig(start=60, first_step=60, step=4, save=60)) as watchdog:
            dist.init_process_group("gloo")
            watchdog.connect(rank, ranks)
            watchdog.enter("step", 11)
            dist.barrier()
            if rank == int(sys.argv[1]):
                if sys.argv[2] in ("stopped", "killed"):
                    os.kill(os.getpid(), {"stopped": signal.SIGSTOP, "killed": signal.SIGKILL}[sys.argv[2]])
                mutex = ctypes.create_string_buffer(64)
                for _ in range(2):  # the second waits forever
                    ctypes.PyDLL(None).pthread_mutex_lock(mutex)
            dist.barrier()

    sys.exit(run(work))
"""


def launch(script, text, *arguments, ranks=2):
    """Ranks of a script: their exit codes and their output."""
    script.write_text(textwrap.dedent(text))
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(
            [*python(), script, *arguments],
            cwd=ROOT,
            env=common | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate(timeout=600)[1] for process in processes]
    return [process.returncode for process in processes], said


@pytest.mark.parametrize("seconds", [0, 6])
def test_a_rank_that_does_not_listen_hears_later(tmp_path, seconds):
    codes, said = launch(tmp_path / "rank.py", SCRIPT, str(seconds))
    assert codes == [ExitCode.CORRUPT] * 2, said
    assert "error: shard 7 has changed" in said[0] and "error: rank 0: shard 7 has changed" in said[1]


def test_a_run_that_goes_on_is_not_looked_into(tmp_path):
    """Python 3.11 crashes with SIGSEGV if stacks are read while a C++ thread attaches itself."""
    codes, said = launch(tmp_path / "rank.py", ATTACHING)
    assert codes == [0, 0], said


def test_nobody_outside_the_run_can_end_it(tmp_path):
    """Neither is a forged verdict obeyed, nor does it stand in the way of the true one."""
    codes, said = launch(tmp_path / "rank.py", FORGER)
    assert codes == [ExitCode.HUNG] * 2, said
    assert "listens 0100007F\n" in said[0], "the loopback interface only"
    assert all("no progress for 5 s: rank 1 is in step 3" in text and "forged" not in text for text in said), said


@pytest.mark.parametrize(
    ("one_network", "master", "bound", "told"),
    [
        (True, "node1", "127.0.0.1", "127.0.0.1"),
        (False, "127.0.1.1", "::", "127.0.1.1"),  # the machine's own name in Debian's /etc/hosts
        (False, "192.0.2.1", "::", "192.0.2.1"),  # of no interface: translated
    ],
)
def test_the_store_binds_what_the_ranks_reach(monkeypatch, one_network, master, bound, told):
    monkeypatch.setenv("MASTER_ADDR", master)
    listening, host = signed_store._listen(one_network)
    with listening:
        assert (listening.getsockname()[0], host) == (bound, told)


def test_the_store_binds_one_interface_between_nodes(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node1")
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("192.0.2.1", "127.0.0.2")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    monkeypatch.setattr(signed_store.ipaddress, "ip_address", lambda host: SimpleNamespace(is_loopback=False))
    listening, host = signed_store._listen(False)
    with listening:
        assert listening.getsockname()[0] == host == "127.0.0.2"


def test_a_value_is_valid_only_with_its_signature_and_under_its_key():
    here = signed_store.SignedStore(dist.HashStore(), b"secret")
    other = signed_store.SignedStore(here.store, b"another")
    other.set("verdict", [0, "forged"])
    assert here.get("verdict") is None
    assert here.set_first("verdict", [78, "ours"]) == here.get("verdict") == [78, "ours"]
    assert here.set_first("verdict", [1, "later"]) == [78, "ours"]
    here.store.set("rank/1", here.store.get("verdict"))
    assert here.get("rank/1") is None and not here.has_all(["verdict", "rank/1"])
    here.store.set("rank/1", "")
    assert here.get("rank/1") is None and here.get("rank/2") is None


@pytest.mark.parametrize(
    ("ranks", "stuck", "how"), [(1, 0, "native"), (2, 0, "native"), (2, 1, "native"), (2, 1, "stopped")]
)
def test_a_rank_whose_threads_cannot_run_is_named_and_killed(tmp_path, ranks, stuck, how):
    codes, said = launch(tmp_path / "rank.py", STUCK, str(stuck), how, ranks=ranks)
    assert codes == [-signal.SIGKILL if rank == stuck else ExitCode.HUNG for rank in range(ranks)], said
    own, others = said[stuck], [text for rank, text in enumerate(said) if rank != stuck]
    reason = "it is stopped" if how == "stopped" else "a native call keeps Python's lock"
    named = rf"error: rank {stuck} is stuck in step 11( \(.*\))?: no sign of life for \d+ s, {reason}; killed"
    assert re.search(named, own), own
    assert how == "stopped" or re.search(r'File ".*rank.py", line \d+ in work', own), own
    assert all(f"error: rank {stuck} is stopped, stuck or dead: no sign of life" in text for text in others), others


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_was_killed_is_missed_at_once(tmp_path, killed):
    """Not only when it has been silent for `timeouts.step`."""
    codes, said = launch(tmp_path / "rank.py", STUCK, str(killed), "killed", ranks=3)
    assert codes == [-signal.SIGKILL if rank == killed else ExitCode.HUNG for rank in range(3)], said
    sentence = (
        rf"error: rank {killed} is dead: its process has ended, last heard of in (start-up|step 11); all ranks leave"
    )
    assert all(re.search(sentence, text) for rank, text in enumerate(said) if rank != killed), said


def test_nobody_waits_until_the_dead_have_read(monkeypatch):
    """Rank 0 saw one process end, and heard of another."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    watchdog, now, asked = Watchdog(TimeoutsConfig()), time.monotonic(), []
    watchdog.records = {rank: RankRecord(RankStatus(), now, now) for rank in range(4)}
    watchdog.neighbours.ended, watchdog.reported = {1: now}, {2}
    watchdog.store = SimpleNamespace(has_all=lambda keys: asked.extend(keys) or True)
    watchdog._wait_for_readers()
    assert asked == ["read/3"]


def test_a_rank_alone_that_was_stopped_may_continue(tmp_path):
    text = STUCK.replace("for _ in range(2)", "for _ in range(1)")
    (tmp_path / "rank.py").write_text(textwrap.dedent(text))
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "1", "RANK": "0"}
    command = [sys.executable, tmp_path / "rank.py", "0", "stopped"]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | common, stderr=subprocess.PIPE, text=True) as process:
        assert os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        time.sleep(4 + 4)
        process.send_signal(signal.SIGCONT)
        assert process.wait(600) == 0, process.stderr.read()


def test_a_rank_says_that_its_monitor_has_ended(capfd):
    with Watchdog(TimeoutsConfig(start=5)) as watchdog:
        watchdog.monitor.process.kill()
        time.sleep(3 * watchdog.pause)
    assert capfd.readouterr().err.count("rank 0: its monitor has ended") == 1


def test_a_sign_of_life_that_is_half_written_is_none():
    """A rank in good health was killed: half written, its time and its limit were zero."""
    rank = monitor.Monitor(0, 1)
    try:
        rank.report("step 3", 60.0)
        before = rank.state[:]
        rank.report("step 4", 10.0)
        after = rank.state[:]
    finally:
        rank.close()
    assert [monitor.last_report(whole)[1:] for whole in (before, after)] == [(60.0, b"step 3"), (10.0, b"step 4")]
    size = len(before)
    halves = [after[:n] + rest[n:] for rest in (before, bytes(size)) for n in range(size)]
    assert {monitor.last_report(half) for half in halves if half not in (before, after)} == {None}
