"""A model's weights as those see them who write them: by the checkpoint's names, wide, and on one device."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from goan_cli.errors import InvalidInput
from goan_cli.model.fp8 import E4M3, quantised


class ResidentWeights(Mapping[str, Tensor]):
    """Weights that may be kept in fp8, or in main memory, for a bake that runs on `device` in wide values.

    `tensors` is the model's state: every fp8 weight with its `scale` beside it. What is read under the name of a
    weight that is in fp8 or elsewhere is an empty tensor on `device`, made anew at every access: `store` then brings
    it into the weight's own memory and form, by way of `dtype` where that is fp8. All others are read as they are and
    written in place.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._scales = {name: tensors[_scale_name(name)] for name, each in tensors.items() if each.dtype == E4M3}
        beside = {_scale_name(name) for name in self._scales}
        self._tensors = {name: tensor for name, tensor in tensors.items() if name not in beside}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if name in self._scales:
            return torch.empty(tensor.shape, dtype=self._dtype, device=self._device)
        if tensor.device.type != self._device.type:
            return torch.empty_like(tensor, device=self._device)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @torch.no_grad()
    def store(self, name: str, value: Tensor) -> None:
        """Write a value of any float dtype and device, rounded to the wide dtype first and quantised where fp8 is.

        Raises InvalidInput for values in an fp8 weight that are not finite; the weight then is as it was.
        """
        resident = self._tensors[name]
        if name not in self._scales:
            if value is not resident:
                resident.copy_(value)
            return
        try:
            codes, scale = quantised(value.to(self._device, self._dtype))
        except InvalidInput as error:
            raise InvalidInput(f"{name}: {error.message}", hint=error.hint) from error
        resident.copy_(codes)
        self._scales[name].copy_(scale)


def _scale_name(name: str) -> str:
    return f"{name.removesuffix('weight')}scale"
