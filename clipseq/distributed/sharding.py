"""What a model under FSDP2 (`torch.distributed.fsdp.fully_shard`) needs beyond a plain one.

Nothing here is imported from FSDP2, which takes a second to load: a model that is sharded has
loaded it.
"""

import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch import Tensor, nn

from clipseq.errors import ClipseqError

Method = TypeVar("Method", bound=Callable[..., Any])


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was called with this very module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


class GathersWeights(nn.Module):
    """A module with methods beside `forward` that compute with its weights (`gathers_weights`)."""

    def _with_weights(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # FSDP2 is told of this one method only: it wraps what it is told of in the instance, where
        # it would hide a subclass's own `training_step` from `super()`.
        return method(*args, **kwargs)


def gathers_weights(method: Method) -> Method:
    """A method of a `GathersWeights` for which FSDP2 gathers the weights, as for `forward`.

    So `fully_shard(model)` is all there is to do; ``register_fsdp_forward_method`` is done here.
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
    """The module's class, without what `fully_shard` has put in front of it."""
    kind = type(module)
    return cast(type[nn.Module], kind.__bases__[-1]) if is_sharded(module) else kind


def whole_state(model: nn.Module) -> tuple[dict[str, Tensor], bool]:
    """``model.state_dict()`` with sharded weights put together, and whether any was.

    Where one was, every process must call this, and the first alone gets the weights, on the CPU.
    """
    state = model.state_dict()
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is None or not any(isinstance(v, tensors.DTensor) for v in state.values()):
        return state, False
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(model, options=options)), True


def by_the_first_process(work: Callable[[], None]) -> None:
    """`work`, done by the process of rank 0; the others wait for it.

    Raises:
        ClipseqError: in the other processes, where `work` has raised in the first.
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
