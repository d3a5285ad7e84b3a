"""Small files, whole or not at all."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any


def write_json(path: pathlib.Path, found: Mapping[str, Any]) -> None:
    """Whole or not at all: a process may be killed here."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(partial, path)
