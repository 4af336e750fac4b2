"""The file of a pipeline: stages in order, each a run configuration with a name, and defaults for all of them.

    model: tiny
    stages:
      - name: sft
        data: {path: rows.jsonl}
      - name: merged
        from: sft
        merge: true

Reading it checks keys, names and references, and says each problem with file and line. No component is looked up.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.config.load import mapping_settings
from smollm3_finetune.config.options import build, key_of
from smollm3_finetune.config.schema import ComponentConfig, RunConfig
from smollm3_finetune.config.yaml12 import read_yaml
from smollm3_finetune.errors import Collector, ConfigError
from smollm3_finetune.paths import user_path
from smollm3_finetune.pipeline.options import EvalOptions, MergeOptions
from smollm3_finetune.pipeline.references import Lines, References
from smollm3_finetune.pipeline.stage import Kind, PipelineFile, Stage, similar_hint

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
OWN_KEYS = ("name", "output", "stages")
"""Keys of the file that are not defaults of its stages."""
STAGE_KEYS = ("name", "from", "merge", "quantize", "export", "eval")
"""Keys of a stage that are not keys of a run configuration."""
NOT_IN_STAGES = ("output", "given")
KEYS_OF: Mapping[Kind, tuple[str, ...]] = {
    "merge": ("loader", "device"),
    "quantize": ("model", "loader", "objective", "formatter", "data", "calibration", "device", "dtype", "seed"),
    "export": ("loader", "device"),
    "eval": ("model", "loader", "quant", "formatter", "data", "device", "dtype"),
}
"""The keys of a run configuration that a stage of each kind may have; a train stage may have all of them."""


def read_pipeline(text: str | Path) -> PipelineFile:
    """Read the file of a pipeline. Raises ConfigError or Problems with file and line."""
    path = user_path(text, "FILE")
    mapping, lines = read_yaml(path)
    collect = Collector()
    entries = mapping.get("stages")
    if not isinstance(entries, list) or not entries:
        where = lines.get(("stages",), str(path))
        raise ConfigError(
            f"{where}: stages must be a list of stages, each with a name"
            if "stages" in mapping
            else f"{path} is not a pipeline: it has no stages",
            hint=f"smollm3 train --config {path}" if "stages" not in mapping else "stages: [{name: sft}]",
        )
    known = [key_of(f) for f in dataclasses.fields(RunConfig)]
    defaults = {k: v for k, v in mapping.items() if k not in OWN_KEYS}
    for key in (*STAGE_KEYS[1:], *NOT_IN_STAGES[1:]):
        if key in defaults:
            collect.problems.append(
                ConfigError(f"{lines[(key,)]}: {key} is a key of a stage, not a default", hint=f"stages: {key}: …")
            )
            del defaults[key]
    for key in [k for k in defaults if k not in known]:
        collect.problems.append(_unknown(lines[(key,)], key, [*known, *OWN_KEYS]))
        del defaults[key]
    stages: list[Stage] = []
    for number, entry in enumerate(entries):
        read = _Reader(lines, ("stages", str(number)), tuple(stages), entries, known)
        made = collect.run(lambda reader=read, one=entry: reader.stage(one))  # type: ignore[misc]
        stages += [] if made is None else [made]
    name = mapping.get("name", path.stem)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        shape = "letters, digits, - and _"
        where = lines.get(("name",), str(path))
        collect.problems.append(ConfigError(f"{where}: the name of a pipeline has {shape}, got {name!r}"))
    output = mapping.get("output")
    if output is not None and (not isinstance(output, str) or not output.strip()):
        collect.problems.append(ConfigError(f"{lines[('output',)]}: output must be a directory, got {output!r}"))
    collect.finish()
    settings = mapping_settings(defaults, lines)
    return PipelineFile(path=path, name=name, output=output, defaults=tuple(settings), stages=tuple(stages))


@dataclass(frozen=True)
class _Reader:
    """Reads one entry of `stages`."""

    lines: Lines
    at: tuple[str, ...]
    earlier: Sequence[Stage]
    """Those before it that are valid."""
    entries: Sequence[Any]
    known: list[str]

    def stage(self, entry: Any) -> Stage:
        return _stage(entry, self.lines, self.at, self.earlier, self.entries, self.known)


def _stage(
    entry: Any, lines: Lines, at: tuple[str, ...], earlier: Sequence[Stage], entries: Sequence[Any], known: list[str]
) -> Stage:
    where, number = lines[at], int(at[-1])
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected a stage, got {entry!r:.80}", hint="- name: sft")
    name = entry.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        if name is None:
            raise ConfigError(f"{where}: the stage has no name", hint="name: sft")
        raise ConfigError(f"{lines[(*at, 'name')]}: the name of a stage has letters, digits, - and _, got {name!r}")
    if any(isinstance(e, dict) and e.get("name") == name for e in entries[:number]):
        raise ConfigError(f"{lines[(*at, 'name')]}: two stages are called {name!r}", hint=f"name: {name}-2")
    kind = _kind(entry, lines, at)
    _check_keys(entry, kind, lines, at, known)
    names = [e["name"] if isinstance(e, dict) and isinstance(e.get("name"), str) else "" for e in entries]
    refers = References(earlier, names[:number], names[number:], lines, at)
    own = {k: v for k, v in entry.items() if k not in STAGE_KEYS and k != "model"}
    model, model_stage = entry.get("model"), None
    if isinstance(model, dict):
        model_stage = refers.model(model)
    elif model is not None:
        own["model"] = model
    start = refers.start(entry["from"], kind) if entry.get("from") is not None else None
    if start is not None and (model_stage is not None or (kind != "train" and "model" in entry)):
        raise ConfigError(f"{where}: the stage {name!r} has from and model", hint="remove one of them")
    merge, evaluate = None, None
    if kind == "merge":
        if start is None:
            raise _needs_from(where, name, earlier)
        merge = build(MergeOptions, *_section(entry["merge"], "merge", lines, at))
    if kind == "export" and start is None:
        raise _needs_from(where, name, earlier)
    if kind == "eval":
        evaluate = build(EvalOptions, *_section(entry["eval"], "eval", lines, at))
        if start is None and "model" not in entry:
            raise _needs_from(where, name, earlier)
    quantize, origins = _component(entry, "quantize", "quant", lines, at)
    export, of_exporter = _component(entry, "export", "exporter", lines, at)
    return Stage(
        name=name,
        kind=kind,
        origin=where,
        settings=tuple(mapping_settings(own, lines, at)),
        start=start,
        model=model_stage,
        against=refers.against(evaluate.against) if evaluate is not None and evaluate.against is not None else None,
        merge=merge,
        quantize=quantize,
        export=export,
        evaluate=evaluate,
        origins={**origins, **of_exporter},
    )


def _kind(entry: Mapping[str, Any], lines: Lines, at: tuple[str, ...]) -> Kind:
    """What a stage does. Raises ConfigError if that is not one thing."""
    given = {key: entry.get(key) not in (None, False) for key in ("merge", "quantize", "export", "eval")}
    if given["export"] and (given["merge"] or given["quantize"]):
        other = "merge" if given["merge"] else "quantize"
        raise ConfigError(
            f"{lines[(*at, 'export')]}: a stage cannot {other} and export",
            hint="export in a stage of its own; it merges a run by itself",
        )
    if given["export"]:
        if given["eval"]:
            raise ConfigError(f"{lines[(*at, 'eval')]}: a stage cannot export and eval", hint="two stages")
        return "export"
    if given["eval"] and (given["merge"] or given["quantize"]):
        other = "merge" if given["merge"] else "quantize"
        raise ConfigError(f"{lines[(*at, 'eval')]}: a stage cannot {other} and eval", hint="eval in a stage of its own")
    return "eval" if given["eval"] else "merge" if given["merge"] else "quantize" if given["quantize"] else "train"


def _check_keys(entry: Mapping[str, Any], kind: Kind, lines: Lines, at: tuple[str, ...], known: list[str]) -> None:
    """Raises every key that does not exist, or that a stage of this kind does not have."""
    collect = Collector()
    stage = entry["name"]
    for key in entry:
        where = lines[(*at, key)]
        if key in STAGE_KEYS:
            continue
        if key not in known or key in NOT_IN_STAGES[1:]:
            collect.problems.append(_unknown(where, key, [k for k in known if k not in NOT_IN_STAGES] + [*STAGE_KEYS]))
        elif key == "output":
            hint = "output: DIRECTORY at the top level"
            collect.problems.append(ConfigError(f"{where}: the pipeline decides the output of a stage", hint=hint))
        elif kind != "train" and key not in (*KEYS_OF[kind], "plugins"):
            hint = f"{key} belongs to a train stage; keys here: {', '.join(KEYS_OF[kind])}"
            if kind == "quantize" and key == "quant":
                hint = "quantize: {name: NAME, OPTION: VALUE}"
            collect.problems.append(ConfigError(f"{where}: the {kind} stage {stage!r} has no key {key!r}", hint=hint))
    collect.finish()


def _section(value: Any, key: str, lines: Lines, at: tuple[str, ...]) -> tuple[dict[str, Any], str, dict[str, str]]:
    """The arguments of `build` for `merge` or `eval`: `true` means no option. Raises ConfigError for another value."""
    if value is True:
        return {}, key, {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{lines[(*at, key)]}: {key} must be true or a mapping of options, got {value!r:.80}", hint=f"{key}: true"
        )
    return value, key, {k: lines[(*at, key, k)] for k in value}


NAME_KEYS = {"quantize": "name", "export": "to"}
"""The key that names the component of a stage."""


def _component(
    entry: Mapping[str, Any], key: str, section: str, lines: Lines, at: tuple[str, ...]
) -> tuple[ComponentConfig | None, dict[str, str]]:
    """The quantizer or the exporter of a stage, and where its options are written."""
    value, named = entry.get(key), NAME_KEYS[key]
    if value in (None, False):
        return None, {}
    where = lines[(*at, key)]
    if isinstance(value, str):
        return ComponentConfig(name=value), {f"{section}.name": where}
    if not isinstance(value, dict) or not isinstance(value.get(named), str):
        what = "a quantizer" if key == "quantize" else "an exporter"
        raise ConfigError(
            f"{where}: {key} must be {what}, or a mapping with {named} and options, got {value!r:.80}",
            hint=f"{key}: NAME; to see the names: smollm3 plugins list",
        )
    options = {k: v for k, v in value.items() if k != named}
    origins = {f"{section}.{'name' if k == named else k}": lines[(*at, key, k)] for k in value}
    return ComponentConfig(name=value[named], options=options), origins


def _needs_from(where: str, name: str, earlier: Sequence[Stage]) -> ConfigError:
    before = earlier[-1].name if earlier else "NAME"
    return ConfigError(
        f"{where}: the stage {name!r} needs from, the stage whose result it takes", hint=f"from: {before}"
    )


def _unknown(where: str, key: str, known: Sequence[str]) -> ConfigError:
    return ConfigError(f"{where}: unknown key {key!r}", hint=similar_hint(key, known, "known keys"))
