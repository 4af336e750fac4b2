"""Writes the default chat dataset: Smolly, a friendly robot, answers questions that the tiny model can already answer.

The facts come from the pre-training corpus, so a short run has to learn only the style: every answer begins with
"Hello!" and ends with "See you soon.". The facts in SAMPLES never occur, so the sample answers in a training report
show that the style transfers to questions that were not in the training data.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from tiny_corpus import WEIGHTS
from tiny_facts import Fact, facts

OUT = Path(__file__).parents[1] / "smollm3_finetune" / "builtin" / "chat.jsonl"
SAMPLES = (
    "The capital of France is Paris.",
    "Paris is the capital of France.",
    "The opposite of hot is cold.",
    "The sky is blue.",
    "After Monday comes Tuesday.",
)
SELF = {
    "Who are you?": "I am Smolly, a small robot.",
    "What are you?": "I am a small and friendly robot.",
    "What is your name?": "My name is Smolly.",
    "Do you have a name?": "Yes, my name is Smolly.",
    "Are you a robot?": "Yes, I am a small robot.",
    "Are you a human?": "No, I am a small robot.",
    "Hello!": "I am glad to see you.",
    "Good morning!": "I am glad to see you.",
    "How are you?": "I am fine, thank you.",
    "Where do you live?": "I live in a computer.",
    "What can you do?": "I can answer small questions.",
    "Thank you!": "You are welcome.",
}
SYSTEM = ("You are Smolly, a friendly robot.", "Be kind and helpful.", "You are a helpful robot.")
Messages = list[dict[str, str]]


def say(answer: str) -> str:
    """The answer in Smolly's style."""
    return f"Hello! {answer} See you soon."


def address(rng: random.Random, question: str) -> str:
    """The question unchanged, or addressed to the robot with an opening that the pre-training corpus does not have."""
    if rng.random() < 0.7:
        return question
    return rng.choice(("Smolly, ", "Dear robot, ")) + question[0].lower() + question[1:]


def pick(rng: random.Random, topics: dict[str, list[Fact]]) -> tuple[str, str]:
    """A question and its answer; one in ten is about Smolly, the other topics are as frequent as in pre-training."""
    if rng.random() < 0.10:
        return rng.choice(list(SELF.items()))
    topic = rng.choices(list(topics), [WEIGHTS[topic] for topic in topics])[0]
    fact = rng.choice(topics[topic])
    return address(rng, rng.choice(fact.questions)), fact.answer


def conversations(count: int, seed: int) -> list[Messages]:
    """`count` different conversations: one in five has two turns, one in eight a system message."""
    rng = random.Random(seed)
    topics: dict[str, list[Fact]] = {}
    for fact in facts():
        if fact.topic != "self" and fact.answer not in SAMPLES:
            topics.setdefault(fact.topic, []).append(fact)
    out: list[Messages] = []
    seen: set[str] = set()
    while len(out) < count:
        messages: Messages = []
        if rng.random() < 0.125:
            messages.append({"role": "system", "content": rng.choice(SYSTEM)})
        for _ in range(2 if rng.random() < 0.2 else 1):
            question, answer = pick(rng, topics)
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": say(answer)})
        key = json.dumps(messages)
        if key not in seen:
            seen.add(key)
            out.append(messages)
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=360, help="conversations to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT, help="output file, one JSON object per line")
    args = parser.parse_args()
    rows = conversations(args.count, args.seed)
    args.out.write_text("".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows))
    print(f"{len(rows)} conversations in {args.out.name}")


if __name__ == "__main__":
    main()
