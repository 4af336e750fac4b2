"""Writes a merged or quantized model without its card and report: weights, tokenizer, generation config."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import ConfigError, ModelError
from smollm3_finetune.files.json import names_code, read_json
from smollm3_finetune.model_files.dtypes import full_name
from smollm3_finetune.model_files.output import SIZES

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

FIGURES = "merge.json"
EXPORT_FIGURES = "export.json"
BESIDE = r"(\w+_)?(pre)?processor_config\.json|[\w.-]+\.py|(LICENSE|NOTICE|COPYING)[\w.-]*"
BESIDE_TOKENIZER = re.compile(BESIDE)
"""Files of a model other than its weights, its tokenizer and its generation config: processors of images and sound,
code, license."""
BELONGS = re.compile(
    r"(tokenizer|special_tokens|added_tokens|vocab|merges|generation_config)[\w.-]*\.(json|txt|model)"
    rf"|[\w.-]+\.(jinja|model)|chat_template\.json|{BESIDE}"
)
"""Files of a model other than its weights, by name; Python files only if a config of the model names code."""
CODE_NAMES = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
"""Files in which a model names Python code of its own."""


def published_dtype(config: Mapping[str, Any]) -> str:
    """The dtype of a published model by its `config.json`; float32 if that does not say."""
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return dtype if dtype in SIZES else "float32"


def saveable_dtype(flag: str, asked: str | None) -> str | None:
    """The full name of a dtype that can be saved. Raises ConfigError if `asked` is not one."""
    if asked is None:
        return None
    if (dtype := full_name(asked)) not in SIZES:
        raise ConfigError(f"{flag} takes a torch dtype, got {asked!r}", hint=f"one of: {', '.join(SIZES)}")
    return dtype


def saved_dtype(asked: str | None, config: Mapping[str, Any]) -> str:
    """The dtype of `--dtype`, else that of the published base. Raises ConfigError for an unknown dtype."""
    return saveable_dtype("--dtype", asked) or published_dtype(config)


def generation_config(base: PreTrainedModel, adapter: Path) -> GenerationConfig:
    """The generation config saved with the adapter, with its stop tokens, else the base's."""
    from transformers import GenerationConfig

    generation: GenerationConfig = base.generation_config
    if (adapter / "generation_config.json").exists():
        try:
            generation = GenerationConfig.from_pretrained(str(adapter))
        except (OSError, ValueError) as e:
            raise ModelError(f"{adapter / 'generation_config.json'} cannot be read: {e}") from e
    return generation


def write_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig, dtype: str, out: Path
) -> None:
    """Write `model`, converted to `dtype` in place, as a model directory that transformers loads by itself.

    Safetensors, `config.json`, the tokenizer with its chat template, and `generation_config.json`.
    """
    import torch
    from transformers import GenerationConfig

    model.to(getattr(torch, dtype))
    model.generation_config = (
        GenerationConfig()
    )  # the real one may be contradictory, and save_pretrained would refuse it
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    generation.to_json_file(str(out / "generation_config.json"))


def copy_rest(
    source: Path, out: Path, say: Callable[[str], None] = lambda line: None, *, tokenizer: bool = True
) -> None:
    """Copy files of the model in `source` that `out` lacks: tokenizer, template, generation config, processor, license.

    Without `tokenizer`, `out` has a tokenizer, a template and a generation config of its own, and none of the base's
    are copied.

    Other files are not copied: they may be other weights, rows or secrets. Links that leave the model's directory are
    not copied either, and reported with `say`: a downloaded model may contain links into the user's home directory.
    """
    for file in _belonging(source, BELONGS if tokenizer else BESIDE_TOKENIZER):
        if (out / file.name).exists():
            continue
        if _is_own(file, source):
            shutil.copyfile(file, out / file.name)
        else:
            say(f"{file} is not copied: it is a link to a file outside of the model's directory")


def rest_of(source: Path) -> list[Path]:
    """The files of the model in `source` that `copy_rest` copies into an empty directory, by name."""
    return [file for file in _belonging(source, BELONGS) if _is_own(file, source)]


def _belonging(source: Path, names: re.Pattern[str]) -> Iterator[Path]:
    """The files with one of these names, also links that leave the directory; code only if a config names some."""
    configs = (source / name for name in CODE_NAMES)
    has_code = any(_names_code(file) for file in configs if file.is_file())
    for file in sorted(source.iterdir()):
        if names.fullmatch(file.name) and file.is_file() and (has_code or file.suffix != ".py"):
            yield file


def _names_code(file: Path) -> bool:
    """Whether a config of a model names code; a damaged one names none that could run."""
    try:
        return names_code(read_json(file))
    except ModelError:
        return False


def _is_own(file: Path, source: Path) -> bool:
    """Whether a file of `source`, with links resolved, is in `source`, or in the Hub cache of the same repository.

    In the Hub cache `source` is REPOSITORY/snapshots/COMMIT, and its files are links into REPOSITORY/blobs.
    """
    target, root = file.resolve(), source.resolve()
    allowed = [root, *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])]
    return any(target.is_relative_to(directory) for directory in allowed)
