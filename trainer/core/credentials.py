"""Credentials come from the environment only: a configuration that holds one is refused, and no message shows one."""

import os
import re
from typing import Any
from urllib.parse import quote

# Names of query parameters that sign an address or grant access: of AWS, CloudFront, Google, Azure and common servers.
_SIGNS = (
    "signature|credential|token|secret|passw|pwd|auth(?!or(?!iz))|jwt|session|api[-_]?key|access[-_]?(?:key|id)"
    "|subscription-key"
)
_EXACT = "sig|key|policy|key-pair-id|hdnea|hdnts|hmac|md5|code|sas|pass"
_PARAMETER = rf"(?:[\w.~-]*(?:{_SIGNS})[\w.~-]*|{_EXACT})"
PATTERNS = (
    # Everything before the host: user:password@, TOKEN@, and passwords with @ in them.
    re.compile(r"(?<=://)[^/\s'\"?#]+(?=@)"),
    re.compile(rf"(?i)(?:(?<=[?&;#])|(?<=%3F)|(?<=%26)){_PARAMETER}(?:=|%3D)(?:(?!%26)[^&\s'\"#])+"),
    re.compile(rf"(?i)\b(?:[\w-]*(?:{_SIGNS}|password))=[^&\s'\",;)\]]+"),  # of a form, or a library's message
    re.compile(r"\b[Bb]earer\s+[\w.~+/-]{8,}=*|\bBasic\s+[A-Za-z0-9+/]{12,}={0,2}"),
    # Keys whose form tells what they are: AWS, Hugging Face, GitHub, GitLab, Google, OpenAI and others, Slack, JWT.
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\bhf_[A-Za-z0-9]{20,}\b"),
    re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|glpat-[\w-]{20,})"),
    re.compile(r"\b(?:AIza[\w-]{35}|ya29\.[\w-]{20,})"),
    re.compile(r"\b(?:sk-[A-Za-z0-9_-]{20,}|xox[abeoprs]-[\w-]{10,}|npm_[A-Za-z0-9]{36})"),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"),
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
            for written in (value, quote(value, safe=""), quote(value)):
                text = text.replace(written, "[redacted]")
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
