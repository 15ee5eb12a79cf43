"""The configuration of a pretraining run, and what a distillation's has in common with it.

DeepSpeed's settings are derived from it in `engine/zero.py`; the `deepspeed` section is merged into them unread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ...kernels.ops import KernelsConfig
from ...models.audiox import SamplingConfig
from ...models.config import ModelSection, ReleasedModelConfig
from ...models.lora import LoraConfig
from ...models.strict import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Share
from .addresses import BUCKETS, address_problem
from .config_reader import parse_file
from .credentials import redacted
from .tasks import TASKS


@dataclass(frozen=True)
class InitConfig:
    """Weights that training begins from, in place of random ones. Moments and steps begin at zero, the moving average
    with these weights."""

    weights: str = ""  # a weights folder, a run, or a name on the hub as owner/name or owner/name@revision
    skip: tuple[str, ...] = ()  # patterns of tensors, as "conditioner.*", that are not taken from there

    def __post_init__(self) -> None:
        if self.skip and not self.weights:
            raise ValueError(f"skip: {list(self.skip)} of no weights; give init.weights too")


@dataclass(frozen=True)
class StreamConfig:
    """A folder of shards and its tasks. The weights of the tasks add up to its share of the samples."""

    path: str
    tasks: dict[str, float]
    captions: dict[str, float] = field(default_factory=dict)  # weights by "source/kind"; the first pattern that fits

    def __post_init__(self) -> None:
        if "://" in self.path and (problem := address_problem(self.path, BUCKETS)):
            raise ValueError(f"path: {redacted(self.path)}: {problem}")
        for task, weight in self.tasks.items():
            if task not in TASKS or weight <= 0:
                raise ValueError(f"tasks.{task}: weight {weight!r}; allowed: {', '.join(TASKS)}, each above 0")
        for pattern, weight in self.captions.items():
            if "/" not in pattern or weight < 0:
                raise ValueError(
                    f'captions.{pattern}: weight {weight!r}; expected a pattern of source/kind, as "*/count" or '
                    f'"manifest/*", with a weight from 0 on'
                )
        if not self.tasks:
            raise ValueError(f"tasks: empty; give at least one of {', '.join(TASKS)}")


@dataclass(frozen=True)
class DropoutConfig:
    """Probabilities with which a sample loses a condition, so that guidance has an unconditional branch."""

    text: Share = 0.1
    video: Share = 0.1
    audio: Share = 0.1
    all: Share = 0.1


@dataclass(frozen=True)
class DataConfig:
    streams: tuple[StreamConfig, ...]
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    workers: NonNegative = 0  # loader processes per rank
    cache: str = ""  # local folder for what is downloaded of streams in a bucket (s3://...)
    canonical_nodes: Positive = 8  # parts of the set that are read side by side, on however many nodes
    verify_hashes: bool = False  # compare every shard's hash at the start, not when a process first reads it
    accept_changed_data: bool = False  # resume a run although its streams or their shards have changed
    inpainting_hole: tuple[float, ...] = (0.2, 0.6)  # shortest and longest hole, as a share of the clip
    completion_prefix: tuple[float, ...] = (0.3, 0.6)  # shortest and longest given beginning, as a share of the clip

    def __post_init__(self) -> None:
        if not self.streams:
            raise ValueError("streams: empty; give at least one folder of shards")
        remote = [stream.path for stream in self.streams if "://" in stream.path]
        if remote and not self.cache:
            raise ValueError(f"cache: missing; {remote[0]} needs a local folder for what is downloaded")
        for name in ("inpainting_hole", "completion_prefix"):
            shares = getattr(self, name)
            if len(shares) != 2 or not 0 < shares[0] <= shares[1] < 1:
                raise ValueError(f"{name}: {list(shares)} must be two shares, 0 < shortest <= longest < 1")


@dataclass(frozen=True)
class LoopConfig:
    """The training loop of pretraining and distillation."""

    steps: Positive
    global_batch: Positive
    micro_batch: Positive  # samples that a rank computes at once
    seed: NonNegative = 0
    compile: bool = False  # torch.compile each transformer block
    compile_conditioner: bool = False  # the conditioner too, which doubles the time to compile
    fp8: bool = False  # matrix products of the blocks in 8-bit floats by torchao; needs an Ada or Hopper GPU or newer
    fp8_rows: bool = False  # with fp8: norms and SwiGLU write 8 bits themselves, with a scale per token; needs Triton
    activation_checkpointing: bool = False  # recompute each block's activations in the backward pass
    recompute_swiglu: bool = False  # recompute SwiGLU's output alone, which costs little time and saves less memory
    max_skipped_steps: Positive = 10  # this many non-finite steps in a row stop the run
    cpu_threads: NonNegative = 0  # CPU threads per rank; 0 leaves torch's choice

    def __post_init__(self) -> None:
        if self.compile_conditioner and not self.compile:
            raise ValueError("compile_conditioner: true needs compile: true; set both, or neither")
        if self.recompute_swiglu and self.activation_checkpointing:
            raise ValueError("recompute_swiglu: true with activation_checkpointing, which recomputes it too; set one")
        if self.recompute_swiglu and self.fp8_rows:
            raise ValueError("recompute_swiglu: true with fp8_rows, which stores it in 8 bits; set one of them")


@dataclass(frozen=True)
class TrainingConfig(LoopConfig):
    precision: Literal["fp32", "bf16"] = "bf16"
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"  # how noise levels are drawn
    timestep_logit_mean: float = 0.0  # of the logit; above 0 draws more noise, where the structure of a clip is decided
    timestep_uniform_share: Share = 0.0  # share of uniform levels among logit-normal ones: low ones settle detail


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (section VI-A)."""

    lr: PositiveFloat = 1e-5
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 1e-3
    eps: PositiveFloat = 1e-8
    max_grad_norm: NonNegativeFloat = 1.0  # largest gradient norm; 0 does not clip

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas: {list(self.betas)} must be two numbers of at least 0 and below 1")


@dataclass(frozen=True)
class ScheduleConfig:
    """InverseLR (section VI-A): (1 - warmup^(s+1)) · max(final, lr·(1 + s/inv_gamma)^(-power)). If `cooldown` is above
    0, the rate falls linearly to zero over that last share of the run."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.99
    inv_gamma: PositiveFloat = 1e6
    power: float = 0.5
    final_lr: NonNegativeFloat = 0.0
    cooldown: Share = 0.0


@dataclass(frozen=True)
class EmaConfig:
    """Exponential moving average of all trained weights: e ← e + (1 - d)·(w - e), d = min(decay, (1 + s)/(10 + s))."""

    decay: Share = 0.9999


INT8_STAGES = (1, 2)  # with weights in 8 bits, which are not sharded, and never in fp32


@dataclass(frozen=True)
class ZeroConfig:
    stage: Annotated[int, Field(ge=0, le=3)] = 2
    offload_optimizer: bool = False  # optimizer states in CPU memory

    def __post_init__(self) -> None:
        if self.offload_optimizer and self.stage == 0:
            raise ValueError(
                "offload_optimizer: true at stage 0, where DeepSpeed has nothing to offload; set stage to 1, 2 or 3"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    every: Positive = 1000  # steps
    keep_last: NonNegative = 3  # newest checkpoints kept; 0 keeps all
    keep_every: NonNegative = 0  # also keep the first checkpoint from each multiple of this many steps on; 0: none
    async_save: bool = False  # write while training continues; a kill may cost more than `every` steps
    local_every: NonNegative = 0  # steps between copies on the nodes themselves; 0: none
    local_folder: str = ""  # on each node's own disk or in its memory, such as /dev/shm: where those copies are

    def __post_init__(self) -> None:
        if self.keep_every % self.every:
            raise ValueError(f"keep_every: {self.keep_every} must be a multiple of every, {self.every}; or 0")
        if self.local_every and not self.local_folder:
            raise ValueError("local_folder: it is missing; name a folder on each node's own disk, or set local_every 0")
        if self.local_every >= self.every:
            raise ValueError(f"local_every: {self.local_every} must be below every, {self.every}; or 0")


@dataclass(frozen=True)
class TimeoutsConfig:
    """Seconds without progress after which a rank counts as stuck and all ranks exit, for each phase."""

    start: PositiveFloat = 900.0  # from the start of the process to its first step
    first_step: PositiveFloat = 1800.0  # with compilation; in distillation the first update of each kind
    step: PositiveFloat = 120.0
    save: PositiveFloat = 1800.0  # and previews

    @property
    def collective(self) -> float:
        """For one operation of a process group. It is longer than any phase: the watchdog knows which rank is missing,
        and has to speak before NCCL ends the process."""
        return 2 * max(self.start, self.first_step, self.step, self.save)


@dataclass(frozen=True)
class ChecksConfig:
    """Comparisons of the ranks while they train. Each counts steps between two of them; 0: never."""

    weights_every: NonNegative = 50  # checksums of the weights that every rank has; also before each save
    repeat_every: NonNegative = 1000  # a micro-batch computed twice, whose losses and gradient must be bitwise the same
    stragglers_every: NonNegative = 100  # each rank's time in data, forward, backward and communication


@dataclass(frozen=True)
class ValidationConfig:
    """The loss of the moving average on shards that training does not read (`launch/prepare.py split`). A
    checkpoint of such a step keeps it in its manifest, and the one with the lowest loss is never removed."""

    streams: tuple[StreamConfig, ...] = ()
    every: NonNegative = 0  # steps between; 0: never
    samples: Positive = 256  # always the same; as `global_batch` a multiple of ranks times micro-batch
    levels: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)  # the noise levels

    def __post_init__(self) -> None:
        if self.every and not self.streams:
            raise ValueError("streams: empty; give the folders of shards that were held out, or set every to 0")
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise ValueError(f"levels: {list(self.levels)} must be at least one number above 0, at most 1")


@dataclass(frozen=True)
class TrackerConfig:
    """A service that gets the lines of metrics.jsonl too. Credentials come from its own environment variables."""

    kind: Literal["wandb", "mlflow"]
    project: str = "audiox"  # W&B's project, MLflow's experiment
    offline: bool = False  # into the run's folder, without a network
    address: str = ""  # of an MLflow server; empty: MLFLOW_TRACKING_URI

    def __post_init__(self) -> None:
        if not self.project:
            raise ValueError("project: empty; give it a name")
        if self.address and (self.kind != "mlflow" or self.offline):
            raise ValueError(f"address: {self.address!r}; only mlflow takes one, and only if it is not offline")


@dataclass(frozen=True)
class LoggingConfig:
    every: Positive = 10  # steps between lines of metrics.jsonl
    preview_every: NonNegative = 0  # steps between sounds of the EMA weights; 0 makes none
    preview_prompts: tuple[str, ...] = ()
    trackers: tuple[TrackerConfig, ...] = ()  # beside TensorBoard

    def __post_init__(self) -> None:
        kinds = [tracker.kind for tracker in self.trackers]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"trackers: {', '.join(kinds)}; give each kind once")


@dataclass(frozen=True)
class ScoresConfig:
    """Sounds for fixed prompts by the moving average, judged by scorers (docs/evaluation.md). A checkpoint of such a
    step keeps the score `best` in its manifest, and the one with the best is never removed."""

    every: NonNegative = 0  # steps between, in a distillation updates of all models; 0: never
    scorers: str = ""  # the JSON file that lists them
    prompts: str = ""  # JSON lines with text, and reference where a scorer compares with true sounds
    best: str = ""  # the metric that says which checkpoint is the best; empty: the loss on held-out samples does
    patience: Positive = 3  # scorings in a row without a better one after which a line says so

    def __post_init__(self) -> None:
        if self.every and not (self.scorers and self.prompts):
            raise ValueError(f"every: {self.every} needs scorers and prompts; name both files, or set every to 0")


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The sections that pretraining and distillation share."""

    model: ModelSection
    data: DataConfig
    training: LoopConfig
    init: InitConfig = field(default_factory=InitConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    scores: ScoresConfig = field(default_factory=ScoresConfig)
    timeouts: TimeoutsConfig = field(default_factory=TimeoutsConfig)
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_tasks("data", self.data.streams)
        if self.training.recompute_swiglu and isinstance(self.model, ReleasedModelConfig):
            raise ValueError(
                "training.recompute_swiglu: true; the released network has other blocks than ours, set it to false"
            )
        if self.scores.best and self.scores.every and self.checkpoint.every % self.scores.every:
            raise ValueError(
                f"scores.every: {self.scores.every} must divide checkpoint.every, {self.checkpoint.every}, so that "
                f"every checkpoint has its score"
            )

    def _check_tasks(self, section: str, streams: Sequence[StreamConfig]) -> None:
        """A model of sound alone has no task that takes a video."""
        for i, stream in enumerate(streams if self.model.video is None else ()):
            if seeing := next((task for task in stream.tasks if TASKS[task].video), None):
                raise ValueError(
                    f"{section}.streams[{i}].tasks.{seeing}: takes a video, and model.video is null; leave the task out"
                )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(BaseConfig):
    """A pretraining run."""

    training: TrainingConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    lora: LoraConfig | None = None  # trains adapters of `init.weights`, which stay as they are
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_tasks("validation", self.validation.streams)
        self._check_validation()
        if isinstance(self.model, ReleasedModelConfig) and not self.init.weights:
            raise ValueError(
                "init.weights: missing; the released network has no training from nothing here: name its weights"
            )
        if self.lora and not self.init.weights:
            raise ValueError("init.weights: missing; lora trains adapters of weights that exist: name them")
        if self.lora and self.training.fp8:
            raise ValueError("training.fp8: true with lora, whose layers torchao does not know; set it to false")
        if self.lora and self.lora.int8 and self.zero.stage not in INT8_STAGES:
            where = f"zero.stage: {self.zero.stage} with lora.int8"
            raise ValueError(f"{where}, whose weights are neither sharded nor in fp32; set 1 or 2")

    def _check_validation(self) -> None:
        every, trained = self.validation.every, [stream.path for stream in self.data.streams]
        if both := [stream.path for stream in self.validation.streams if stream.path in trained]:
            raise ValueError(f"validation.streams: {both[0]} is in data.streams too; give what is not trained on")
        if every and self.checkpoint.every % every:
            raise ValueError(
                f"validation.every: {every} must divide checkpoint.every, {self.checkpoint.every}, so that every "
                f"checkpoint has its loss"
            )


def load_pretrain_config(path: str | Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Read the configuration of a pretraining."""
    return parse_file(PretrainConfig, path, overrides)


def check_ranks(training: LoopConfig, ranks: int) -> int:
    """Micro-batches per rank and step. Raises ValueError when ranks and micro-batch do not divide the global batch."""
    share = ranks * training.micro_batch
    if training.global_batch % share:
        raise ValueError(
            f"training.global_batch: {training.global_batch} is not a multiple of {ranks} ranks x micro_batch "
            f"{training.micro_batch} = {share}; change one of them"
        )
    return training.global_batch // share
