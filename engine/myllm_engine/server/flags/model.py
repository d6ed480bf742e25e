"""Options that say which model is served, and how it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from ...config import SpeculativeConfig
from . import values
from .option import flag


@dataclass(frozen=True, slots=True)
class ModelFlags:
    """Choose the model."""

    title: ClassVar[str] = "Model"

    model: Annotated[
        str | None,
        typer.Argument(
            help="What to serve: a folder in Hugging Face's format, a hub id, a *.gguf file, or smollm2, the "
            "model that comes as a package.",
            show_default="smollm2",
        ),
    ] = None
    model_option: Annotated[
        str | None,
        flag("The same, as an option.", "--model", "--model-id", metavar="MODEL", env=("MODEL_ID",)),
    ] = None
    served_model_name: Annotated[
        list[str] | None,
        flag(
            "Names under which clients ask for the model, also parted by commas: the first one stands in "
            "answers. Default: the model as given.",
            metavar="NAME",
        ),
    ] = None
    tokenizer: Annotated[str | None, flag("Folder or hub id of another tokenizer.", metavar="MODEL")] = None
    revision: Annotated[
        str | None, flag("Branch, tag or commit on the hub.", metavar="NAME", env=("REVISION",))
    ] = None
    dtype: Annotated[
        str,
        flag(
            "Type of weights and activations; auto is bfloat16 where the device computes it natively, else "
            "float32 on a CPU and float16 on a GPU.",
            metavar="auto|bfloat16|float16|float32",
            env=("DTYPE",),
        ),
    ] = "auto"
    quantization: Annotated[
        str,
        flag(
            "Of the weights: as the file has them, where a kernel takes them (auto), undone (none), or made "
            "while the model is loaded (int8, int4).",
            "--quantization",
            "--quantize",
            "-q",
            metavar="auto|none|int8|int4",
            env=("QUANTIZE",),
        ),
    ] = "auto"
    device: Annotated[
        str, flag("Where to compute; auto is a GPU when there is one.", metavar="auto|cpu|cuda|cuda:N")
    ] = "auto"
    trust_remote_code: Annotated[
        bool, flag("Run Python code that comes with the model.", env=("TRUST_REMOTE_CODE",))
    ] = False
    seed: Annotated[int, flag("Seeds the requests that bring no seed.")] = 0
    generation_config: Annotated[
        str,
        flag(
            "Default sampling parameters on OpenAI's routes: the model's own generation_config.json (auto), "
            "OpenAI's (vllm or none), or those of such a file in a folder.",
            metavar="auto|vllm|none|FOLDER",
        ),
    ] = "auto"
    override_generation_config: Annotated[
        str | None,
        flag(
            """Values that win over these, as in '{"temperature": 0.5, "max_new_tokens": 256}'. A """
            "request's own win over all.",
            metavar="JSON",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class SpeedFlags:
    """Make it fast."""

    title: ClassVar[str] = "Speed"

    enable_prefix_caching: Annotated[
        bool, flag("Keep the keys and values of prompts for requests that begin alike.")
    ] = True
    speculative_config: Annotated[
        str | None,
        flag(
            "Speculative decoding, which changes no answer: "
            """'{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}', or """
            """'{"model": "FOLDER", "num_speculative_tokens": 4}' for a draft model.""",
            metavar="JSON",
        ),
    ] = None
    speculate: Annotated[
        int | None,
        flag(
            "TGI's short form: tokens that are proposed a step, found in the text so far.",
            min=1,
            env=("SPECULATE",),
        ),
    ] = None
    tensor_parallel_size: Annotated[
        int,
        flag(
            "GPUs (on CPU: processes) that share each layer.",
            "--tensor-parallel-size",
            "--num-shard",
            "-tp",
            env=("NUM_SHARD",),
        ),
    ] = 1
    enforce_eager: Annotated[bool, flag("Capture no CUDA graphs: a start without them is faster.")] = False
    compile: Annotated[
        bool,
        flag("Let torch.compile make the model's kernels: the start takes minutes, each step less."),
    ] = False

    def speculative(self) -> SpeculativeConfig | None:
        """Return how tokens are proposed; None: they are not.

        Raises:
            ValueError: it is said twice, or wrongly.
        """
        if self.speculative_config is None:
            return None if self.speculate is None else SpeculativeConfig(num_tokens=self.speculate)
        if self.speculate is not None:
            raise ValueError("`--speculate` and `--speculative-config` say the same: give one")
        return values.parse_speculative(self.speculative_config)


@dataclass(frozen=True, slots=True)
class LoraFlags:
    """Load adapters."""

    title: ClassVar[str] = "LoRA adapters"

    enable_lora: Annotated[bool, flag("Make room for LoRA adapters; --lora-modules does so, too.")] = False
    lora_modules: Annotated[
        list[str] | None,
        flag(
            "Adapters to load, each with the model name by which requests ask for it; also as "
            """'{"name": "NAME", "path": "PATH"}'.""",
            metavar="NAME=PATH",
        ),
    ] = None
    lora_adapters: Annotated[
        str | None,
        flag(
            "The same in TGI's form: adapters parted by commas, each with its name or, without one, named by "
            "its path.",
            metavar="[NAME=]PATH,...",
            env=("LORA_ADAPTERS",),
        ),
    ] = None
    max_loras: Annotated[
        int | None,
        flag("Adapters that may be loaded at once. Default: as many as are named here, or 1.", min=1),
    ] = None
    allow_runtime_lora: Annotated[
        bool,
        flag("Let requests load and unload adapters: /v1/load_lora_adapter, /v1/unload_lora_adapter."),
    ] = False
