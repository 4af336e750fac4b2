"""The contract for plugins: everything that a plugin may import at module level. Imports no torch or transformers.

A plugin is a module with hook functions. Each returns descriptors (`LoaderSpec`, `QuantizerSpec`, …). Their
`factory` and `options` are dotted strings, imported only when a run uses the component:

    from smollm3_finetune.api import AdapterSpec, Op, hookimpl

    @hookimpl
    def smollm3_adapters():
        return [AdapterSpec(name="scale", summary="one learned factor per layer",
                            factory="my_scale.adapter:ScaleAdapter", needs={Op.FORWARD, Op.GRAD_INPUT}, api=1)]

A factory is called with one validated options instance. It returns an object with the methods of the matching
protocol (`Loader`, `Quantizer`, `Adapter`, `Formatter`, `Objective`).
"""

from __future__ import annotations

from smollm3_finetune.api.capabilities import (
    ALL_OPS,
    Env,
    Op,
    Purpose,
)
from smollm3_finetune.api.data import (
    IGNORE_INDEX,
    REASONING_FIELDS,
    Conversation,
    Encoded,
    FlatObjective,
    Formatter,
    FormatterWithColumns,
    Objective,
    Renderer,
)
from smollm3_finetune.api.descriptors import (
    API_VERSION,
    AdapterCard,
    AdapterSpec,
    ComponentSpec,
    FormatterSpec,
    LoaderSpec,
    NoOptions,
    ObjectiveSpec,
    QuantizerSpec,
    Requires,
    hookimpl,
    option,
)
from smollm3_finetune.api.helpers import (
    check_patterns,
    directory_source,
    expert_stacks,
    flatten_rows,
    has_supervised_logits,
    open_tensors,
    options_dict,
    pad_rows,
    read_json,
    seeded,
)
from smollm3_finetune.api.models import (
    Adapted,
    Adapter,
    Base,
    BuildContext,
    CheckpointQuantizer,
    LinearOps,
    Loader,
    ModelSource,
    Progress,
    Quantizer,
    StoredLayers,
    Task,
)
from smollm3_finetune.api.quantizers import (
    DEQUANTIZABLE,
    DequantizingOps,
    architecture_of,
    check_layerwise,
    frozen_linear,
    group_size_error,
    layers_to_quantize,
    load_layerwise,
    ops_for_layers,
    packed_reasons,
    refuse_quantized,
    rounding_dtype,
)
from smollm3_finetune.cache.fingerprint import fingerprint
from smollm3_finetune.errors import (
    ConfigError,
    DataError,
    IncompatibleError,
    MissingRequirementError,
    ModelError,
    SmolLM3Error,
    UnsupportedOp,
    WriteError,
    is_resource_error,
)

__all__ = [
    "ALL_OPS",
    "API_VERSION",
    "DEQUANTIZABLE",
    "IGNORE_INDEX",
    "REASONING_FIELDS",
    "Adapted",
    "Adapter",
    "AdapterCard",
    "AdapterSpec",
    "Base",
    "BuildContext",
    "CheckpointQuantizer",
    "ComponentSpec",
    "ConfigError",
    "Conversation",
    "DataError",
    "DequantizingOps",
    "Encoded",
    "Env",
    "FlatObjective",
    "Formatter",
    "FormatterSpec",
    "FormatterWithColumns",
    "IncompatibleError",
    "LinearOps",
    "Loader",
    "LoaderSpec",
    "MissingRequirementError",
    "ModelError",
    "ModelSource",
    "NoOptions",
    "Objective",
    "ObjectiveSpec",
    "Op",
    "Progress",
    "Purpose",
    "Quantizer",
    "QuantizerSpec",
    "Renderer",
    "Requires",
    "SmolLM3Error",
    "StoredLayers",
    "Task",
    "UnsupportedOp",
    "WriteError",
    "architecture_of",
    "check_layerwise",
    "check_patterns",
    "directory_source",
    "expert_stacks",
    "fingerprint",
    "flatten_rows",
    "frozen_linear",
    "group_size_error",
    "has_supervised_logits",
    "hookimpl",
    "is_resource_error",
    "layers_to_quantize",
    "load_layerwise",
    "open_tensors",
    "ops_for_layers",
    "option",
    "options_dict",
    "packed_reasons",
    "pad_rows",
    "read_json",
    "refuse_quantized",
    "rounding_dtype",
    "seeded",
]
