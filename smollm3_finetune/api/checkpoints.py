"""For quantizers that read or write checkpoints, and for loaders that convert files.

Import everything from `smollm3_finetune.api`. torch and transformers are imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smollm3_finetune.api.models import Base, BuildContext, LinearOps, ModelSource
from smollm3_finetune.model_files.headers import LayerShape
from smollm3_finetune.model_files.stored import LayerTensors, StoredTensors

if TYPE_CHECKING:
    from torch import Tensor, nn

SHARD_BYTES = 5_000_000_000


def load_into(
    source: ModelSource,
    ctx: BuildContext,
    make_layer: Callable[[str, nn.Linear, LayerTensors], nn.Module],
    *,
    name: str,
    ops: Callable[[nn.Module], LinearOps | None],
    identity: Sequence[Any] = (),
    shape_of: Callable[[LayerTensors], tuple[int, int]] | None = None,
    ignore: Sequence[str] = (),
) -> Base:
    """The `load` of a quantizer that reads a quantized checkpoint into layers of its own.

    Returns the frozen model on `ctx.device`. The model is built from `config.json` without its `quantization_config`.
    Layers that have only a `weight` and a `bias` of an ordinary dtype in the checkpoint, and all other tensors, are
    loaded as `from_pretrained` loads them, in `ctx.dtype`. Quantized layers are read one by one, and never exist as
    dense weights. `source.path` must have safetensors files, one or several with an index.

    Args:
        make_layer: Returns the quantized layer, given its name in the model, the linear layer (out, in) that it
            replaces, and its tensors. The linear layer has no values, except for its bias (out,), which is loaded
            already, or None. The tensors are those of the checkpoint under the name of the layer, by the rest of
            their names: `tensors["scale"]`. Each is read from disk when it is accessed, on the CPU, in the dtype of the
            file. The layer that is returned has no dense weight and is moved to `ctx.device`.
        name: The quantizer's name, for errors, the progress bar and the fingerprint.
        ops: `Base.ops_for`, such as `ops_for_layers(…)`.
        identity: What determines the quantized values beside the weights of `source`. Hashed into `Base.fingerprint`.
        shape_of: Returns (out, in) of a layer, given its tensors; `tensors.shape("scale")` reads only a header. Needed
            if the checkpoint stores parts of different sizes of a fused layer. If it is given, every shape is compared
            with the model's before weights are read.
        ignore: Shell-style patterns of names of tensors that are not used on purpose, such as `*.k_scale`.

    A layer of the model may be fused from several layers of the checkpoint (`gate_up_proj` from `gate_proj` and
    `up_proj`), and experts may be stored one by one. `make_layer` is then called for each part, with the name in the
    checkpoint, and the outputs are joined. For a tensor of a layer that `make_layer` does not read, there is an error.

    Raises:
        ModelError: a tensor of the checkpoint has no place in the model, is not read, or is missing; a layer has
            another shape; the checkpoint has no quantized layer; a file is damaged.
        IncompatibleError: the model's code reads the weight of a quantized layer without calling it, or the loader of
            `source` does not load through `directory_source`.

    Example:
        def make(name, linear, tensors):
            return Int8Linear(tensors["codes"], tensors["scale"].to(ctx.torch_dtype), linear.bias)

        load_into(source, ctx, make, name="int8", ops=ops_for_layers(Int8Linear, Int8Linear.dense, ctx.torch_dtype))
    """
    from smollm3_finetune.api.filling import load_into

    return load_into(source, ctx, make_layer, name=name, ops=ops, identity=identity, shape_of=shape_of, ignore=ignore)


def write_checkpoint(
    source: ModelSource,
    out: Path,
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    *,
    ctx: BuildContext,
    quantization: Mapping[str, Any],
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """The last step of the `write` of a quantizer: write a quantized checkpoint of `source` into the directory `out`.

    The same tensors give the same bytes. Their dtypes are kept. A tensor that `config.json` ties to another, such as
    the output head to the embeddings, is written once. Tokenizer, chat template, generation config, processor
    configs, code and license of `source` are copied. `config.json` is written last: if the write fails or is killed,
    `out` has none.

    Args:
        tensors: Name to tensor, or pairs of both. Pairs are taken one by one, in their order, so a generator can
            compute each tensor when it is needed: memory holds at most one file. A mapping is taken in the order of its
            names, and may be lazy as well.
        quantization: The `quantization_config` of `config.json`, with a `quant_method`. The rest is that of `source`.
        dtype: The dtype of the tensors that are not quantized, for `config.json`; None: that of `source`.
        shard_bytes: Bytes of tensors in a file. More tensors are written to several files with an index.

    Raises ModelError if tied tensors have different values or a name occurs twice, WriteError if `out` cannot be
    written, TypeError or ValueError if `quantization` is not JSON.

    Example:
        def write(self, source, out, ctx):
            stored = open_checkpoint(source)
            weights = {f"{layer}.weight": layer for layer in stored.layers}

            def tensors():
                for name, tensor in stored.items():
                    if layer := weights.get(name):
                        codes, scale = rounded(tensor)
                        yield f"{layer}.codes", codes
                        yield f"{layer}.scale", scale
                    else:
                        yield name, tensor

            write_checkpoint(source, out, tensors(), ctx=ctx, quantization={"quant_method": "int8"})
    """
    from smollm3_finetune.api.quantizers import architecture_of
    from smollm3_finetune.model_files.quantized_checkpoint import write_quantized

    config = {**source.config, "quantization_config": dict(quantization)}
    if dtype is not None:
        config = {k: v for k, v in config.items() if k != "torch_dtype"} | {"dtype": dtype}
    model = architecture_of(source)
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    write_quantized(source.path, out, tensors, config, ties, shard_bytes=shard_bytes, say=ctx.progress.say)


def open_checkpoint(source: ModelSource) -> StoredTensors:
    """Name to tensor of a checkpoint in safetensors files, whose tensors are read when they are accessed. Light.

    Each access reads the tensor from disk, on the CPU. `headers` has the shape and the dtype of each, `files` the paths
    of the weight files, and `layers` the shapes of the linear layers in the blocks, as `layer_shapes` returns them. The
    first access to `source.path` may download or convert.

    Raises ModelError if there are no safetensors files, if one is damaged, or for a name that does not exist.

        embeddings = open_checkpoint(source)["model.embed_tokens.weight"]
    """
    return StoredTensors(source.path)


def layer_shapes(source: ModelSource) -> dict[str, LayerShape] | None:
    """Name to `out_features`, `in_features` and `dtype` of the linear layers in the blocks of a checkpoint. Light.

    Reads only the headers of the safetensors files, in milliseconds, without torch: for the `check` of a quantizer.
    None if the source has no attribute `directory` (a model on the Hub, a file that must be converted first) or no
    safetensors files. Raises ModelError if a file is damaged or missing.

    The layers are the matrices `NAME.weight` with a number in the name, as in `model.layers.0.mlp.up_proj`: without the
    embeddings and the output head, with routers of experts, and without experts that are stored as one tensor. The
    names are those of the checkpoint. A layer of the class Conv1D (GPT-2), whose weight is (in, out), has a bias,
    whose length shows it: `in_features` are right for both.
    """
    from smollm3_finetune.api.group_sizes import local_layers

    return local_layers(source)


def check_group_size(
    name: str,
    source: ModelSource,
    group_size: int | None,
    *,
    skip_modules: Sequence[str] = (),
    along: Literal["in_features", "out_features"] = "in_features",
    option: str = "group_size",
) -> None:
    """Raise ConfigError if groups of `group_size` features do not divide a layer of `source`. Light: for `check`.

    Reads the headers of the files if the source is local, else only `config.json`. Judges the projections of attention
    and MLP that have their usual names (`q_proj`, `c_attn`, `w1`, …), except those in `skip_modules`; `load_layerwise`
    checks every layer that it replaces. `name` is the quantizer's, `along` the direction of the groups, and `option`
    the option of the quantizer. None: whole rows, which always fit.
    """
    from smollm3_finetune.api.group_sizes import check_group_size

    check_group_size(name, source, group_size, skip_modules=skip_modules, along=along, option=option)


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name to (out_features, in_features) of the linear layers of a model, with the output head.

    Also of Conv1D layers (GPT-2), whose weight is (in, out). A model on the meta device is enough: `architecture_of`.
    """
    from smollm3_finetune.api.placing import linear_shapes

    return linear_shapes(model)


def place_layers(
    quantized: Mapping[str, tuple[int, int] | None],
    linear: Mapping[str, tuple[int, int]],
    stacks: Mapping[str, tuple[int, int, int]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Find the layer of a model for each quantized layer of a checkpoint, by name and shape. Light.

    `load_into` does this. Use it to check beforehand that a library will write layers that can be read.

    Args:
        quantized: Name in the checkpoint to (out, in), or None if the shape is not known.
        linear: Name in the model to (out, in), as `linear_shapes(model)` returns it.
        stacks: Name of a stacked weight of experts to (experts, out, in): the `sizes` of `stacked_weights(model)`.

    Returns the name in the model to the names of its parts in the checkpoint, in the order of its outputs. Most layers
    are their own only part. Expert e of a stack is the layer `STACK.e`; a stack is quantized as a whole or not at all.
    Raises ModelError for a layer that has no place in the model, or has another shape.
    """
    from smollm3_finetune.api.placing import place

    return place(quantized, linear, stacks or {})


def converted_source(
    *,
    ref: str,
    ctx: BuildContext,
    kind: str,
    config: Mapping[str, Any],
    key: Callable[[], Mapping[str, Any]],
    convert: Callable[[Path], None],
    fingerprint: Callable[[], str],
    pins: Callable[[], Mapping[str, Any]] | None = None,
    **kwargs: Any,
) -> ModelSource:
    """Return a `ModelSource` for files of another format, for loaders that convert: the result of their `open`. Light.

    Nothing is converted until `path`, `tokenizer` or `load` is used. The converted directory is kept in the cache, and
    everything is then read from it, as from `directory_source`.

    Args:
        ref: The reference that the user typed.
        kind: The kind of the cache entry: the loader's name.
        config: What `config.json` will contain, as far as the original file says. Runs are planned with it. Once the
            directory exists, its own `config.json` is used.
        key: Returns everything that determines the content of the converted directory, as JSON values: a hash of the
            original, the options, a version of your conversion. Called before the conversion.
        convert: Fills an empty directory in the Hugging Face layout: `config.json`, safetensors files, the tokenizer.
        fingerprint: Returns what identifies the weights: `fingerprint("mine", HASH, options.dtype)`. Without the
            location of the file and versions of libraries.
        pins: Returns options of the loader that open exactly this content again, such as a commit; a run stores them.
        kwargs: Passed to every `from_pretrained` call.

    Example:
        def open(self, ref, ctx):
            file = Path(ref)
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            return converted_source(
                ref=ref, ctx=ctx, kind="npz", config=read_json(file.with_suffix(".json")),
                key=lambda: {"file": digest, "version": 1},
                convert=lambda out: convert(file, out),
                fingerprint=lambda: fingerprint("npz", digest),
            )
    """
    from smollm3_finetune.api.converted import ConvertedSource

    return ConvertedSource(
        ref=ref,
        ctx=ctx,
        kind=kind,
        described=config,
        key=key,
        convert=convert,
        identity=fingerprint,
        pinned=pins,
        load_kwargs=kwargs,
    )
