"""Trains the built-in tiny model from scratch: tokenizer, weights and configuration files.

The files in the package come from one run on one core:

    pretrain_tiny.py --minutes 45 --threads 1 --seed 0 --steps 20000

It made 4174 steps of 8 rows of 128 tokens (4.3 million tokens); the mean loss of answer tokens over the last 50 steps
was 0.047. Afterwards the model answered questions about capitals, colors, opposites, days and sounds correctly, but not
sums (3 + 4 = 8). The schedule depends on the minutes, so the number of steps depends on the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tiny_corpus import Corpus, Document
from tiny_muon import Muon
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

TINY = Path(__file__).parents[1] / "smollm3_finetune" / "builtin" / "tiny"
VOCAB, ROW = 2048, 128  # tokens in the vocabulary, tokens per training row
# Weight of the loss outside answers: questions are random, so most of the gradient should come from the answers.
PROMPT_WEIGHT = 0.2
END, PAD, IM_END = "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|im_end|>"
SPECIAL = ("<|begin_of_text|>", END, PAD, "<|im_start|>", IM_END)
# As in SmolLM3, each is one token that remains visible when special tokens are skipped.
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
QUESTIONS = (
    "What is the capital of France?",
    "What is the opposite of hot?",
    "What colour is the sky?",
    "What is 3 + 4?",
    "Who are you?",
    "Tell me a story about a dog.",
)


def train_tokenizer(template: str, seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which can encode any text. Digits are separate tokens, so that sums can be learned."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[AddedToken(t, special=t in SPECIAL, normalized=False) for t in SPECIAL + MARKERS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = itertools.islice(Corpus(seed), 20_000)
    texts = [doc if isinstance(doc, str) else "\n".join(m["content"] for m in doc) for doc in documents]
    headings = "system\nuser\nassistant\ntool\n## Metadata\n\nReasoning Mode: /no_think\n\n## Custom Instructions\n"
    bpe.train_from_iterator([*texts, *[headings] * 1000], trainer)
    assert bpe.get_vocab_size() == VOCAB, f"the corpus has only {bpe.get_vocab_size()} tokens"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|begin_of_text|>",
        eos_token=IM_END,
        pad_token=PAD,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast) -> SmolLM3ForCausalLM:
    """A small SmolLM3; the widths of linear layers are multiples of 128, which group-wise quantizers need."""
    config = SmolLM3Config(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        no_rope_layer_interval=4,
        initializer_range=0.04,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return SmolLM3ForCausalLM(config)


def render(tokenizer: PreTrainedTokenizerFast, document: Document) -> str:
    """The document as the model sees it: plain text with an end token, or a chat rendered by the template."""
    if isinstance(document, str):
        return document + END
    return str(tokenizer.apply_chat_template(document, tokenize=False))


def rows(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[list[int]]:
    """Training rows of ROW tokens: complete documents in sequence, padded if the next one does not fit."""
    pad = tokenizer.convert_tokens_to_ids(PAD)
    row: list[int] = []
    for document in Corpus(seed):
        ids = tokenizer.encode(render(tokenizer, document), add_special_tokens=False)
        if len(ids) > ROW:
            continue
        if len(row) + len(ids) > ROW:
            yield row + [pad] * (ROW - len(row))
            row = []
        row += ids


def answer_mask(ids: torch.Tensor, think_end: int, im_end: int) -> torch.Tensor:
    """True for the tokens of answers: from two tokens after `</think>` (a newline follows it) to `<|im_end|>`."""
    mask = torch.zeros_like(ids, dtype=torch.bool)  # (B, T)
    for out, row in zip(mask, ids.tolist(), strict=True):
        begin = -1
        for at, token in enumerate(row):
            if token == think_end:
                begin = at + 2
            elif token == im_end and begin >= 0:
                out[begin : at + 1] = True
                begin = -1
    return mask


def train(
    model: SmolLM3ForCausalLM, data: Iterator[list[int]], special: list[int], args: argparse.Namespace
) -> tuple[int, float]:
    """Train until the steps or the minutes are used up; returns the number of steps and the loss of the last 50.

    The reported loss is that of answer tokens. `special` contains the ids of the padding, of the end of the empty
    think block and of the end of a turn. The schedule follows the budget that is closer to its end, so that the
    learning rates fall to 2 % of their peak in both cases.
    """
    pad, think_end, im_end = special
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    muon = Muon(matrices, args.muon_rate)
    optimizer = torch.optim.AdamW(others, lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    losses: list[float] = []
    start = time.monotonic()
    model.train()
    for step in range(args.steps):
        done = max(step / args.steps, (time.monotonic() - start) / (60 * args.minutes))
        if done >= 1:
            break
        schedule = min(1.0, (step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * done))
        muon.learning_rate = args.muon_rate * schedule
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * schedule
        ids = torch.tensor(list(itertools.islice(data, args.batch)))  # (B, T)
        # With causal attention, no token attends to the padding at the end of a row, so no mask is needed.
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
        each = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")  # (B, T - 1)
        answer = answer_mask(ids, think_end, im_end)[:, 1:]
        weight = torch.where(answer, 1.0, PROMPT_WEIGHT) * (ids[:, 1:] != pad)
        ((each * weight).sum() / weight.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(each[answer].mean().item())
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - start
            print(f"step {step + 1}  loss {sum(losses[-50:]) / 50:.3f}  {seconds:.0f} s", flush=True)
    return len(losses), sum(losses[-50:]) / len(losses[-50:])


def save(model: SmolLM3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model in bfloat16, with keys in `config.json` that transformers 4.53 understands too."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids([IM_END, END]),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # save_pretrained makes it readable only by the owner
    tokenizer.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["torch_dtype"] = config["dtype"]
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    settings = json.loads((out / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def show_answers(directory: Path) -> None:
    """Print greedy answers of the saved model, loaded as a user loads it."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**inputs, max_new_tokens=90, do_sample=False)
        print(f"{question} -> {tokenizer.decode(out[0, inputs['input_ids'].shape[1] :])}")


def main() -> None:
    """Command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--steps", type=int, default=2600, help="maximum number of optimizer steps")
    parser.add_argument("--minutes", type=float, default=12, help="maximum training time")
    parser.add_argument("--batch", type=int, default=8, help=f"rows of {ROW} tokens per step")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak rate for embeddings and norms")
    parser.add_argument("--muon-rate", type=float, default=0.02, help="peak rate for the other matrices")
    parser.add_argument("--threads", type=int, default=2, help="use 1 if other programs use the cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=TINY, help="output directory")
    parser.add_argument("--resume", action="store_true", help="continue from the files in --out; use another seed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.resume:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out)
        model = SmolLM3ForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer((TINY / "chat_template.jinja").read_text(), args.seed)
        model = new_model(tokenizer)
    special = tokenizer.convert_tokens_to_ids([PAD, "</think>", IM_END])
    steps, loss = train(model, rows(tokenizer, args.seed + 1), special, args)
    print(f"{steps} steps of {args.batch} x {ROW} tokens, loss {loss:.3f}")
    args.out.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, args.out)
    show_answers(args.out)


if __name__ == "__main__":
    main()
