"""A correct formatter of questions and answers, and variants of it with one fault each. `VARIANTS` names them."""

from smollm3_finetune.api import Conversation, FormatterSpec, NoOptions, hookimpl


def claims(row):
    return isinstance(row.get("q"), str) and "a" in row


class Asked:
    """Correct."""

    columns = ("q", "a")

    def __init__(self, options: NoOptions) -> None:
        pass

    def texts(self, row):
        for column in self.columns:
            if not isinstance(row.get(column), str) or not row[column].strip():
                raise ValueError(f"the column {column!r} must hold text, got {row.get(column)!r}")
        return row["q"], row["a"]

    def __call__(self, row):
        question, answer = self.texts(row)
        messages = ({"role": "user", "content": question}, self.answer(answer))
        return Conversation(messages=messages, **self.more(row))

    def answer(self, text):
        return {"role": "assistant", "content": text}

    def more(self, row):
        return {}


class NoQuestion(Asked):
    """Claims by one column, and does not look at types."""

    def texts(self, row):
        return row["q"].strip(), row["a"]


class Changes(Asked):
    def texts(self, row):
        found = super().texts(row)
        row["a"] = row["a"].strip() + "."
        return found


class Remembers(Asked):
    def __init__(self, options):
        self.seen = 0

    def answer(self, text):
        self.seen += 1
        return {"role": "assistant", "content": f"{text} {self.seen}"}


class ReadsMore(Asked):
    def answer(self, text):
        return {"role": "assistant", "content": text}

    def more(self, row):
        return {"desirable": bool(row.get("label"))}


class OtherRole(Asked):
    def answer(self, text):
        return {"role": "gpt", "content": text}


class SupervisesTooFar(Asked):
    def more(self, row):
        return {"supervised": (2,)}


class SupervisesUser(Asked):
    def more(self, row):
        return {"supervised": (0, 1)}


class OddCalls(Asked):
    def answer(self, text):
        return {"role": "assistant", "content": text, "tool_calls": [{"name": "search", "arguments": {}}]}


class NoReason(Asked):
    def texts(self, row):
        try:
            return super().texts(row)
        except ValueError:
            raise ValueError from None


class EmptyIsText(Asked):
    def __call__(self, row):
        return super().__call__(row) if row else Conversation(text="")


class Returns(Asked):
    def __call__(self, row):
        return {"messages": list(super().__call__(row).messages)}


def claims_all(row):
    return True


def claims_badly(row):
    return row["q"] != "" and row["a"] is not None


def claims_text(row):
    return row.get("q") if "a" in row else False


def claims_numpy(row):
    import numpy  # noqa: F401

    return claims(row)


VARIANTS = {
    "asked": (Asked, claims), "no-types": (NoQuestion, claims), "changes": (Changes, claims),
    "remembers": (Remembers, claims), "reads-more": (ReadsMore, claims), "other-role": (OtherRole, claims),
    "supervises-too-far": (SupervisesTooFar, claims), "supervises-user": (SupervisesUser, claims),
    "odd-calls": (OddCalls, claims), "no-reason": (NoReason, claims), "empty-is-text": (EmptyIsText, claims),
    "returns-dict": (Returns, claims), "claims-all": (Asked, claims_all), "claims-badly": (Asked, claims_badly),
    "claims-text": (Asked, claims_text), "claims-numpy": (Asked, claims_numpy),
}  # fmt: skip


@hookimpl
def smollm3_formatters():
    return [
        FormatterSpec(name=name, summary=name, factory=f"broken_formatters:{cls.__name__}", claims=claimed, api=1)
        for name, (cls, claimed) in VARIANTS.items()
    ]
