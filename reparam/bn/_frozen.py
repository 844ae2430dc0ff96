"""Batch norm with frozen statistics, which is still an instance of its former class."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.module import register_module_module_registration_hook

from ._known_norm import why_unknown

FROZEN = "frozen_batch_norms"
"""The key in a state dict's metadata that holds, for each module, the names of the frozen batch norms inside it."""


class FrozenStatsBN(_NormBase):
    r"""Batch norm that uses its stored statistics in training too, while its affine keeps learning.

    $$y = \gamma \frac{x - \mu_{stored}}{\sqrt{\sigma^2_{stored} + \epsilon}} + \beta$$

    $\gamma$ and $\beta$ are Parameters; training never changes the statistics. The state-dict keys are BatchNorm's. The
    modules inside a norm with an activation (timm's BatchNormAct2d: `drop`, `act`) still run after it.

    `freeze_bn_stats` gives a layer a class that derives from this one and from the layer's former class, so code that
    looks for `nn.BatchNorm2d` still finds it. What such code does to batch norms does not touch the statistics:

    - `train()` and `momentum` have no effect.
    - `reset_running_stats()` and setting the statistics from outside are refused with a warning.
    - `convert_sync_batchnorm` returns a frozen layer.

    Only loading a state dict, `recalibrate_bn_stats` and `reset_parameters()` change the statistics.

    Source: X. Wang, C. Dong, Y. Shan, "RepSR: Training Efficient VGG-style Super-Resolution Networks with Structural
    Re-Parameterization and Batch Normalization", ACM MM 2022, arXiv 2205.05671: statistics of mini-batches first,
    population statistics in the later part of training. The frozen layers of torchvision, detectron2 and timm differ:
    they freeze the affine as well.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: unused while frozen; kept for unfreezing.
        affine: whether the layer has $\gamma$ and $\beta$.

    Shape:
        (N, C, *) to the same shape.

    Example:
        >>> bn = FrozenStatsBN(4).train()
        >>> x = torch.randn(2, 4, 5, 5)
        >>> torch.allclose(bn(x), x / (1 + bn.eps) ** 0.5)
        True
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, True, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x of shape (N, C, *) with the stored statistics, in train and in eval mode."""
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        for following in self.children():
            x = following(x)
        return x

    def reset_running_stats(self) -> None:
        """Warn, and keep the statistics: `torch.optim.swa_utils.update_bn` calls this on every norm."""
        _warn("reset_running_stats()")

    def reset_parameters(self) -> None:
        """Reset the affine and the statistics."""
        super().reset_running_stats()
        if self.affine:
            nn.init.ones_(self.weight)
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def __setattr__(self, name: str, value: Any) -> None:
        its_own = {"_loads", "_is_replica"} & set(vars(self))  # DataParallel sets copies on each replica
        if name in ("running_mean", "running_var") and not its_own:
            _warn(f"setting {name}")
        else:
            super().__setattr__(name, value)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._loads = True  # with assign=True, torch sets the statistics
        try:
            super()._load_from_state_dict(*args)
        finally:
            del self._loads

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Record in the metadata of every module around it that it is frozen; strict loading ignores metadata."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        path = prefix.split(".")[:-1]
        for depth in range(len(path) + 1):
            if (above := getattr(destination, "_metadata", {}).get(".".join(path[:depth]))) is not None:
                above.setdefault(FROZEN, []).append(".".join(path[depth:]))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the former class: pickle cannot find a class that is created at run time by its name."""
        if "_unfrozen_class" not in vars(type(self)):
            return super().__reduce_ex__(protocol)
        state = super().__reduce_ex__(2)[2]
        return _unpickled, (kind_before(self),), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if (kind := vars(self).pop("_unfrozen_class", None)) is not None:  # a pickle of version 0.1.0
            self.__class__ = frozen_class(kind)


def _warn(what: str) -> None:
    warnings.warn(
        f"{what} of a frozen batch norm has no effect: its statistics do not change. Call unfreeze_bn_stats(model) to "
        "let them change, or recalibrate_bn_stats(model, batches) to measure them again",
        stacklevel=3,
    )


@cache
def frozen_class(kind: Any) -> Any:
    """The class of a frozen batch norm of class `kind`: it derives from `FrozenStatsBN` and from `kind`."""
    _watch_replacements()
    members = {"_unfrozen_class": kind, "__module__": __name__, "__doc__": FrozenStatsBN.__doc__}
    return type(f"FrozenStats{kind.__name__}", (FrozenStatsBN, kind), members)


def kind_before(bn: nn.Module) -> Any:
    """The class of a batch norm before it was frozen."""
    return getattr(bn, "_unfrozen_class", type(bn))


def _unpickled(kind: Any) -> Any:
    cls = frozen_class(kind)
    return cls.__new__(cls)


def make_frozen(bn: nn.Module) -> None:
    """Freeze one batch norm in place."""
    if not isinstance(bn, FrozenStatsBN):
        kind: Any = type(bn)
        bn.__class__ = frozen_class(kind)


@cache
def _watch_replacements() -> None:
    register_module_module_registration_hook(_stays_frozen)


def _stays_frozen(parent: nn.Module, name: str, module: nn.Module | None) -> None:
    """Freeze a batch norm that replaces a frozen one and holds the same statistics tensor.

    `nn.SyncBatchNorm.convert_sync_batchnorm` and similar functions, such as timm's, build a new layer around the
    tensors of every batch norm that they find, and do not know about frozen ones.
    """
    old = parent._modules.get(name)
    if isinstance(old, FrozenStatsBN) and isinstance(module, _BatchNorm) and module.running_mean is old.running_mean:
        make_frozen(module)


def freeze_as_saved(model: nn.Module, metadata: dict[str, Any]) -> None:
    """Freeze the batch norms inside a module that were frozen when the state dict with this metadata was saved."""
    modules = dict(model.named_modules(remove_duplicate=False)) if FROZEN in metadata else {}
    found = [modules.get(name) for name in metadata.get(FROZEN, ())]
    thawed = [bn for bn in found if isinstance(bn, _BatchNorm) and not isinstance(bn, FrozenStatsBN)]
    ours = [bn for bn in thawed if bn.running_mean is not None and not why_unknown(bn)]
    for bn in ours:
        make_frozen(bn)
    if ours:
        warnings.warn(
            f"{len(ours)} batch norms of {type(model).__name__} are frozen now, because they were frozen when the "
            "state dict was saved; to train on batch statistics again, call unfreeze_bn_stats(model)",
            stacklevel=2,
        )


def freezes_as_saved(model: nn.Module) -> None:
    """Make a model freeze its batch norms when it loads a state dict that was saved with frozen ones."""
    if not any(getattr(hook, "hook", None) is _before_loading for hook in model._load_state_dict_pre_hooks.values()):
        model.register_load_state_dict_pre_hook(_before_loading)


def _before_loading(model: nn.Module, tensors: Any, prefix: str, metadata: dict[str, Any], *_: Any) -> None:
    freeze_as_saved(model, metadata)
