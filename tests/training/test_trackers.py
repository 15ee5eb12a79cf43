"""Trackers get what metrics.jsonl gets, continue a resumed run, and never end a training."""

import importlib.util
import json
import threading
from dataclasses import replace

import pytest

from audiox_trainer.trainer.core.config import TrackerConfig
from audiox_trainer.trainer.training.logs import Logs
from audiox_trainer.trainer.training.trackers import Trackers, check_trackers, open_trackers
from tests.helpers.small_config import small_config


class Memory:
    """Keeps what it gets; fails from step `fails` on."""

    def __init__(self, name="memory", fails=10**9):
        self.name, self.fails, self.rows, self.closed = name, fails, [], 0

    def metrics(self, step, values):
        if step >= self.fails:
            raise ConnectionError("the service is away")
        self.rows.append((step, dict(values)))

    def close(self):
        self.closed += 1


def config_of(kind, **settings):
    config = small_config()
    return replace(config, logging=replace(config.logging, trackers=(TrackerConfig(kind, offline=True, **settings),)))


def test_a_service_that_fails_is_named_once_and_left_out(tmp_path, capsys):
    good, bad = Memory(), Memory("wandb", fails=2)
    with Logs(tmp_path, True, 0, 3, "run", trackers=[good, bad]) as logs:
        for step in (1, 2, 3):
            logs.metrics(step, {"loss": 1 / step}, ())
    assert good.rows == [(1, {"loss": 1.0}), (2, {"loss": 0.5}), (3, {"loss": 1 / 3})]
    assert bad.rows == [(1, {"loss": 1.0})] and (good.closed, bad.closed) == (1, 0)
    said = capsys.readouterr().out
    assert said.count("wandb does not follow this run any more: the service is away") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    with Logs(tmp_path / "other", False, 0, 3, "run", trackers=[good]) as logs:  # another rank
        logs.metrics(1, {"loss": 1.0}, ())
    assert len(good.rows) == 3


def test_a_service_that_does_not_answer_makes_no_training_wait(capsys):
    answer, said = threading.Event(), []
    slow = Memory("mlflow")
    slow.close = answer.wait
    trackers = Trackers([slow], said.append)
    for step in (1, 2):
        trackers.metrics(step, {"loss": 1.0})
    trackers.close(patience=0.1)
    assert said == ["mlflow did not take everything within 0.1 s; the last values may be missing there"]
    answer.set()


def test_a_password_in_the_address_of_a_service_is_not_said():
    said, bad = [], Memory()

    def fail(step, values):
        raise ConnectionError("no answer from https://me:secret-word@tracker.example/api")

    bad.metrics = fail
    trackers = Trackers([bad], said.append)
    trackers.metrics(1, {})
    trackers.close()
    assert len(said) == 1 and "tracker.example" in said[0] and "secret-word" not in said[0]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for kind in ("wandb", "mlflow"):
        with pytest.raises(ValueError, match=rf"{kind} is not installed; pip install 'audiox-trainer\[{kind}\]'"):
            check_trackers(config_of(kind))
    check_trackers(small_config())


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        ('[{"kind": "neptune"}]', r"logging\.trackers\[0\]\.kind: 'neptune'"),
        ('[{"kind": "wandb"}, {"kind": "wandb"}]', r"trackers: wandb, wandb; give each kind once"),
        ('[{"kind": "wandb", "address": "http://a"}]', "address: 'http://a'; only mlflow takes one"),
        ('[{"kind": "mlflow", "project": ""}]', "project: empty"),
    ],
)
def test_what_is_refused(trackers, message):
    with pytest.raises(ValueError, match=message):
        small_config(None, f"logging.trackers={trackers}")


def test_mlflow_without_a_network(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")  # its database
    config = config_of("mlflow", project="tests")
    for start in (0, 2):  # the second one resumes
        with Logs(tmp_path, True, start, 4, "run", trackers=open_trackers(config, tmp_path)) as logs:
            for step in (start + 1, start + 2):
                logs.metrics(step, {"loss": 1 / step, "scores/FD bands": 2.0}, ())
    (number,) = json.loads((tmp_path / "trackers.json").read_text()).values()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow/mlflow.db'}")
    run = client.get_run(number)
    assert run.info.run_name == tmp_path.name and run.info.status == "FINISHED"
    history = client.get_metric_history(number, "loss")
    assert {(m.step, m.value) for m in history} == {(s, 1 / s) for s in (1, 2, 3, 4)}
    assert "config.json" in [file.path for file in client.list_artifacts(number)]


def test_wandb_without_a_network(tmp_path):
    pytest.importorskip("wandb")
    config = config_of("wandb", project="tests")
    for start in (0, 2):
        with Logs(tmp_path, True, start, 4, "run", trackers=open_trackers(config, tmp_path)) as logs:
            for step in (start + 1, start + 2):
                logs.metrics(step, {"loss": 1 / step}, ())
    (number,) = json.loads((tmp_path / "trackers.json").read_text()).values()
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2 and all(number in file.name and file.stat().st_size > 0 for file in files)
