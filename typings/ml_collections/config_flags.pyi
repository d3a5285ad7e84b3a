"""The one function of config_flags that hmtl_jax calls."""

from typing import Any

def DEFINE_config_file(
    name: str, default: str | None = None, help_string: str = ..., **options: Any
) -> Any: ...
