"""mosaicml-streaming: every module that needs it imports its names from here.

The package's own start imports its datasets of pictures, and with them torchvision and torch's compiler, and a loader
that imports transformers: seconds in every process, for nothing that is used here. So the packages are entered without
their `__init__`. `make setup` installs no client of any cloud but S3.
"""

import atexit
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec

if "streaming" not in sys.modules and (spec := find_spec("streaming")):
    sys.modules["streaming"] = module_from_spec(spec)
if "streaming.base" not in sys.modules and (spec := find_spec("streaming.base")):
    sys.modules["streaming.base"] = module_from_spec(spec)

from streaming.base import dataset
from streaming.base.dataset import StreamingDataset
from streaming.base.format import MDSWriter
from streaming.base.shared import prefix
from streaming.base.storage.download import CloudDownloader
from streaming.base.storage.upload import CloudUploader
from streaming.base.stream import Stream
from streaming.base.world import World

CLIENTS = {  # by scheme: module and package
    "s3": ("boto3", "boto3"),
    "gs": ("google.cloud.storage", "google-cloud-storage<3.3"),
    "oci": ("oci", "oci"),
    "alipan": ("alipcs_py", "AliPCS-Py"),
}

__all__ = [
    "CloudDownloader",
    "CloudUploader",
    "MDSWriter",
    "Stream",
    "StreamingDataset",
    "World",
    "check_client",
]


class _SharedMemory(dataset.SharedMemory):
    """Streaming opens the position of each epoch twice, which takes four files, and when it looks for a free name
    twelve of each data set on the machine that waits for its first epoch. It keeps them until the process ends, and
    many systems allow 1,024. This closes what was only opened, once nobody has it any more."""

    def __init__(
        self, name: str | None = None, create: bool | None = None, size: int = 0, auto_cleanup: bool = True
    ) -> None:
        super().__init__(name, create, size, auto_cleanup=False)
        if auto_cleanup and self.created_shms:
            atexit.register(self.cleanup)


dataset.SharedMemory = prefix.SharedMemory = _SharedMemory


def check_client(address: str) -> None:
    """Raises ValueError if the library that reads this kind of address is not installed."""
    library, package = CLIENTS.get(address.partition("://")[0], ("", ""))
    try:
        if library:
            import_module(library)
    except ModuleNotFoundError as error:
        raise ValueError(f"{address}: needs {library}, which is not installed: pip install '{package}'") from error
