"""A request to stop affects this process only: its children live until it has saved."""

import subprocess
import sys
import textwrap

from tests.helpers.small_config import ROOT

# A loader process, a compiler and the like are started while a run listens; Slurm may signal all of them.
SCRIPT = """
    import multiprocessing, os, signal, subprocess, sys, threading, time
    from audiox_trainer.trainer.resilience.stop_signal import StopSignal

    def main():
        if sys.argv[1] == "threads":  # as a watchdog's, which was there before
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        before = signal.getsignal(signal.SIGUSR2)
        with StopSignal() as stop:
            server = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60,), daemon=True)
            started = []
            for start in (server.start, lambda: started.append(subprocess.Popen(["sleep", "60"]))):
                thread = threading.Thread(target=start)  # as the reader's
                thread.start()
                thread.join()
            assert stop.agree() == (False, False)
            for _ in range(3):  # a batch script repeats it
                os.killpg(0, signal.SIGUSR2)
                time.sleep(0.3)
            assert stop.agree(busy=True) == (True, True) and stop.asked
            assert server.is_alive() and started[0].poll() is None, "what it started is gone"
        assert signal.getsignal(signal.SIGUSR2) == before and not signal.pthread_sigmask(signal.SIG_BLOCK, ())
        server.terminate(), server.join(10), started[0].terminate(), started[0].wait(10)
        assert not server.is_alive()
        print("saved")

    if __name__ == "__main__":
        main()
"""


def asked(tmp_path, how):
    (tmp_path / "run.py").write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(tmp_path / "run.py"), how]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, start_new_session=True)


def test_children_live_on(tmp_path):
    for how in ("threads", "alone"):
        done = asked(tmp_path, how)
        assert (done.returncode, done.stdout) == (0, "saved\n"), (how, done.returncode, done.stderr)
