"""Addresses of what lies elsewhere, as fsspec writes them."""

import re

ADDRESS = re.compile(r"([a-zA-Z][\w+.-]*)(?:://|::.*://)")
