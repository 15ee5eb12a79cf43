"""A request to stop affects this process only: its children live until it has saved. So does any of its signals."""

import signal
import subprocess
import sys
import textwrap

import pytest

from tests.helpers.small_config import ROOT

pytestmark = pytest.mark.slow

# A loader process, a compiler and the like are started while a run listens; Slurm may signal all of them.
SCRIPT = """
    import contextlib, multiprocessing, os, signal, subprocess, sys, threading, time
    from audiox_trainer.trainer.resilience.stop_signal import StopSignal

    def main():
        if sys.argv[1] == "threads":  # as a watchdog's, which was there before
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        number = signal.Signals[sys.argv[2]]
        before = signal.getsignal(number)
        with StopSignal() as stop, contextlib.ExitStack() as children:
            server = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60,), daemon=True)
            started = []
            for start in (server.start, lambda: started.append(subprocess.Popen(["sleep", "60"]))):
                thread = threading.Thread(target=start)  # as the reader's
                thread.start()
                thread.join()
            for child in (server, started[0]):
                children.callback(child.kill)  # it would keep the test waiting
            assert stop.agree() == (False, False)
            for _ in range(3):  # a batch script repeats it
                os.killpg(0, number)
                time.sleep(0.3)
            assert stop.agree(busy=True) == (True, True) and stop.requested
            assert server.is_alive() and started[0].poll() is None, "what it started is gone"
        assert signal.getsignal(number) == before and not signal.pthread_sigmask(signal.SIG_BLOCK, ())
        print("saved")

    if __name__ == "__main__":
        main()
"""


def asked(tmp_path, how, number, *prefix):
    (tmp_path / "run.py").write_text(textwrap.dedent(SCRIPT))
    command = [*prefix, sys.executable, str(tmp_path / "run.py"), how, number]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup themselves
    )


@pytest.mark.parametrize("number", ["SIGUSR2", "SIGUSR1", "SIGHUP"])
@pytest.mark.parametrize("how", ["threads", "alone"])
def test_children_live_on(tmp_path, how, number):
    done = asked(tmp_path, how, number)
    assert (done.returncode, done.stdout) == (0, "saved\n"), (done.returncode, done.stderr)


def test_what_nohup_ignores_stays_ignored(tmp_path):
    done = asked(tmp_path, "alone", "SIGHUP", "nohup")
    assert done.returncode == 1 and "assert stop.agree(busy=True) == (True, True)" in done.stderr, done.stderr


def test_what_a_batch_script_ignores_until_the_run_listens_is_heard(tmp_path):
    """launch/slurm/rank.sh does so, lest a request to stop kills a rank that is still starting."""
    done = asked(tmp_path, "alone", "SIGUSR2", "bash", "-c", "trap '' USR2; exec \"$@\"", "bash")
    assert (done.returncode, done.stdout) == (0, "saved\n"), (done.returncode, done.stderr)
