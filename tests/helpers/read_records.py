"""Read shards with mosaicml-streaming, as anybody would."""

from pathlib import Path

from audiox_trainer.trainer.data.reader import _machine_lock
from audiox_trainer.trainer.data.record import Record, from_columns
from audiox_trainer.trainer.data.streaming_library import StreamingDataset, World


def read_records(folder: Path, video_dim: int) -> list[Record]:
    """All records of a folder of shards, in their order. Tests run side by side: the shared memory is named under the
    lock that training takes, or two tests choose the same name."""
    with _machine_lock(World.detect()):
        data = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    return [from_columns(data[i], video_dim) for i in range(len(data))]
