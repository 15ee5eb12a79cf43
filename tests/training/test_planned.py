"""Plans agree with runs: the bytes of every kind of tensor, of buffers and of collective operations."""

import pytest

from audiox_trainer.trainer.core.gpu_specs import GPUS
from audiox_trainer.trainer.cost.planned_memory import Layout
from audiox_trainer.trainer.cost.planned_time import Cluster, update_time
from audiox_trainer.trainer.cost.role_bytes import planned_roles
from audiox_trainer.trainer.cost.simulated_memory import SimulatedModel
from audiox_trainer.trainer.cost.workload import workload
from tests.helpers.scenario_results import OFFLOADED, PLANNED
from tests.helpers.small_config import small_config


@pytest.fixture(scope="module")
def works():
    return {name: workload(small_config(None, *overrides), on_gpu=False) for name, overrides in PLANNED.items()}


@pytest.fixture(params=[1, 2], ids=["one rank", "two ranks"])
def launch(request, one, two):
    return one if request.param == 1 else two


@pytest.mark.parametrize("name", PLANNED)
def test_bytes_of_tensors_and_buffers_are_those_of_a_run(launch, works, name):
    (role,) = works[name].roles
    for rank, result in enumerate(launch.results(name)):
        planned = role.bytes(rank, launch.ranks)
        assert result["held"] == planned.__dict__
        assert result["staying"] == role.resident_gradients(planned.gradients)
        assert result["buffers"] == role.bucket_bytes(overlap=False)


@pytest.mark.parametrize("name", OFFLOADED)
def test_bytes_with_offload_are_those_of_a_run(launch, name):
    config = small_config(None, *OFFLOADED[name])
    simulated = SimulatedModel(config.model, config.training.precision, None, config.model.text.max_tokens)
    (role,) = planned_roles(config, simulated.sizes(), ())
    for rank, result in enumerate(launch.results(name)):
        assert result["held"] == role.bytes(rank, launch.ranks, accumulating=launch.ranks == 1).__dict__


@pytest.mark.parametrize("name", PLANNED)
def test_bytes_that_are_sent_are_those_of_a_run(two, works, name):
    """Each of two ranks sends half of a vector to gather or scatter it, the whole of it to reduce it for both. At stage
    3 DeepSpeed gathers what belongs to no layer of its own once more, some per cent."""
    work, config = works[name], small_config(None, *PLANNED[name])
    training, stage = config.training, config.zero.stage
    layout = Layout(2, None, training.micro_batch, training.global_batch, checkpointing=False)
    update = update_time(work, work.updates[0], layout, Cluster(GPUS["h100"], 2))
    for result in two.results(name):
        logged = result["logged"]
        sent = logged["all_reduce"] + logged.get("reduce_scatter_tensor", 0) // 2
        sent += logged.get("all_gather_into_tensor", 0)  # which logs a rank's own share
        assert update.sent == pytest.approx(sent, rel=0.05 if stage == 3 else 1e-3)
    assert update.between == 0


def test_groups_of_stage_3_are_several(works):
    role, one = (works[name].roles[0].bytes(0, 1) for name in ("planned in groups", "planned small 3 fp32"))
    assert role.optimizer > one.optimizer


def test_the_sizes_differ(works):
    """A wrong constant would be found."""
    assert len({work.parameters["total"] for work in works.values()}) == 2
