"""Shards to batches: weighted streams, one order of samples for every number of ranks, exact resume."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...models.config import ModelConfig
from ...models.encoders.base import TextEncoder
from ..config import DataConfig, RunConfig
from .record import Record, from_columns
from .shards import ShardError, check_shards, read_features
from .streaming_import import Stream, StreamingDataLoader, StreamingDataset
from .tasks import Assembler, Batch

TIMEOUT = 300.0  # seconds without a sample from the loader's processes before it counts as stuck


class _Tagged(StreamingDataset):
    """Adds the number of the stream that a sample came from."""

    def get_item(self, sample_id: int, retry: int = 7) -> Any:
        sample = super().get_item(sample_id, retry)
        shard, _ = self.spanner[sample_id]
        sample["stream"] = int(self.stream_per_shard[shard])
        return sample


class Reader:
    """The training samples of one rank, step by step.

    The order is a function of the seed alone: step s takes the same samples at the same places of the global batch
    whatever the number of ranks and loader processes, and wherever the run was resumed.
    """

    def __init__(self, config: RunConfig, encode_text: TextEncoder, rank: int, ranks: int) -> None:
        """Raises ShardError or ValueError when the shards are damaged, too few, or made with other encoders."""
        data, batch = config.data, config.training.global_batch
        self.config = config
        self.rank, self.ranks = rank, ranks
        total = sum(check_stream(s.path, config.model, data, rank == 0) for s in data.streams)
        self.steps_per_epoch = total // batch
        if not self.steps_per_epoch:
            raise ValueError(
                f"data.streams: {total} samples are fewer than training.global_batch {batch}; "
                f"add data or lower the batch"
            )
        streams = [Stream(local=s.path, proportion=sum(s.tasks.values())) for s in data.streams]
        self.dataset = _Tagged(
            streams=streams,
            epoch_size=self.steps_per_epoch * batch,
            batch_size=batch // ranks,
            shuffle=True,
            shuffle_seed=config.training.seed,
            num_canonical_nodes=data.canonical_nodes,
        )
        self.assemble = Assembler(config.model, data, encode_text, config.training.seed)
        self.loader = StreamingDataLoader(
            self.dataset,
            batch_size=batch // ranks,
            num_workers=data.workers,
            collate_fn=list,
            drop_last=True,
            timeout=TIMEOUT if data.workers else 0,
            multiprocessing_context="forkserver" if data.workers else None,
            persistent_workers=False,
        )

    def batches(self, start: int) -> Iterator[Batch]:
        """This rank's batches from step `start` on, without end.

        Raises ShardError when an epoch yields fewer batches than it should.
        """
        step = start
        while True:
            epoch, within = divmod(step, self.steps_per_epoch)
            self.dataset.load_state_dict(self._position(epoch, within))
            for samples in self.loader:
                yield self._batch(samples, step)
                step += 1
            if step != (epoch + 1) * self.steps_per_epoch:
                seen = step - epoch * self.steps_per_epoch
                raise ShardError(
                    f"epoch {epoch} ended after {seen} of {self.steps_per_epoch} batches: a shard of "
                    f"{', '.join(s.path for s in self.config.data.streams)} is missing or damaged; "
                    f"check the folders with launch/verify.py"
                )

    def _position(self, epoch: int, within: int) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "sample_in_epoch": within * self.config.training.global_batch,
            "num_canonical_nodes": self.config.data.canonical_nodes,
            "shuffle_seed": self.config.training.seed,
            "initial_physical_nodes": None,
        }

    def _batch(self, samples: list[dict[str, Any]], step: int) -> Batch:
        streams = self.config.data.streams
        records: list[Record] = [from_columns(s, self.config.model.video.dim) for s in samples]
        # The partitioning of mosaicml-streaming deals samples to ranks in turn.
        places = [i * self.ranks + self.rank for i in range(len(samples))]
        return self.assemble(records, [streams[s["stream"]].tasks for s in samples], step, places)


def check_stream(path: str, model: ModelConfig, data: DataConfig, hashes: bool) -> int:
    """Samples of a stream's folder, after checking that it is complete and was made with the model's encoders."""
    folder = Path(path)
    check_shards(folder, hashes=data.verify_hashes and hashes)
    features = read_features(folder)
    for name in ("codec", "text", "video"):
        ours, theirs = getattr(model, name), getattr(features, name)
        if name == "text":
            continue  # texts are stored as texts
        # Where the weights lie does not change what they are.
        ours, theirs = _without_weights(ours), _without_weights(theirs)
        if ours != theirs:
            raise ValueError(
                f"{folder}: its features were made with {name} {theirs}, the model wants {ours}; prepare the folder "
                f"again or use the model it was made for"
            )
    return features.samples


def _without_weights(config: Any) -> Any:
    return replace(config, **{k: "" for k in ("weights", "image_weights", "motion_weights") if hasattr(config, k)})
