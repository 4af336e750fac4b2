"""`smollm3 generate --prompts`: batches, resumable output in order, and the options that sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.inference.batched import Batched, padding_changes_answers
from smollm3_finetune.inference.decoding import Decoder
from smollm3_finetune.inference.sampling import GREEDY, Sampling
from smollm3_finetune.model.load import load_model

QUESTIONS = (
    "What is the capital of France?", "Hello!", "What is the opposite of big?", "What colour is snow?",
    "Tell me what the capital of Norway is, and answer in a whole sentence, please.", "What is 2 + 2?", "Hi",
)  # fmt: skip
SAMPLED = Sampling(temperature=8.0, top_k=0)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    loaded = load_model("tiny", dtype="float32", device="cpu")
    return Decoder.of(loaded.model, Renderer(loaded.tokenizer, RenderOptions(date=None)))


@pytest.fixture(scope="module")
def prompts(decoder: Decoder) -> list[list[int]]:
    renderer = Renderer(decoder.tokenizer, RenderOptions(date=None))
    return [renderer.prompt_ids([{"role": "user", "content": q}]) for q in QUESTIONS]


def job(decoder: Decoder, prompts: Sequence[Sequence[int]], **options: Any) -> Batched:
    about = {"rooms": [9] * len(prompts), "batch_size": 3, "sampling": GREEDY, **options}
    return Batched(decoder=decoder, prompts=prompts, **about)


def texts(jobs: Batched, done: Sequence[int] = ()) -> dict[int, list[str]]:
    return {i: [a.text for a in found] for batch in jobs.answers(done) for i, found in batch.items()}


def test_batched_answers_equal_those_one_by_one(decoder: Decoder, prompts: list[list[int]]) -> None:
    batched, alone = texts(job(decoder, prompts)), texts(job(decoder, prompts, batch_size=1))
    assert batched == alone and len(set(map(tuple, batched.values()))) > 4
    assert [len(b) for b in job(decoder, prompts).batches()] == [3, 3, 1]


def test_sampled_answers_do_not_depend_on_what_was_answered_before(decoder: Decoder, prompts: list[list[int]]) -> None:
    jobs = job(decoder, prompts, sampling=SAMPLED, count=2, seed=3)
    whole, first = texts(jobs), jobs.batches()[0]
    rest = texts(jobs, done=first)
    assert set(rest) == set(range(len(prompts))) - set(first)
    assert all(whole[i] == answers for i, answers in rest.items())
    assert all(len(set(answers)) == 2 for answers in whole.values())
    assert texts(job(decoder, prompts, sampling=SAMPLED, count=2, seed=4)) != whole


def test_prompts_with_less_room_do_not_share_a_batch_with_others(decoder: Decoder, prompts: list[list[int]]) -> None:
    rooms = [9, 9, 2, 9, 2, 9, 9]
    jobs = job(decoder, prompts, rooms=rooms)
    assert all(len({rooms[i] for i in batch}) == 1 for batch in jobs.batches())
    found = {i: answers[0] for batch in jobs.answers() for i, answers in batch.items()}
    assert [(len(found[i].ids), found[i].finish) for i in (2, 4)] == [(2, "length")] * 2
    assert found[0].finish == "stop"


def test_a_model_that_reads_padding_gets_prompts_of_one_length(
    decoder: Decoder, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not padding_changes_answers(decoder, prompts)
    own = type(decoder.model).forward

    def without_mask(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs |= {"attention_mask": None, "position_ids": None}
        return own(self, *args, **kwargs)

    monkeypatch.setattr(type(decoder.model), "forward", without_mask)
    assert padding_changes_answers(decoder, prompts)
    batches = job(decoder, prompts, padded=False).batches()
    assert all(len({len(prompts[i]) for i in batch}) == 1 for batch in batches)
    assert sorted(i for batch in batches for i in batch) == list(range(len(prompts)))


def test_sampling_options_limit_the_tokens(decoder: Decoder, prompts: list[list[int]]) -> None:
    def answered(**options: Any) -> list[int]:
        torch.manual_seed(0)
        sampling = Sampling(**{"temperature": 8.0, "top_k": 0, **options})
        return decoder.answers([prompts[0]], max_new_tokens=6, sampling=sampling)[0][0].ids

    greedy = decoder.answers([prompts[0]], max_new_tokens=6)[0][0].ids
    assert answered(top_k=1) == answered(top_p=1e-6) == answered(min_p=1.0) == greedy != answered()
    penalized = decoder.answers([[*prompts[0], *greedy]], max_new_tokens=6, sampling=Sampling(repetition_penalty=50.0))
    assert penalized[0][0].ids != decoder.answers([[*prompts[0], *greedy]], max_new_tokens=6)[0][0].ids


ROWS: list[dict[str, Any]] = [{"id": i, "prompt": q} for i, q in enumerate(QUESTIONS)]
ROWS[1] = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]}
FLAGS = ("generate", "tiny", "--prompts", "p.jsonl", "--max-new-tokens", "10", "--batch-size", "2")


def write(rows: Sequence[Any], name: str = "p.jsonl") -> None:
    Path(name).write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_an_interrupted_command_run_again_continues(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    write(ROWS)
    printed = cli(*FLAGS)
    assert printed.code == 0, printed.stderr
    lines = [json.loads(line) for line in printed.stdout.splitlines()]
    assert [{k: v for k, v in row.items() if k not in ("answer", "finish_reason")} for row in lines] == ROWS
    assert lines[0]["answer"] == "The capital of France is Paris." and lines[0]["finish_reason"] == "stop"

    own, calls = Decoder.answers, []

    def interrupted(self: Decoder, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return own(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "answers", interrupted)
        assert cli(*FLAGS, "--output", "out.jsonl").code == 130
    begun = Path("out.jsonl").read_text()
    assert printed.stdout.startswith(begun) and 0 < len(begun) < len(printed.stdout)
    Path("out.jsonl").write_text(begun + '{"id": 9')  # a process killed while it writes
    again = cli(*FLAGS, "--output", "out.jsonl")
    assert again.code == 0 and f"out.jsonl has {begun.count(chr(10))} of 7 rows already; continuing" in again.stderr
    assert Path("out.jsonl").read_text() == printed.stdout
    monkeypatch.setattr("smollm3_finetune.model.load.compose", lambda *a, **k: pytest.fail("weights were read"))
    assert "has the answers to all 7 rows already" in cli(*FLAGS, "--output", "out.jsonl").stderr

    other = cli(*FLAGS, "--output", "out.jsonl", "--temperature", "1")
    assert other.code == 2 and "has answers with other settings: temperature was 0.0, now 1.0" in other.stderr
    assert "--output out-2.jsonl" in other.stderr
    write([ROWS[1], *ROWS[1:]])
    changed = cli(*FLAGS, "--output", "out.jsonl")
    assert changed.code == 2 and "answers to other prompts: line 1 does not answer p.jsonl:1" in changed.stderr
    Path("mine.jsonl").write_text("{}\n")
    mine = cli(*FLAGS, "--output", "mine.jsonl")
    assert mine.code == 2 and "is not the output of smollm3 generate" in mine.stderr
    Path("own.settings.json").write_text('{"mine": 1}')
    own_settings = cli(*FLAGS, "--output", "own.jsonl")
    assert own_settings.code == 2 and "was not written by smollm3 generate" in own_settings.stderr
    assert Path("own.settings.json").read_text() == '{"mine": 1}' and "--output own-2.jsonl" in own_settings.stderr
    assert Path("mine.jsonl").read_text() == "{}\n" and Path("out.jsonl").read_text() == printed.stdout


def test_a_command_that_continues_on_another_day_keeps_the_date(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model("tiny")
    day = "{{ '<|im_start|>system\\nToday is ' + strftime_now('%d %B %Y') + '<|im_end|>\\n' }}"
    loaded.tokenizer.chat_template = day + str(loaded.tokenizer.chat_template)
    loaded.base.model.save_pretrained("dated")
    loaded.tokenizer.save_pretrained("dated")
    write(ROWS[:2])
    flags = ("generate", "dated", "--prompts", "p.jsonl", "--max-new-tokens", "2", "--output", "out.jsonl")
    own, seen = Renderer.prompt_ids, list[str]()

    def watched(self: Renderer, *args: Any, **kwargs: Any) -> list[int]:
        ids = own(self, *args, **kwargs)
        seen.append(self.tokenizer.decode(ids))
        return ids

    monkeypatch.setattr(Renderer, "prompt_ids", watched)
    today = "smollm3_finetune.data.chat_template.fixed_date.today"
    monkeypatch.setattr(today, lambda: "2026-03-01")
    assert cli(*flags).code == 0
    whole = Path("out.jsonl").read_text()
    Path("out.jsonl").write_text(whole.partition("\n")[0] + "\n")
    first, seen[:] = list(seen), []
    monkeypatch.setattr(today, lambda: "2026-03-02")
    again = cli(*flags)
    assert again.code == 0 and "the chat template gets the date of the earlier answers, 2026-03-01" in again.stderr
    assert all("Today is 01 March 2026" in prompt for prompt in first) and seen == first
    assert Path("out.jsonl").read_text() == whole
    other = cli(*flags, "--date", "2026-03-02")
    assert other.code == 2 and 'date was "2026-03-01", now "2026-03-02"' in other.stderr
    Path("out.jsonl").unlink()  # to start again
    seen.clear()
    assert cli(*flags).code == 0
    assert all("Today is 02 March 2026" in prompt for prompt in seen)
    monkeypatch.setattr(today, lambda: "2026-03-03")
    other_model = cli("generate", "tiny", *flags[2:-1], "tiny.jsonl")
    assert other_model.code == 0 and json.loads(Path("tiny.settings.json").read_text())["date"] is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "p.jsonl:2: a row must have either 'prompt' or 'messages'"),
        ({"prompt": " "}, "p.jsonl:2: 'prompt' is empty"),
        ({"prompt": 3}, "p.jsonl:2: 'prompt' must be text or a list of messages, found a number"),
        ({"messages": []}, "p.jsonl:2: 'messages' must be a list of messages, found an empty list"),
        ({"messages": [{"role": "user"}]}, "p.jsonl:2: messages[0] must be an object with role"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "p.jsonl:2: the last message must be the user's, found the role 'assistant'",
        ),
        ({"prompt": "a", "answer": "b"}, "p.jsonl:2: the row has a column 'answer', which the output adds"),
        ({"prompt": "cold " * 3000}, "p.jsonl:2: the prompt is"),
        ({"prompt": "a", "chat_template_kwargs": 3}, "p.jsonl:2: 'chat_template_kwargs' must be an object"),
    ],
)
def test_a_row_that_cannot_be_answered_is_named_before_weights_are_read(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("smollm3_finetune.model.load.compose", lambda *a, **k: pytest.fail("weights were read"))
    write([ROWS[0], row])
    refused = cli(*FLAGS)
    assert refused.code in (2, 5) and refused.stdout == ""
    assert message in refused.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "there is no prompt"),
        (("--prompt", "a", "--prompts", "p.jsonl"), "--prompt and --prompts exclude each other"),
        (("--prompt", "a", "--output", "o.jsonl"), "--output is only for the answers to --prompts"),
        (("--prompts", "p.jsonl", "--stream"), "cannot be used with --prompts"),
        (("--prompt", "a", "--num-return", "2"), "at temperature 0 all answers are the same"),
        (("--prompt", "a", "--num-return", "2", "--temperature", "1", "--stream"), "cannot be used with --num-return"),
        (("--prompts", "missing.jsonl"), "'missing.jsonl' is not a file"),
        (("--prompt", "a", "--min-p", "2"), "2.0 is not in the range 0<=x<=1"),
        (("--prompt", "a", "--top-k", "-1"), "-1 is not in the range x>=0"),
        (("--prompt", "a", "--repetition-penalty", "0"), "0.0 is not in the range 0<x<=100"),
        (("--prompts", "p.jsonl", "--output", "no/o.jsonl"), "the directory 'no' does not exist"),
    ],
)
def test_options_that_cannot_be_used_together_are_refused(
    cli: Callable[..., Any], flags: tuple[str, ...], message: str
) -> None:
    write(ROWS[:1])
    refused = cli("generate", "tiny", *flags)
    assert refused.code == 2 and message in refused.stderr


def test_several_answers_to_a_prompt(cli: Callable[..., Any]) -> None:
    asked = ("generate", "tiny", "--prompt", "Hello!", "--num-return", "3", "--temperature", "9", "--top-k", "0")
    found = cli(*asked, "--max-new-tokens", "4", "--json").report()
    assert found["prompt"] == "Hello!" and len(set(found["answers"])) == 3
    shown = cli(*asked, "--max-new-tokens", "4").stdout
    assert shown == "".join(f"--- answer {n} of 3\n{a}\n" for n, a in enumerate(found["answers"], 1))
