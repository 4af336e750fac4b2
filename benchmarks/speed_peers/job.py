"""The fixed job: the rows, their order, and the training settings of every contestant.

SmolLM2-135M in float32 on a CPU, LoRA on all linear layers except the head, one pass over chat rows of heavy-tailed
length in one fixed order, one batch of rows per step, AdamW at a constant rate, the loss on the assistant's tokens, no
gradient checkpointing, no held-out rows.

    DIR/job.json          the job itself, for `bare` and `padded`
    DIR/rows/train.jsonl  its rows in training order: a dataset for `trl sft`
    DIR/smollm3.jsonl     the same rows, permuted so that `smollm3 train` shuffles them into that order
    DIR/uncut.yaml        a configuration for `trl sft` that cuts no row
    DIR/template.jinja    the chat template of the model, with supervised tokens marked, for tools that need it
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SEED = 0
UNCUT = "uncut.yaml"
"""A configuration for `trl sft` without a maximum length, which its command-line options cannot express."""
MESSAGE = "'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
"""The expression of SmolLM2's chat template that renders a message."""
MARKED = (
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{" + MESSAGE + "}}{% endif %}"
)
"""The same, with the tokens of the assistant marked: content and end of turn, without the header."""


@dataclass(frozen=True)
class Job:
    model: str
    directory: str
    output: str = ""
    batch: int = 8
    rank: int = 16
    learning_rate: float = 2e-4
    max_length: int = 1024
    max_grad_norm: float = 1.0
    quant: str = "none"
    device: str = "cpu"
    dtype: str = "float32"
    packed: int = 2
    """Packed sequences per step, for contestants that pack: about as many tokens as `batch` rows have."""
    modules: tuple[str, ...] = MODULES


@dataclass(frozen=True)
class Row:
    ids: list[int]
    labels: list[int]


def write(job: Job, alpaca: Path, count: int) -> None:
    """Write the files of the job from the first `count` rows of a file in the alpaca format."""
    write_rows(job, [chat(row) for row in json.loads(alpaca.read_text(encoding="utf-8"))[:count]])


def write_rows(job: Job, rows: list[dict[str, Any]]) -> None:
    """Write the files of the job from chat rows in training order."""
    directory = Path(job.directory)
    write_order(directory, rows)
    (directory / UNCUT).write_text("max_length: null\n", encoding="utf-8")
    own = (Path(job.model) / "chat_template.jinja").read_text(encoding="utf-8")
    if (place := "{{" + MESSAGE + "}}") not in own:
        raise SystemExit("the chat template is not that of SmolLM2, so supervised tokens cannot be marked")
    (directory / "template.jinja").write_text(own.replace(place, MARKED), encoding="utf-8")
    (directory / "job.json").write_text(json.dumps(asdict(job)))


def write_order(directory: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows in training order for trl, and so permuted that `smollm3 train` shuffles them into that order."""
    import torch

    (directory / "rows").mkdir(parents=True)
    (directory / "rows" / "train.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED), dtype=torch.int32).tolist()
    positioned = [row for _, row in sorted(zip(drawn, rows, strict=True), key=lambda pair: pair[0])]
    (directory / "smollm3.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in positioned))


def chat(row: dict[str, str]) -> dict[str, Any]:
    """A row in the alpaca format as a chat row."""
    question = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]}


def job_from_command_line() -> Job:
    """Read the job of the command line `SCRIPT DIR OUTPUT`."""
    _, directory, output = sys.argv
    about = json.loads((Path(directory) / "job.json").read_text())
    return replace(Job(**{**about, "modules": tuple(about["modules"])}), output=output)


def tokenized_rows(job: Job, tokenizer: Any) -> list[Row]:
    """The rows as token ids, in order, with label -100 at tokens that are not supervised."""
    template = (Path(job.directory) / "template.jinja").read_text(encoding="utf-8")
    found = []
    for line in (Path(job.directory) / "rows" / "train.jsonl").read_text().splitlines():
        made = tokenizer.apply_chat_template(
            json.loads(line)["messages"],
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids = made["input_ids"][: job.max_length]
        mask = made["assistant_masks"][: job.max_length]
        found.append(Row(ids, [i if m else -100 for i, m in zip(ids, mask, strict=True)]))
    return found


def quantization(job: Job) -> dict[str, Any]:
    """Arguments of `from_pretrained`: NF4 with quantized scales, as in QLoRA; empty without quantization."""
    if job.quant == "none":
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, job.dtype),
    )
    return {"quantization_config": config}
