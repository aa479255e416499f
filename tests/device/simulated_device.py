"""A simulated accelerator, so that machines without one check the code's path on a device.

A tensor on it says that its device is "simulated", and is computed on the CPU, with real numbers: the same as on the
CPU, random ones too. Two things become visible that otherwise only a GPU shows:

- an operation whose tensors are on different devices fails, as it does there;
- each wait of the host for the device is counted, with the line of code that causes it. The host waits where it needs a
  value, or a shape that depends on values; where a tensor is copied to the host; and where one is copied to the device
  without ``non_blocking=True``.

    with SimulatedDevice():
        model.to(DEVICE)
        with waits_at_most(2):
            loss = model.training_step(batch, 0)

What it cannot show:

- kernels: their results, speed and memory, which types they take, and their own random numbers;
- autocast and bfloat16 on a device;
- the waits for values that are logged, or shown by a progress bar: they are few, and set by the user;
- what code does for ``device.type == "cuda"`` only. An operation of our own (``detkit::...``) is run as on the CPU;
- that a ``non_blocking`` copy from memory that is not pinned may make the host wait, too;
- which device a checkpoint names: what is saved is on the CPU;
- waits within Lightning's strategies for several devices.

`SimulatedDevice` registers a backend, for which PyTorch has to make room before the process's first ``backward``: so
what uses it runs in a process of its own, see test_device.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torchvision  # noqa: F401, its operators are named below
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import detkit.boxes  # noqa: F401, likewise

from .waits import Waits, check_waits, project_line

NAME = "simulated"
# There is no public name for a backend without C++; it is the same in torch 2.11 to 2.15.
backend_registration._setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
torch.simulated.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]  # asked for by `torch.autocast`

aten = torch.ops.aten
#: Operations that wait, though they have none of `WAITING_TAGS`.
WAITING = {torch.ops.torchvision.nms.default, torch.ops.detkit.kept_by_nms.default}
#: PyTorch's own marks of operations whose result, or its shape, the host has to know.
WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
#: Operations that take a number from the host as a tensor without dimensions, besides pointwise ones.
TAKES_NUMBER = {aten.fill_, aten.masked_fill, aten.masked_fill_, aten.index_fill, aten.index_fill_, *INDEXING}

#: How often the host has waited so far, by what it waited for and the line of code.
_waits = Waits()


class Simulated(Tensor):
    """A tensor on the simulated device; ``values_on_host`` holds its numbers."""

    values_on_host: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Simulated:
        with torch.inference_mode(False):  # else a view of a parameter fails in inference mode
            self = Tensor._make_wrapper_subclass(
                cls,
                values.size(),
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                layout=values.layout,
                device=DEVICE,
            )
        self.values_on_host = values
        return self

    def __repr__(self, **_: Any) -> str:
        return f"Simulated({self.values_on_host})"

    def tolist(self) -> Any:
        return self.cpu().tolist()  # PyTorch's own refuses subclasses

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(protocol)  # files hold plain tensors

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class SimulatedDevice(TorchDispatchMode):
    """Within it, `DEVICE` can be given wherever PyTorch takes a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode operations that are made of others, such as `Tensor.to`, arrive whole
            result = func.decompose(*args, **(kwargs or {}))
        return _run(func, args, kwargs or {}) if result is NotImplemented else result


@contextmanager
def counted_waits() -> Iterator[Waits]:
    """Counts the waits within: how many, by what the host waited for and the line of code; complete at the end."""
    before, within = _waits.copy(), Waits()
    yield within
    within.update(_waits - before)


@contextmanager
def waits_at_most(limit: int) -> Iterator[None]:
    """An AssertionError with a table of the waits where there are more within."""
    with counted_waits() as found:
        yield
    check_waits(found, limit)


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of an operation, computed on the CPU; it is on the simulated device if its inputs are."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    on_device = any(isinstance(each, Simulated) for each in tensors)
    if "device" in kwargs and kwargs["device"] is not None:
        target = torch.device(kwargs["device"]).type
        kwargs = {**kwargs, "device": torch.device("cpu")} if target == NAME else kwargs
        if func is aten._to_copy.default:
            _count_copy(tensors[0], target, kwargs.get("non_blocking", False))
        on_device = target == NAME
    elif func is aten.copy_.default:
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        _count_copy(tensors[1], tensors[0].device.type, non_blocking)
    elif on_device:
        _check_devices(func, args, tensors)
        if operation := _awaited(func, args, tensors):
            _count(operation)
    result = func(*_on_host(args), **_on_host(kwargs))
    if not on_device:
        return result
    return _in_place(func, args, kwargs, tree_map_only(Tensor, Simulated, result))


def _on_host(values: Any) -> Any:
    return tree_map_only(Simulated, lambda each: each.values_on_host, values)


def _in_place(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Any:
    """The result, in which the arguments that an operation has changed stand for themselves."""
    changed = {
        next(iter(argument.alias_info.before_set)): kwargs[argument.name] if argument.name in kwargs else args[i]
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        if argument.name in kwargs or i < len(args)
    }
    returns = [each.alias_info for each in func._schema.returns]
    if not any(each is not None and each.is_write for each in returns):
        return result
    results = [result] if len(returns) == 1 else result
    same = [
        changed[next(iter(alias.before_set))] if alias is not None and alias.is_write else each
        for each, alias in zip(results, returns, strict=True)
    ]
    return same[0] if len(returns) == 1 else tuple(same)


def _check_devices(func: Any, args: Sequence[Any], tensors: Iterable[Tensor]) -> None:
    """Refuse tensors of the host, but for numbers without dimensions and indices."""
    takes_number = torch.Tag.pointwise in func.tags or func.overloadpacket in TAKES_NUMBER
    takes_indices = func.overloadpacket in INDEXING and isinstance(args[0], Simulated)
    for each in tensors:
        if isinstance(each, Simulated) or (takes_number and each.dim() == 0):
            continue
        if not (takes_indices and any(each is index for index in args[1])):
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {func} is given one of shape {tuple(each.shape)} that "
                f"is on the CPU; in {project_line()}"
            )


def _awaited(func: Any, args: Sequence[Any], tensors: Iterable[Tensor]) -> str | None:
    """What the host waits for in this operation; None: for nothing."""
    if func.overloadpacket in INDEXING:
        indices = [each for each in args[1] if each is not None]
        masks = [each for each in indices if each.dtype in (torch.bool, torch.uint8)]
        number = len(args) > 2 and args[2].dim() == 0
        if masks and not (number and indices == masks[:1]):  # that one is filled in
            return "indexing by a mask"
        return None if all(isinstance(each, Simulated) for each in indices) else "copy of indices to the device"
    return func.overloadpacket.__name__ if func in WAITING or WAITING_TAGS & set(func.tags) else None


def _count_copy(source: Tensor, target: str, non_blocking: bool) -> None:
    if isinstance(source, Simulated) and target == "cpu":
        _count("copy to the host")
    elif not isinstance(source, Simulated) and target == NAME and not non_blocking:
        _count("copy to the device")


def _count(operation: str) -> None:
    _waits[operation, project_line()] += 1


# What PyTorch calls below all modes, such as in `torch.tensor` and `Tensor.new_tensor`.
def _empty(size: Sequence[int], dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return Simulated(torch.empty(size, dtype=dtype))


def _empty_strided(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return Simulated(torch.empty_strided(size, stride, dtype=dtype))


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    _count_copy(source, target.device.type, non_blocking)
    _on_host(target).copy_(_on_host(source))
    return target


_library = torch.library.Library("aten", "IMPL")
for _name, _function in (("empty.memory_format", _empty), ("empty_strided", _empty_strided), ("copy_", _copy)):
    _library.impl(_name, _function, "PrivateUse1")
