"""The one door to mosaicml-streaming: every module that needs it imports its names from here.

`import streaming` pulls in torchvision, which has to be made importable first.
"""

from ...models.encoders.libraries import declare_torchvision

declare_torchvision()

from streaming import MDSWriter, Stream, StreamingDataLoader, StreamingDataset  # noqa: E402
from streaming.base.storage.download import CloudDownloader  # noqa: E402
from streaming.base.storage.upload import CloudUploader  # noqa: E402
from streaming.base.world import World  # noqa: E402

__all__ = [
    "CloudDownloader",
    "CloudUploader",
    "MDSWriter",
    "Stream",
    "StreamingDataLoader",
    "StreamingDataset",
    "World",
]
