"""The roles of the parameters of each method, by PEFT's names. This module imports neither torch nor peft.

`down` and `up` are the two matrices of a low-rank update, `rank x inputs` and `outputs x rank`, also where the method
transforms their product. Core finds the roles of what is not in the table, such as modules that are trained in full.
"""

from __future__ import annotations

from collections.abc import Mapping

from smollm3_finetune.api import Role

_LORA = {"lora_A": Role.DOWN, "lora_B": Role.UP}
_PROMPT = {"prompt_encoder": Role.OTHER}

ROLES: Mapping[str, Mapping[str, Role]] = {
    "lora": _LORA,
    "dora": {**_LORA, "lora_magnitude_vector": Role.SCALE},
    "rslora": _LORA,
    "adalora": {**_LORA, "lora_E": Role.SCALE},
    "beft": {"beft_bias": Role.BIAS},
    "boft": {"boft_R": Role.OTHER, "boft_s": Role.SCALE},
    "c3a": {"c3a_kernel": Role.OTHER},
    "deft": {"deft_P": Role.UP, "deft_R": Role.DOWN},
    "delora": {"delora_A": Role.DOWN, "delora_B": Role.UP, "delora_lambda": Role.SCALE},
    "fourierft": {"fourierft_spectrum": Role.OTHER},
    "frod": {"frod_lambda_l": Role.SCALE, "frod_lambda_s_values": Role.OTHER},
    "glora": {"Xd": Role.UP, "Xu": Role.DOWN},
    "gralora": {"gralora_A": Role.OTHER, "gralora_B": Role.OTHER},
    "hira": {"hira_A": Role.DOWN, "hira_B": Role.UP},
    "hra": {"hra_u": Role.OTHER},
    "ia3": {"ia3_l": Role.SCALE},
    "ln-tuning": {"ln_tuning_layers": Role.NORM},
    "loha": {"hada_w1_a": Role.UP, "hada_w1_b": Role.DOWN, "hada_w2_a": Role.UP, "hada_w2_b": Role.DOWN},
    "lokr": {
        "lokr_w1": Role.OTHER, "lokr_w1_a": Role.OTHER, "lokr_w1_b": Role.OTHER,
        "lokr_w2": Role.OTHER, "lokr_w2_a": Role.OTHER, "lokr_w2_b": Role.OTHER,
    },
    "miss": {"miss_block": Role.OTHER},
    "oft": {"oft_R": Role.OTHER},
    "osf": {"U_low": Role.UP, "S_low": Role.SCALE, "V_low": Role.DOWN},
    "peanut": {"peanut_A": Role.DOWN, "peanut_B": Role.UP},
    "psoft": {"psoft_R": Role.OTHER, "vector_a": Role.SCALE, "vector_b": Role.SCALE},
    "pvera": {"pvera_lambda_b": Role.SCALE, "pvera_lambda_d": Role.SCALE},
    "randlora": {"randlora_lambda": Role.SCALE, "randlora_gamma": Role.SCALE},
    "road": {"road_theta": Role.OTHER, "road_alpha": Role.SCALE},
    "shira": {"shira_weight": Role.OTHER},
    "supertuning": {"supertuning_values": Role.OTHER},
    "tinylora": {"tinylora_v": Role.OTHER},
    "unilora": {"unilora_theta_d": Role.OTHER},
    "vblora": {"vblora_logits_A": Role.OTHER, "vblora_logits_B": Role.OTHER, "vblora_vector_bank": Role.OTHER},
    "vera": {"vera_lambda_b": Role.SCALE, "vera_lambda_d": Role.SCALE},
    "waveft": {"waveft_spectrum": Role.OTHER},
    "trainable-tokens": {"trainable_tokens_delta": Role.EMBEDDING},
    "prompt-tuning": _PROMPT,
    "p-tuning": _PROMPT,
    "prefix-tuning": _PROMPT,
}  # fmt: skip
"""Method to the roles of its parameters, by the part of their name that PEFT gives them."""
BESIDE: Mapping[str, Role] = {
    "lora_embedding_A": Role.DOWN, "lora_embedding_B": Role.UP, "trainable_tokens_delta": Role.EMBEDDING,
}  # fmt: skip
"""Parameters that more than one method has with some options."""


def role_of(method: str, name: str, *, stacked: bool = False) -> Role | None:
    """The role of the parameter `name` of a PEFT model; None if the table does not have it.

    `stacked`: it belongs to a stacked weight of experts, whose factors lie one after another in one matrix.
    """
    known = {**BESIDE, **ROLES[method]}
    found = next((known[part] for part in reversed(name.split(".")) if part in known), None)
    return Role.OTHER if stacked and found in (Role.DOWN, Role.UP) else found
