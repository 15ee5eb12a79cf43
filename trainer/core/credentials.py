"""Credentials come from the environment only: a configuration that holds one is refused, and no message shows one."""

import os
import re
from typing import Any

# user:password@ of an address, signatures of presigned addresses, keys as AWS and Hugging Face write them.
PATTERNS = (
    re.compile(r"(?<=://)[^/\s@]+:[^/\s@]+(?=@)"),
    re.compile(
        r"(?i)(?<=[?&])(?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId|sig|token)=[^&\s'\"]+"
    ),
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\bhf_[A-Za-z0-9]{20,}\b"),
)
NAMES = re.compile(r"(?i)(?:^|_)(?:secret|token|password|api_key|access_key)(?:_|$)")  # of keys and of variables

ADDRESSES = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")  # addresses that may be private


def refuse(data: Any, where: str) -> None:
    """Raises ValueError if a JSON value holds a credential. Names the key, never the value."""
    for path, value in _strings(data, ""):
        if any(pattern.search(value) for pattern in PATTERNS) or (value and NAMES.search(path.rsplit(".", 1)[-1])):
            raise ValueError(
                f"{where}: {path}: holds a credential, which would end up in logs and checkpoints; remove it here "
                f"and set it in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile)"
            )


def redacted(text: str) -> str:
    """Replace everything in a message that looks like a credential, and the values of environment variables that hold a
    credential or a private address."""
    for name, value in os.environ.items():
        if name in ADDRESSES and value:
            text = text.replace(value, f"[{name}]")
        if len(value) >= 8 and NAMES.search(name):
            text = text.replace(value, "[redacted]")
    for pattern in PATTERNS:
        text = pattern.sub("[redacted]", text)
    return text


def _strings(data: Any, path: str) -> list[tuple[str, str]]:
    """Dotted path and value of every string in a JSON value."""
    if isinstance(data, dict):
        return [found for key, value in data.items() for found in _strings(value, f"{path}.{key}".lstrip("."))]
    if isinstance(data, list):
        return [found for i, value in enumerate(data) for found in _strings(value, f"{path}.{i}".lstrip("."))]
    return [(path, data)] if isinstance(data, str) else []
