"""Addresses of remote files, in the syntax of fsspec."""

import re

ADDRESS = re.compile(r"([a-zA-Z][\w+.-]*)(?:://|::.*://)")
