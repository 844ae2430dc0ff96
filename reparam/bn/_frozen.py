"""Batch norm whose statistics are frozen, which still counts as the class of batch norm that it was."""

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
"""Where the metadata of a state dict has, for each module, the names of the frozen batch norms inside of it."""


class FrozenStatsBN(_NormBase):
    r"""Batch norm that normalises with its stored statistics in training too, while its affine goes on learning.

    $$y = \gamma \frac{x - \mu_{stored}}{\sqrt{\sigma^2_{stored} + \epsilon}} + \beta$$

    $\gamma$ and $\beta$ are Parameters; the statistics never change. The state-dict keys are BatchNorm's. Modules that
    a norm with an activation carries (timm's BatchNormAct2d: `drop`, `act`) run after it, as they did before.

    A layer that `freeze_bn_stats` froze is of a class of its own that derives from this one and from the class that it
    was of, so that code that asks for `nn.BatchNorm2d` finds it as before. What such code does to batch norms leaves
    the statistics alone: `train()` and `momentum` have no effect, `reset_running_stats()` and statistics that are set
    from outside are refused with a warning, and `convert_sync_batchnorm` makes a frozen layer of it. Only loading a
    state dict, `recalibrate_bn_stats` and `reset_parameters()`, which starts anew, change them.

    Source: X. Wang, C. Dong, Y. Shan, "RepSR: Training Efficient VGG-style Super-Resolution Networks with Structural
    Re-Parameterization and Batch Normalization", ACM MM 2022, arXiv 2205.05671: statistics of mini-batches first,
    population statistics in the later part of training. torchvision's, detectron2's and timm's frozen layers differ:
    they freeze the affine as well.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: kept for the day the statistics are unfrozen; unused here.
        affine: whether there are $\gamma$ and $\beta$.

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
        """Normalises x of shape (N, C, *) with the stored statistics, whatever the mode."""
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        for following in self.children():
            x = following(x)
        return x

    def reset_running_stats(self) -> None:
        """Warns, and leaves the statistics as they are: `torch.optim.swa_utils.update_bn` asks it of every norm."""
        _warn("reset_running_stats()")

    def reset_parameters(self) -> None:
        """Starts anew, statistics included."""
        super().reset_running_stats()
        if self.affine:
            nn.init.ones_(self.weight)
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def __setattr__(self, name: str, value: Any) -> None:
        its_own = {"_loads", "_is_replica"} & set(vars(self))  # DataParallel gives each replica copies
        if name in ("running_mean", "running_var") and not its_own:
            _warn(f"setting {name}")
        else:
            super().__setattr__(name, value)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._loads = True  # with assign=True, torch sets what it loads
        try:
            super()._load_from_state_dict(*args)
        finally:
            del self._loads

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Says that it is frozen in the metadata, which strict loading ignores, of every module around it."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        path = prefix.split(".")[:-1]
        for depth in range(len(path) + 1):
            if (above := getattr(destination, "_metadata", {}).get(".".join(path[:depth]))) is not None:
                above.setdefault(FROZEN, []).append(".".join(path[depth:]))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The class was made here, so that pickle could not find it by its name."""
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
        f"{what} of a frozen batch norm has no effect: its statistics stay as they are. unfreeze_bn_stats(model) lets "
        "them change, recalibrate_bn_stats(model, batches) measures them anew",
        stacklevel=3,
    )


@cache
def frozen_class(kind: Any) -> Any:
    """The class of batch norms of a class that were frozen: a `FrozenStatsBN` that counts as `kind` as well."""
    _watch_replacements()
    members = {"_unfrozen_class": kind, "__module__": __name__, "__doc__": FrozenStatsBN.__doc__}
    return type(f"FrozenStats{kind.__name__}", (FrozenStatsBN, kind), members)


def kind_before(bn: nn.Module) -> Any:
    """The class of a batch norm, before it was frozen."""
    return getattr(bn, "_unfrozen_class", type(bn))


def _unpickled(kind: Any) -> Any:
    cls = frozen_class(kind)
    return cls.__new__(cls)


def make_frozen(bn: nn.Module) -> None:
    """Freezes one batch norm, in place."""
    if not isinstance(bn, FrozenStatsBN):
        kind: Any = type(bn)
        bn.__class__ = frozen_class(kind)


@cache
def _watch_replacements() -> None:
    register_module_module_registration_hook(_stays_frozen)


def _stays_frozen(parent: nn.Module, name: str, module: nn.Module | None) -> None:
    """Freezes a batch norm that takes the place of a frozen one with its very statistics.

    `nn.SyncBatchNorm.convert_sync_batchnorm`, and timm's and others' like it, build a new layer around the tensors of
    every batch norm that they find, and know nothing of what is frozen.
    """
    old = parent._modules.get(name)
    if isinstance(old, FrozenStatsBN) and isinstance(module, _BatchNorm) and module.running_mean is old.running_mean:
        make_frozen(module)


def freeze_as_saved(model: nn.Module, metadata: dict[str, Any]) -> None:
    """Freezes the batch norms inside of a module that were frozen when the state dict with this metadata was saved."""
    modules = dict(model.named_modules(remove_duplicate=False)) if FROZEN in metadata else {}
    found = [modules.get(name) for name in metadata.get(FROZEN, ())]
    thawed = [bn for bn in found if isinstance(bn, _BatchNorm) and not isinstance(bn, FrozenStatsBN)]
    ours = [bn for bn in thawed if bn.running_mean is not None and not why_unknown(bn)]
    for bn in ours:
        make_frozen(bn)
    if ours:
        warnings.warn(
            f"{len(ours)} batch norms of {type(model).__name__} are frozen now, as they were when the state dict was "
            "saved; unfreeze_bn_stats(model) begins another training on batch statistics",
            stacklevel=2,
        )


def freezes_as_saved(model: nn.Module) -> None:
    """Makes a model freeze its batch norms when it loads the state dict of one in which they were frozen."""
    if not any(getattr(hook, "hook", None) is _before_loading for hook in model._load_state_dict_pre_hooks.values()):
        model.register_load_state_dict_pre_hook(_before_loading)


def _before_loading(model: nn.Module, tensors: Any, prefix: str, metadata: dict[str, Any], *_: Any) -> None:
    freeze_as_saved(model, metadata)
