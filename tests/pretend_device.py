"""A device beside the CPU, on machines that have none: computed on the CPU, and told apart from it.

Where a GPU is, a training ends as soon as tensors of two devices meet or numpy is asked for one of them. `Elsewhere`
are tensors that say they are on another device, and with `pretended()` what is made on that device is one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.optim.adam as adam
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
"""Whose gradients, unlike those of a GPU that is not there, are computed in the thread that asks for them."""
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
_FROM_VALUES = (torch.tensor, torch.as_tensor)


class Elsewhere(torch.Tensor):
    """A tensor of the pretended device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, computed: torch.Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            computed.shape,
            strides=computed.stride(),
            storage_offset=computed.storage_offset(),
            dtype=computed.dtype,
            device=DEVICE,
        )

    def __init__(self, computed: torch.Tensor) -> None:
        self.computed = computed

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def __format__(self, spec: str) -> str:
        return format(self.computed, spec)

    def __reduce_ex__(self, protocol: Any) -> Any:  # as a checkpoint of a GPU that is read on the CPU
        return self.computed.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.computed.tolist()


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _FromValues(TorchFunctionMode):
    """What is made of Python's numbers never gets as far as the dispatcher: on `meta` it would be without them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in _FROM_VALUES and _is_elsewhere(given.get("device")):
            return Elsewhere(func(*args, **{**given, "device": "cpu"}))
        if func is torch.Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return Elsewhere(torch.tensor(args[1], dtype=args[0].dtype))
        return func(*args, **given)


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **options: Any) -> None:
        super().__init__("cpu" if device_type == DEVICE.type else device_type, *args, **options)


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every training be one on the pretended device."""
    trainer = pl.Trainer

    def make_trainer(accelerator: str, devices: int, **options: Any) -> pl.Trainer:
        return trainer(**options, strategy=SingleDeviceStrategy(DEVICE, accelerator=_Accelerator()))

    with monkeypatch.context() as patch, _Dispatch(), _FromValues():
        patch.setattr(pl, "Trainer", make_trainer)
        patch.setattr(torch, "autocast", _Autocast)
        patch.setattr(adam, "_device_dtype_check_for_fused", lambda *_: None)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # else a module keeps the kind of its tensors
        try:
            yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        assert device == DEVICE


def _is_elsewhere(device: Any) -> bool:
    return device is not None and torch.device(device) == DEVICE


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU; what comes of tensors elsewhere is elsewhere."""
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    elsewhere = [one for one in tensors if isinstance(one, Elsewhere)]
    if func not in _COPIES:
        _refuse_mixture(func, args, tensors)
    device = kwargs.get("device")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    results = func(*tree_map(_reveal, args), **tree_map(_reveal, kwargs))
    if not (elsewhere if device is None else _is_elsewhere(device)):
        return results
    given = {id(one.computed): one for one in elsewhere}
    return tree_map(lambda one: _conceal(one, given), results)


def _refuse_mixture(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    """Refuse what a GPU refuses: tensors of two devices, but for single numbers and indices of the CPU."""
    if func.overloadpacket in _INDEXING and isinstance(args[0], Elsewhere):
        tensors = [args[0], *args[2:3]]  # indices may be anywhere, what is put there may not
    places = {isinstance(one, Elsewhere) for one in tensors if one.dim()}
    is_mixed = len(places) == 2 or (places == {False} and any(isinstance(one, Elsewhere) for one in tensors))
    if is_mixed:
        raise RuntimeError(f"{func}: tensors of two devices")


def _reveal(value: Any) -> Any:
    return value.computed if isinstance(value, Elsewhere) else value


def _conceal(value: Any, given: dict[int, Elsewhere]) -> Any:
    """Put a result elsewhere; what was changed in place is what was given."""
    if not isinstance(value, torch.Tensor):
        return value
    found = given.get(id(value))
    return Elsewhere(value) if found is None else found
