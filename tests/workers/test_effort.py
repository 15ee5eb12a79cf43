"""What work takes is counted: cores by the process's clock, GPUs by the time that their networks run."""

import time

from audiox_trainer.trainer.workers.effort import Effort, Timed, on_device, spent


def busy(seconds):
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass


def test_only_a_gpus_time_is_a_gpus():
    before = spent()
    with on_device("cpu"):
        busy(0.02)
    assert (spent() - before).gpus == 0 and (spent() - before).cores >= 0.02
    with on_device("cuda:1"):
        time.sleep(0.02)
    assert (spent() - before).gpus >= 0.02


def test_values_come_with_what_they_took_since_the_beginning():
    def work(task):
        for _ in range(2):
            busy(0.02)
            with on_device(task):
                time.sleep(0.02)
            yield task

    (first, one), (second, two) = Timed(work)("cuda")
    assert first == second == "cuda"
    assert one.cores >= 0.02 and one.gpus >= 0.02 and two.cores >= one.cores + 0.02 and two.gpus >= one.gpus + 0.02


def test_it_is_said_in_hours():
    whole = sum([Effort(1800, 360)] * 2, Effort()) * 2
    assert str(whole) == "2.00 core hours, 0.40 GPU hours" and str(Effort(36)) == "0.01 core hours"
