"""Add LoRA adapters to a model's linear layers, each to the tokens of its own requests."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..attention.probe import ProbeAttention
from ..context import current_lora, forward_context
from ..errors import EngineError, InvalidRequestError, ModelLoadError
from .peft import AdapterWeights, LayerShape, read_adapter

_PROBE_TOKENS = 3


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """Say which columns of the stacked adapters each token of a forward pass takes.

    Attributes:
        columns: those of all adapters of the batch, and maybe of others between them.
        foreign: `[T, columns]` bool, True where a column belongs to another adapter than the token's; None
            when every token takes all of them.
        head_foreign: the same for the rows that the head gets.
    """

    columns: slice
    foreign: torch.Tensor | None
    head_foreign: torch.Tensor | None


class LoraLinear(nn.Module):
    """Compute a linear layer, and add what the tokens' adapters add.

    The adapters' matrices are stacked: `A` of all of them is one `[columns, in_features]`, and `B` transposed
    is one `[columns, out_features]`. So two products serve any number of adapters, with the numbers of other
    adapters' columns set to zero in between: a token without an adapter gets the layer's own output,
    unchanged to the bit.

    Args:
        base: the layer; whatever replaces it here later must take and give the same shapes.
        shape: of the layer.
    """

    def __init__(self, base: nn.Module, shape: LayerShape) -> None:
        super().__init__()
        self.base = base
        self.shape = shape
        self.down: torch.Tensor | None = None  # None: no adapter changes this layer
        self.up: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `base(hidden_states)`, plus each token's `scaling * B @ A @ hidden_state`."""
        output = self.base(hidden_states)
        plan = current_lora()
        if plan is None or self.down is None or self.up is None:
            return output
        inner = nn.functional.linear(
            hidden_states.reshape(-1, self.shape.in_features), self.down[plan.columns]
        )
        foreign = plan.head_foreign if self.shape.is_head else plan.foreign
        if foreign is not None:
            inner.masked_fill_(foreign, 0.0)
        flat = output.reshape(-1, self.shape.out_features)
        return flat.addmm_(inner, self.up[plan.columns]).view(output.shape)


@dataclass(slots=True)
class Adapter:
    """Describe an adapter that a model holds.

    Attributes:
        number: never given twice, so that what was computed with one adapter is not taken for that of
            another of the same name; above 0.
        path: where it was read from.
        columns: its part of the stacked matrices.
        layers: names of the layers that it changes.
    """

    number: int
    path: str
    columns: slice
    layers: frozenset[str]


class LoraModel:
    """Put adapters into a model and take them out, between forward passes.

    Every linear layer is replaced by a `LoraLinear`, at its name. This comes before other replacements of
    linear layers, which find the originals at `base`: those that need several layers at once find none.

    Args:
        model: on its device, with our attention.
        max_loras: adapters that it may hold; with 0 the model stays as it is.

    Attributes:
        enabled: whether it may hold any.
        loaded: adapters that requests may name.

    Raises:
        ModelLoadError: the model does not run.
    """

    def __init__(self, model: PreTrainedModel, max_loras: int) -> None:
        self.enabled = max_loras > 0
        self._max_loras = max_loras
        self.loaded: Mapping[str, Adapter] = MappingProxyType({})
        self._retired: dict[str, list[Adapter]] = {}
        self._last_number = 0
        self._device = model.device
        self._prefix = model.base_model_prefix
        self._layers = _wrap(model) if self.enabled else {}
        if self.enabled:
            _refuse_partial(model, self._layers)
        # Shapes do not change: other threads read adapters against these.
        self._shapes = {name: layer.shape for name, layer in self._layers.items()}
        self._owners = torch.zeros(0, dtype=torch.int64, device=self._device)

    def number(self, name: str | None) -> int:
        """Return the number of an adapter; 0 for None. May be called from any thread.

        Raises:
            InvalidRequestError: none of this name is loaded.
        """
        return 0 if name is None else self._get(name, "lora").number

    def check_name(self, name: str) -> None:
        """Check that an adapter of this name may be loaded. May be called from any thread.

        Raises:
            InvalidRequestError: one of this name is, or this model can have none.
        """
        if not self.enabled:
            raise _disabled("lora_name")
        if not name:
            raise InvalidRequestError("The name of a LoRA adapter must not be empty", param="lora_name")
        if name in self.loaded:
            raise InvalidRequestError(
                f"A LoRA adapter {name!r} is loaded already, from {self.loaded[name].path!r}: remove it "
                "first, or take another name",
                param="lora_name",
            )

    def read(self, path: str) -> AdapterWeights:
        """Read an adapter for this model; see `peft.read_adapter`. May be called from any thread."""
        return read_adapter(path, self._shapes, prefix=self._prefix, device=self._device)

    def add(self, name: str, weights: AdapterWeights) -> None:
        """Let requests name an adapter.

        Raises:
            InvalidRequestError: one of this name is loaded, or `max_loras` are.
            EngineError: there is not enough memory.
        """
        self.check_name(name)
        if len(list(self._held())) >= self._max_loras:
            removed = "".join(f"; {name!r} is removed, but running requests use it" for name in self._retired)
            raise InvalidRequestError(
                f"No more than {self._max_loras} LoRA adapters may be loaded (`max_loras`), and these are: "
                f"{', '.join(map(repr, self.loaded)) or 'none'}{removed}",
                param="lora_name",
            )
        start, rank = self._owners.shape[0], weights.rank
        stacked: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        with _memory_for(name):
            for layer_name, layer in self._layers.items():
                if layer.down is None and layer_name not in weights.layers:
                    continue
                options = {"dtype": layer.shape.dtype, "device": self._device}
                down = torch.zeros(start + rank, layer.shape.in_features, **options)
                up = torch.zeros(start + rank, layer.shape.out_features, **options)
                if layer.down is not None and layer.up is not None:
                    down[:start], up[:start] = layer.down, layer.up
                if layer_name in weights.layers:
                    first, second = weights.layers[layer_name]
                    down[start : start + first.shape[0]], up[start : start + first.shape[0]] = first, second.T
                stacked[layer_name] = down, up
        self._last_number += 1
        adapter = Adapter(
            self._last_number, weights.path, slice(start, start + rank), frozenset(weights.layers)
        )
        self._owners = torch.cat([self._owners, self._owners.new_full((rank,), adapter.number)])
        for layer_name, (down, up) in stacked.items():
            self._layers[layer_name].down, self._layers[layer_name].up = down, up
        self.loaded = MappingProxyType({**self.loaded, name: adapter})

    def remove(self, name: str) -> None:
        """Let no more requests name an adapter; `free` gives its memory back.

        Raises:
            InvalidRequestError: none of this name is loaded.
        """
        adapter = self._get(name, "lora_name")
        self.loaded = MappingProxyType({key: value for key, value in self.loaded.items() if key != name})
        self._retired.setdefault(name, []).append(adapter)

    def free(self, used: Collection[int]) -> None:
        """Give the memory of removed adapters back, but of those with the numbers `used`."""
        for name, adapters in list(self._retired.items()):
            for adapter in [item for item in adapters if item.number not in used]:
                adapters.remove(adapter)
                self._cut(adapter)
            if not adapters:
                del self._retired[name]

    @property
    def has_removed(self) -> bool:
        """Tell whether `free` has something to look at."""
        return bool(self._retired)

    def plan(self, numbers: list[int], logits_index: torch.Tensor | None) -> LoraPlan | None:
        """Plan a forward pass.

        Args:
            numbers: `[T]`, each token's adapter, or 0 for none.
            logits_index: places of the tokens that reach the head; None: all of them do.
        """
        used = set(numbers)
        parts = [adapter.columns for adapter in self._held() if adapter.number in used]
        if not parts:
            return None
        columns = slice(min(part.start for part in parts), max(part.stop for part in parts))
        if len(used) == 1:  # one adapter for all, which has all of the columns
            return LoraPlan(columns, None, None)
        wanted = torch.tensor(numbers, dtype=torch.int64).to(self._device, non_blocking=True)
        foreign = wanted.unsqueeze(1) != self._owners[columns]
        return LoraPlan(columns, foreign, foreign if logits_index is None else foreign[logits_index])

    def _get(self, name: str, param: str) -> Adapter:
        if not self.enabled:
            raise _disabled(param)
        adapter = self.loaded.get(name)
        if adapter is None:
            raise InvalidRequestError(
                f"There is no LoRA adapter {name!r}; loaded: {', '.join(map(repr, self.loaded)) or 'none'}",
                param=param,
            )
        return adapter

    def _held(self) -> Iterator[Adapter]:
        yield from self.loaded.values()
        for adapters in self._retired.values():
            yield from adapters

    def _cut(self, adapter: Adapter) -> None:
        """Take an adapter, which is held no more, out of the stacked matrices."""
        start, stop = adapter.columns.start, adapter.columns.stop
        for name, layer in self._layers.items():
            if layer.down is None or layer.up is None:
                continue
            if any(name in other.layers for other in self._held()):
                layer.down = torch.cat([layer.down[:start], layer.down[stop:]])
                layer.up = torch.cat([layer.up[:start], layer.up[stop:]])
            else:
                layer.down = layer.up = None
        self._owners = torch.cat([self._owners[:start], self._owners[stop:]])
        for other in self._held():
            if other.columns.start >= stop:
                width = stop - start
                other.columns = slice(other.columns.start - width, other.columns.stop - width)


def _disabled(param: str) -> InvalidRequestError:
    return InvalidRequestError(
        "This engine can have no LoRA adapters: give `EngineConfig.lora_adapters`, or `max_loras` of 1 or "
        "more to load some later",
        param=param,
    )


@contextmanager
def _memory_for(name: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's own is a RuntimeError
        raise EngineError(f"There is not enough memory for the LoRA adapter {name!r}: {error}") from error


def _wrap(model: PreTrainedModel) -> dict[str, LoraLinear]:
    """Replace all linear layers; return what replaces them, by name."""
    head = model.get_output_embeddings()
    layers = {}
    for parent_name, parent in list(model.named_modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                sizes = child.in_features, child.out_features
            elif isinstance(child, Conv1D):
                sizes = child.nx, child.nf
            else:
                continue
            layer = LoraLinear(child, LayerShape(*sizes, child.weight.dtype, is_head=child is head))
            setattr(parent, child_name, layer)
            layers[f"{parent_name}.{child_name}" if parent_name else child_name] = layer
    return layers


@torch.inference_mode()
def _refuse_partial(model: PreTrainedModel, layers: Mapping[str, LoraLinear]) -> None:
    """Mark the layers that do not get each token once, in order, such as those of experts.

    Of an expert that happens to get all tokens its neighbours tell: none of the layers that are named alike,
    but for numbers, can have adapters then.
    """
    rows: dict[str, list[int]] = {name: [] for name in layers}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, seen=rows[name]: seen.append(args[0].shape[:-1].numel())
        )
        for name, layer in layers.items()
    ]
    tokens = torch.arange(_PROBE_TOKENS, device=model.device).unsqueeze(0)
    try:
        with forward_context(ProbeAttention()):
            model(input_ids=tokens, use_cache=False, return_dict=True)
    except (
        NotImplementedError,
        AttributeError,
    ) as error:  # such as code that reads a layer's `weight` itself
        raise ModelLoadError(f"This model cannot run with LoRA adapters: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    partial = {_kind(name) for name, seen in rows.items() if seen != [_PROBE_TOKENS]}
    for name, layer in layers.items():
        if _kind(name) in partial:
            layer.shape = dataclasses.replace(
                layer.shape,
                refusal="gets only some of the tokens, or some twice: this engine adds no adapters there",
            )


def _kind(name: str) -> str:
    return re.sub(r"\d+", "*", name)
