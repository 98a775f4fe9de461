"""Support for models under FSDP2 (`torch.distributed.fsdp.fully_shard`).

FSDP2 takes a second to import, so this module does not import it before it is needed. Code that
has sharded a model has imported it already.
"""

import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch import nn

from clipseq.errors import ClipseqError

Method = TypeVar("Method", bound=Callable[..., Any])


def is_sharded(module: nn.Module) -> bool:
    """Return True if `fully_shard` was called on this module itself."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


class GathersWeights(nn.Module):
    """A module whose methods other than `forward` need the weights too (see `gathers_weights`)."""

    def _with_weights(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # This is the only method that is registered with FSDP2, because FSDP2 stores the wrapped
        # method on the instance, where it would hide, say, the `training_step` of a subclass.
        return method(*args, **kwargs)


def gathers_weights(method: Method) -> Method:
    """Wrap a method of a `GathersWeights`, so that FSDP2 gathers the weights for it.

    FSDP2 gathers them only for `forward`, unless ``register_fsdp_forward_method`` is called. This
    decorator calls it, so that users only need `fully_shard(model)`.
    """

    @wraps(method)
    def gathering(self: GathersWeights, *args: Any, **kwargs: Any) -> Any:
        if not is_sharded(self):
            return method(self, *args, **kwargs)
        if "_with_weights" not in vars(self):
            from torch.distributed.fsdp import register_fsdp_forward_method

            register_fsdp_forward_method(self, "_with_weights")
        return self._with_weights(partial(method, self), *args, **kwargs)

    return cast(Method, gathering)


def unsharded_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that the module had before `fully_shard` changed it."""
    kind = type(module)
    return cast(type[nn.Module], kind.__bases__[-1]) if is_sharded(module) else kind


def gather_state(model: nn.Module) -> tuple[dict[str, Any], bool]:
    """Return ``model.state_dict()`` with whole weights, and True if any of them was sharded.

    The values are tensors, except for what modules return as extra state. If any weight was
    sharded, every process must call this function, and only rank 0 gets the weights, on the CPU.
    """
    state = model.state_dict()
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is None or not any(isinstance(v, tensors.DTensor) for v in state.values()):
        return state, False
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options), True


def run_in_first_process(work: Callable[[], None]) -> None:
    """Call `work` in the process of rank 0, while the others wait for it.

    Raises:
        ClipseqError: in the other processes, if `work` failed in the process of rank 0.
    """
    failure: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            work()
        except Exception as error:
            dist.broadcast_object_list([f"{type(error).__name__}: {error}"], src=0)
            raise
    dist.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise ClipseqError(f"the first process failed: {failure[0]}")
