import pytest
import torch

from audiox_trainer.trainer.evaluation.judge_training import train_judge


@pytest.fixture(scope="session")
def judge():
    """A judge after a short training: right more often than chance, and often wrong."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other take ten times as long
    found = train_judge(seed=0, through_codec=lambda wave: wave, steps=50, batch=16, pool=16, learning_rate=2e-3)
    torch.set_num_threads(threads)
    return found
