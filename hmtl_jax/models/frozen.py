"""Layers whose parameters stay keep their running statistics too."""

import contextlib
import re

import flax.linen as nn


@contextlib.contextmanager
def running_statistics(pattern: str):
    """Inside, a batch norm whose scale the pattern matches normalises by its running statistics.

    pattern: the regular expression of the parameters that stay, searched for in paths such as
    `encoder/stem_norm/scale`; "" for none. So a frozen encoder maps an image to the same features
    in training and in evaluation, from the first step to the last. Its dropout stays on.
    """

    def keep(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            if re.search(pattern, "/".join((*context.module.path, "scale"))):
                kwargs = {**kwargs, "use_running_average": True}
        return call(*args, **kwargs)

    with nn.intercept_methods(keep) if pattern else contextlib.nullcontext():
        yield
