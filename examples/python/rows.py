"""Tokenize chat rows: only the tokens of the last answer are supervised."""

import json
from pathlib import Path


def supervised_rows(file, tokenizer):
    rows = []
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        *prompt, answer = json.loads(line)["messages"]
        before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        after = [*tokenizer(answer["content"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append({"input_ids": [*before, *after], "labels": [-100] * len(before) + after})
    return rows
