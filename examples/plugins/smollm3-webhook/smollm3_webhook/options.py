"""Options that users set with `--tracker-opt KEY=VALUE`. Imported for help and checks: keep it light.

They are saved in run.yaml. For a secret, take the name of an environment variable as the option, not the secret.
"""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class WebhookOptions:
    separator: str = option(",", "The character between the columns.")
