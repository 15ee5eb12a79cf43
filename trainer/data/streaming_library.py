"""mosaicml-streaming: every module that needs it imports its names from here.

`import streaming` imports torchvision, which has to be made importable first. `make setup` installs no client of any
cloud but S3.
"""

from importlib import import_module

from ...models.encoders.libraries import declare_torchvision

declare_torchvision()

from streaming import MDSWriter, Stream, StreamingDataLoader, StreamingDataset  # noqa: E402
from streaming.base.storage.download import CloudDownloader  # noqa: E402
from streaming.base.storage.upload import CloudUploader  # noqa: E402
from streaming.base.world import World  # noqa: E402

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
    "StreamingDataLoader",
    "StreamingDataset",
    "World",
    "check_client",
]


def check_client(address: str) -> None:
    """Raises ValueError if the library that reads this kind of address is not installed."""
    library, package = CLIENTS.get(address.partition("://")[0], ("", ""))
    try:
        if library:
            import_module(library)
    except ModuleNotFoundError as error:
        raise ValueError(f"{address}: needs {library}, which is not installed: pip install '{package}'") from error
