"""Errors for mistakes of users: one sentence, and a hint that can be typed."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from smollm3_finetune.api import ConfigError, IncompatibleError, ModelError


def attach(lab: Any, method: str, kind: str = "none", steps: int | None = None, **options: Any) -> Any:
    return lab.make_adapter(method, **options).attach(lab.make_base(kind), lab.context(), steps)


def test_a_mistyped_target_module_gets_a_suggestion(lab: Any) -> None:
    with pytest.raises(ConfigError) as e:
        attach(lab, "lora", target_modules=("q_porj", "v_proj"))
    assert e.value.message == "target_modules names 'q_porj', but the model has no such module"
    assert e.value.hint == "did you mean 'q_proj'?"


def test_an_unknown_target_module_lists_the_linear_layers(lab: Any) -> None:
    with pytest.raises(ConfigError) as e:
        attach(lab, "lora", "stub", target_modules=("xyzzy",))
    assert e.value.hint == "linear layers of the model: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"


def test_empty_target_modules_are_refused(lab: Any) -> None:
    with pytest.raises(ConfigError, match="target_modules is empty"):
        attach(lab, "lora", target_modules=())


def test_layers_outside_the_model_are_named(lab: Any) -> None:
    with pytest.raises(ConfigError) as e:
        attach(lab, "lora", layers=(1, 7))
    assert e.value.message == "layers names 7, but the model has layers 0 to 1"


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"), MemoryError(), torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: …"),
])  # fmt: skip
def test_resource_errors_are_raised_unchanged(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    attach(lab, "lora").save(tmp_path)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr("smollm3_peft.adapter.get_peft_model", fails)
    monkeypatch.setattr("smollm3_peft.adapter.PeftAdapter.load", fails)
    with pytest.raises(type(error)) as caught:
        attach(lab, "lora")
    assert caught.value is error
    with pytest.raises(type(error)) as caught:
        lab.make_adapter("lora").restore(lab.make_base("none"), tmp_path, lab.context(), None)
    assert caught.value is error


def test_a_mistyped_module_to_save_gets_a_suggestion(lab: Any) -> None:
    with pytest.raises(ConfigError, match="modules_to_save names 'lm_haed'") as e:
        attach(lab, "lora", modules_to_save=("lm_haed",))
    assert e.value.hint == "did you mean 'lm_head'?"


def test_a_quantized_module_cannot_be_trained_in_full(lab: Any) -> None:
    with pytest.raises(IncompatibleError, match="is quantized and cannot be trained in full"):
        attach(lab, "lora", "stub", modules_to_save=("down_proj",))


def test_only_the_lora_family_trains_tied_embeddings(lab: Any) -> None:
    with pytest.raises(ConfigError, match="ties them to its head") as e:
        attach(lab, "loha", modules_to_save=("lm_head",))
    assert "--adapter lora" in str(e.value.hint)


def test_sizes_that_do_not_fit_show_pefts_message(lab: Any) -> None:
    with pytest.raises(ConfigError, match=r"adapter 'c3a' cannot be attached: .*block size"):
        attach(lab, "c3a", block_size=48)


def test_ia3_feedforward_modules_must_be_targets(lab: Any) -> None:
    with pytest.raises(ConfigError, match="feedforward_modules names 'up_proj'"):
        attach(lab, "ia3", feedforward_modules=("up_proj",))


@pytest.mark.parametrize(("ids", "words"), [((), "token_ids is empty"), ((5, 128), "token_ids names 128")])
def test_tokens_must_be_in_the_vocabulary(lab: Any, ids: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        attach(lab, "trainable-tokens", token_ids=ids)


@pytest.mark.parametrize(
    ("steps", "options", "words"),
    [
        (None, {}, "needs the number of training steps"),
        (10, {"warmup_steps": 8, "final_steps": 2}, "leave no step of 10 for reducing ranks"),
        (10, {"rank": 8, "initial_rank": 4}, "initial_rank 4 is below rank 8"),
    ],
)
def test_adalora_needs_a_schedule_that_fits(lab: Any, steps: int | None, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        attach(lab, "adalora", steps=steps, **options)


@pytest.fixture
def saved(lab: Any, tmp_path: Path) -> Path:
    attach(lab, "lora").save(tmp_path / "adapter")
    return tmp_path / "adapter"


def restore(lab: Any, path: Path, method: str = "lora") -> Any:
    return lab.make_adapter(method).restore(lab.make_base("none"), path, lab.context(), None)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(lab: Any, saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ModelError, match=f"contains no adapter: {name} is missing"):
        restore(lab, saved)
    with pytest.raises(ModelError, match=f"{name} is missing"):
        lab.make_adapter("lora").merge(lab.tiny(), saved)


def test_an_adapter_of_another_method_is_refused_with_its_name(lab: Any, saved: Path) -> None:
    with pytest.raises(ModelError, match="has PEFT type LORA, but 'vera' was requested") as e:
        restore(lab, saved, "vera")
    assert e.value.hint == "--adapter lora"


def test_an_invalid_adapter_config_is_refused(lab: Any, saved: Path) -> None:
    (saved / "adapter_config.json").write_text("not json")
    with pytest.raises(ModelError, match="is not an adapter config"):
        restore(lab, saved)


def test_an_adapter_of_another_model_is_refused(lab: Any, saved: Path) -> None:
    wider = lab.make_base("none", model=lab.tiny(intermediate_size=192))
    with pytest.raises(ModelError, match=r"does not fit this model: .*size mismatch"):
        lab.make_adapter("lora").restore(wider, saved, lab.context(), None)


def test_an_adapter_with_too_few_layers_is_refused(lab: Any, saved: Path) -> None:
    deeper = lab.make_base("none", model=lab.tiny(num_hidden_layers=3, no_rope_layers=[1, 0, 1]))
    with pytest.raises(ModelError, match="lacks tensors that this model needs"):
        lab.make_adapter("lora").restore(deeper, saved, lab.context(), None)


def test_an_adapter_with_too_many_layers_is_refused(lab: Any, saved: Path) -> None:
    shallow = lab.make_base("none", model=lab.tiny(num_hidden_layers=1, no_rope_layers=[1]))
    with pytest.raises(ModelError, match="has tensors for modules that this model lacks"):
        lab.make_adapter("lora").restore(shallow, saved, lab.context(), None)


def test_a_truncated_file_is_refused(lab: Any, saved: Path) -> None:
    file = saved / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError):
        restore(lab, saved)


def test_a_prompt_without_its_encoder_cannot_be_trained_further(lab: Any, tmp_path: Path) -> None:
    attach(lab, "prompt-tuning").save(tmp_path)
    (tmp_path / "prompt_encoder.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be trained further"):
        restore(lab, tmp_path, "prompt-tuning")


def test_a_config_with_a_key_of_a_newer_peft_is_read(lab: Any, saved: Path) -> None:
    file = saved / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "peft_version": "0.21.2"}))
    assert restore(lab, saved).model is not None


def change(saved: Path, **values: Any) -> None:
    file = saved / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def test_layer_replication_is_refused(lab: Any, saved: Path) -> None:
    change(saved, layer_replication=[[0, 10**9]])
    for use in (
        lambda: restore(lab, saved),
        lambda: lab.make_adapter("lora").merge(lab.make_base("none").model, saved),
    ):
        with pytest.raises(ModelError, match="layer_replication, which repeats layers of the base, is not supported"):
            use()


FIELDS = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_pattern")


@pytest.mark.parametrize("field", FIELDS)
def test_an_invalid_regular_expression_is_refused(lab: Any, saved: Path, field: str) -> None:
    value: Any = {"(q_proj": 4} if field in ("rank_pattern", "alpha_pattern") else "(q_proj"
    change(saved, **{field: [value] if field in ("modules_to_save", "layers_pattern") else value})
    with pytest.raises(ModelError, match=r"'\(q_proj' is not a regular expression"):
        restore(lab, saved)


def test_a_regular_expression_that_does_not_end_is_refused(
    lab: Any, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMOLLM3_MAX_SECONDS", "1")
    change(saved, rank_pattern={"(([a-z_.0-9])+)+!": 4})
    with pytest.raises(ModelError, match="takes more than 1 seconds"):
        restore(lab, saved)


def test_a_regular_expression_that_ends_is_used(lab: Any, saved: Path) -> None:
    change(saved, target_modules=r".*\.([qkvo]|gate|up|down)_proj", rank_pattern={r"layers\.0\..*nothing": 4})
    restore(lab, saved)


def test_a_rank_that_no_tensor_has_is_refused_before_it_is_allocated(lab: Any, saved: Path) -> None:
    for values in ({"r": 10**9}, {"rank_pattern": {"q_proj": 10**9}}):
        before = (saved / "adapter_config.json").read_text(encoding="utf-8")
        change(saved, **values)
        with pytest.raises(ModelError, match="states the rank 1000000000, which none of the adapter's tensors has"):
            restore(lab, saved)
        (saved / "adapter_config.json").write_text(before, encoding="utf-8")


@pytest.mark.parametrize(
    ("key", "pattern"),
    [("__class__|x", "null"), ("forward|x", "null"), ("ipt|x", "[" * 100_000), ("ipt|x", "[1]"), ("ipt|x", "{")],
)
def test_a_damaged_state_of_adalora_is_named(lab: Any, tmp_path: Path, key: str, pattern: str) -> None:
    path = tmp_path / "adapter"
    attach(lab, "adalora", steps=8, rank=3, initial_rank=6, warmup_steps=1, final_steps=2).save(path)
    file = path / "adalora_allocator.safetensors"
    save_file({key: torch.zeros(1)}, str(file), metadata={"rank_pattern": pattern})
    with pytest.raises(ModelError, match="is damaged"):
        lab.make_adapter("adalora").restore(lab.make_base("none"), path, lab.context(), None)
