"""What is written for a merged model besides its card and its figures: weights, tokenizer, generation config."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import ConfigError, ModelError
from smollm3_finetune.model_files.output import SIZES

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

FIGURES = "merge.json"
BELONGS = re.compile(
    r"(tokenizer|special_tokens|added_tokens|vocab|merges|generation_config|processor_config)[\w.-]*\.(json|txt|model)"
    r"|[\w.-]+\.(jinja|model|py)|(LICENSE|NOTICE|COPYING)[\w.-]*"
)
"""Files of a model beside its weights, by name; Python files only where a config of the model names code."""


def published_dtype(config: Mapping[str, Any]) -> str:
    """The number format in which a model was published, by its `config.json`; float32 where it does not say."""
    own = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return own if own in SIZES else "float32"


def check_dtype(flag: str, asked: str | None) -> None:
    """Raises ConfigError for what is no number format."""
    if asked is not None and asked not in SIZES:
        raise ConfigError(f"{flag} takes a number format, got {asked!r}", hint=f"one of: {', '.join(SIZES)}")


def saved_dtype(asked: str | None, config: Mapping[str, Any]) -> str:
    """What `--dtype` asks for, else the format that the base was published in. Raises ConfigError for another word."""
    check_dtype("--dtype", asked)
    return asked or published_dtype(config)


def generation_config(base: PreTrainedModel, adapter: Path) -> GenerationConfig:
    """The one saved with the adapter, which knows what ends a turn, else the base's."""
    from transformers import GenerationConfig

    own: GenerationConfig = base.generation_config
    if (adapter / "generation_config.json").exists():
        try:
            own = GenerationConfig.from_pretrained(str(adapter))
        except (OSError, ValueError) as e:
            raise ModelError(f"{adapter / 'generation_config.json'} cannot be read: {e}") from e
    return own


def write_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig, dtype: str, out: Path
) -> None:
    """Write `model`, which is converted to `dtype` in place, as a model directory that transformers alone loads.

    Safetensors, `config.json`, the tokenizer with its chat template, and `generation_config.json`.
    """
    import torch
    from transformers import GenerationConfig

    model.to(getattr(torch, dtype))
    model.generation_config = GenerationConfig()  # the real one may contradict itself, and would then be refused
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    generation.to_json_file(str(out / "generation_config.json"))
    for file in out.glob("*.safetensors"):  # written for their owner alone, whatever the umask says
        file.chmod((out / "config.json").stat().st_mode)


def copy_rest(source: Path, out: Path, say: Callable[[str], None] = lambda line: None) -> None:
    """Copy what belongs to the model in `source` and `out` lacks: tokenizer, template, generation config, license.

    Nothing else that lies there: it may be other weights, or rows, or somebody's secrets. Nor what a link out of the
    model's directory leads to, which `say` is told: a model may come with links into the home of whoever copies it.
    """
    configs = (source / name for name in ("config.json", "tokenizer_config.json"))
    has_code = any('"auto_map"' in file.read_text(encoding="utf-8") for file in configs if file.is_file())
    for file in sorted(source.iterdir()):
        belongs = BELONGS.fullmatch(file.name) and (has_code or file.suffix != ".py")
        if not belongs or not file.is_file() or (out / file.name).exists():
            continue
        if _is_own(file, source):
            shutil.copyfile(file, out / file.name)
        else:
            say(f"{file} is a link out of the model's directory and is not copied")


def _is_own(file: Path, source: Path) -> bool:
    """Whether a file of `source`, links followed, lies in it, or in the Hub's cache among the files of its repository.

    There `source` is REPOSITORY/snapshots/COMMIT, and its files are links into REPOSITORY/blobs.
    """
    real, home = file.resolve(), source.resolve()
    own = [home, *([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])]
    return any(real.is_relative_to(directory) for directory in own)
