"""When forward passes of anybody's network begin and end, whichever part of it is called, compiled or not.

While one runs, a function mode of torch's is on, which sees every operation. Where it cannot see, or would change what
is computed, it is taken off.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

FAST_PATHS = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""In evaluation mode these ask whether a function mode is on before they take fused kernels with other roundings."""


class Passes:
    """Has a mode see the forward passes of a model, or of the part of it that is called, from `open` to `close`.

    begun: called when a pass begins. ended: when it ends, also of one that Ctrl-C has broken off.
    gave_out: called with the output of one that came to its end, when the mode is off again.

    Passes without gradients (an evaluation between two updates) are not shown, nor is what runs inside torch.compile.
    """

    _alone: Passes | None = None

    def __init__(
        self,
        model: nn.Module,
        mode: TorchFunctionMode,
        *,
        begun: Callable[[], object],
        ended: Callable[[], object],
        gave_out: Callable[[Any], object],
    ) -> None:
        self._model = model
        self._modules = frozenset(model.modules())
        self._compiled = [module for module in self._modules if hasattr(module, "_orig_mod")]
        self._unseen = frozenset(
            (*self._compiled, *(module for module in self._modules if isinstance(module, FAST_PATHS)))
        )
        self._mode = mode
        self._begun, self._ended, self._gave_out = begun, ended, gave_out
        self._handles: list[RemovableHandle] = []
        self._compiled_in_place: dict[nn.Module, Any] = {}
        self._root: nn.Module | None = None
        self._paused: nn.Module | None = None
        self._depth = 0
        self._thread = 0

    @property
    def are_shown(self) -> bool:
        """Whether they are being shown."""
        return bool(self._handles)

    def open(self, *, alone: bool = False) -> None:
        """Begins to show them; alone: no others are shown any until these are closed."""
        if alone:
            Passes._alone = self
        if not self._handles:
            self._handles = list(self._attach())

    def close(self) -> None:
        """Ends it, and a pass that is running."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._end()
        if Passes._alone is self:
            Passes._alone = None
        for module, call in self._compiled_in_place.items():
            module._compiled_call_impl = call
        self._compiled_in_place.clear()

    def _attach(self) -> Iterator[RemovableHandle]:
        """Hooks of all modules at once, so that the network is seen whichever part of it is called."""
        if not self._compiled:
            yield register_module_forward_pre_hook(self._enter)
            yield register_module_forward_hook(self._leave, always_call=True)
        # torch warns of hooks of all modules beside compiled ones
        for module in (self._model, *self._compiled) if self._compiled else ():
            yield module.register_forward_pre_hook(self._enter)
            yield module.register_forward_hook(self._leave, always_call=True)
        for module in self._modules:
            if module._compiled_call_impl is not None:  # no hook runs before it
                self._compiled_in_place[module] = module._compiled_call_impl
                module._compiled_call_impl = self._without_mode(module._compiled_call_impl)

    def _enter(self, module: nn.Module, _inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        is_unseen = module in self._unseen
        if self._root is not None and module is not self._root and not is_unseen:
            return  # most of a pass's modules: soon done
        if module not in self._modules or not self._is_own_thread():
            return
        cannot_be_seen = is_unseen and not (isinstance(module, FAST_PATHS) and module.training)
        if self._root is None:
            is_shown = Passes._alone is None or Passes._alone is self
            if torch.is_grad_enabled() and not cannot_be_seen and is_shown:
                self._begun()
                self._root, self._depth, self._thread = module, 1, threading.get_ident()
                self._mode.__enter__()  # type: ignore[no-untyped-call]
        elif module is self._root:
            self._depth += 1
        elif cannot_be_seen and self._paused is None:
            self._paused = module
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _is_own_thread(self) -> bool:
        return self._root is None or self._thread == threading.get_ident()

    def _leave(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or (module is not self._root and module is not self._paused):
            return
        if not self._is_own_thread():
            return
        if module is self._paused:
            self._paused = None
            self._mode.__enter__()  # type: ignore[no-untyped-call]
        else:
            self._depth -= 1
            if self._depth == 0:
                self._end()
                self._gave_out(output)

    def _end(self) -> None:
        """Also of one that Ctrl-C has broken off, for which torch runs no hook, or that updates its own weights."""
        if self._root is None:
            return
        if self._paused is None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._root = self._paused = None
        self._depth = 0
        self._ended()

    def _without_mode(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def paused(*args: Any, **kwargs: Any) -> Any:
            if self._root is None or self._paused is not None:
                return call(*args, **kwargs)
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            try:
                return call(*args, **kwargs)
            finally:
                if self._root is not None:
                    self._mode.__enter__()  # type: ignore[no-untyped-call]

        return paused
