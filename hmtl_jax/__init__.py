"""hmtl_jax: hybrid multi-task learning of faces, one encoder, supervised and self-supervised."""

__version__ = "0.1.0"
