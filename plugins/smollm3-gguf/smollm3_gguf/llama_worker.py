"""The process in which llama.cpp runs, so that an abort or a message of it does not reach the command.

`llama_process.py` starts it. A request is one line of JSON on standard input; a reply is one line of JSON on standard
output, and then `bytes` bytes.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

F32 = 0
"""`GGML_TYPE_F32` and `LLAMA_FLASH_ATTN_TYPE_DISABLED` have this value."""


class RefusedError(Exception):
    """llama.cpp refused a file; the text is its first error message."""


class Session:
    """One model and its context, once `open` was called."""

    def __init__(self) -> None:
        self.lib: Any = importlib.import_module("llama_cpp.llama_cpp")
        self.errors: list[str] = []
        self.callback = self.lib.llama_log_callback(self._log)  # kept: llama.cpp holds a bare pointer
        self.lib.llama_log_set(self.callback, ctypes.c_void_p(0))
        self.lib.llama_backend_init()
        self.model: Any = None
        self.context: Any = None
        self.vocabulary: Any = None
        self.size = 0

    def _log(self, level: int, text: bytes, _: Any) -> None:
        if level == self.lib.GGML_LOG_LEVEL_ERROR if hasattr(self.lib, "GGML_LOG_LEVEL_ERROR") else level == 4:
            self.errors.append(text.decode("utf-8", "replace").strip())

    def refused(self, otherwise: str) -> RefusedError:
        """The first error message since the request began, without the name of the function that wrote it."""
        lines = (line.strip() for error in self.errors for line in error.splitlines())
        said = next((line for line in lines if any(map(str.isalnum, line))), otherwise)
        function, found, message = said.partition(": ")
        return RefusedError(message if found and " " not in function else said)

    def open(self, file: str, length: int, threads: int, adapter: str | None = None) -> dict[str, Any]:
        """Load a model, and an adapter for it, on the CPU; attention and its cache compute in float32."""
        lib = self.lib
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.check_tensors = True
        self.model = lib.llama_model_load_from_file(os.fsencode(file), params)
        if not self.model:
            raise self.refused("llama.cpp did not load the file")
        self.vocabulary = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocabulary)
        context = lib.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = length
        context.n_threads = context.n_threads_batch = threads
        context.type_k = context.type_v = context.flash_attn_type = F32
        context.offload_kqv = context.op_offload = False
        self.context = lib.llama_init_from_model(self.model, context)
        if not self.context:
            raise self.refused("llama.cpp made no context")
        if adapter is not None:
            loaded = lib.llama_adapter_lora_init(self.model, os.fsencode(adapter))
            if not loaded:
                raise self.refused("llama.cpp did not load the adapter")
            one = (lib.llama_adapter_lora_p_ctypes * 1)(ctypes.cast(loaded, lib.llama_adapter_lora_p_ctypes))
            if lib.llama_set_adapters_lora(self.context, one, 1, (ctypes.c_float * 1)(1.0)):
                raise self.refused("llama.cpp did not apply the adapter")
        return {"size": self.size}

    def _decode(self, ids: Sequence[int], start: int, wanted: Sequence[int]) -> Any:
        """Decode `ids` from position `start`; returns the logits (len(wanted), size) of these indices, a view."""
        import numpy as np

        lib = self.lib
        if bad := [i for i in ids if not 0 <= i < self.size]:
            raise RefusedError(f"the file has {self.size} tokens, and token {bad[0]} is not among them")
        batch = lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            asked = set(wanted)
            for index, token in enumerate(ids):
                batch.token[index] = token
                batch.pos[index] = start + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = index in asked
            if lib.llama_decode(self.context, batch):
                raise self.refused("llama.cpp did not compute the row")
        finally:
            lib.llama_batch_free(batch)
        return np.ctypeslib.as_array(lib.llama_get_logits(self.context), shape=(len(wanted), self.size))

    def _clear(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def logits(self, ids: list[int], wanted: list[int]) -> tuple[dict[str, Any], bytes]:
        """The logits at the indices `wanted`, ascending, as float32."""
        self._clear()
        values = self._decode(ids, 0, wanted)
        return {"shape": list(values.shape)}, values.tobytes()

    def greedy(self, ids: list[int], count: int, stops: list[int]) -> dict[str, Any]:
        """At most `count` tokens after `ids`, each the most probable one; ends after a token of `stops`."""
        self._clear()
        answer: list[int] = []
        row, start = ids, 0
        while len(answer) < count:
            best = int(self._decode(row, start, [len(row) - 1])[0].argmax())
            answer.append(best)
            if best in stops:
                break
            start += len(row)
            row = [best]
        return {"ids": answer}

    def tokenize(self, texts: list[str], special: bool) -> dict[str, Any]:
        """The ids of each text, with control tokens parsed; `special`: with the tokens that llama.cpp adds itself."""
        return {"ids": [self._ids(text.encode(), special) for text in texts]}

    def _ids(self, text: bytes, special: bool) -> list[int]:
        room = len(text) + 8
        tokens = (self.lib.llama_token * room)()
        count = self.lib.llama_tokenize(self.vocabulary, text, len(text), tokens, room, special, True)
        if count < 0:
            raise RefusedError(f"llama.cpp gave more than {room} tokens for a text of {len(text)} bytes")
        return list(tokens[:count])

    def tokens(self) -> dict[str, Any]:
        """The text of every token, and the tokens at which llama.cpp ends an answer."""
        lib, vocabulary = self.lib, self.vocabulary
        texts = [lib.llama_vocab_get_text(vocabulary, i).decode("utf-8", "replace") for i in range(self.size)]
        ends = [i for i in range(self.size) if lib.llama_vocab_is_eog(vocabulary, i)]
        return {"texts": texts, "ends": ends}

    def quantize(self, source: str, out: str, type: int, threads: int) -> dict[str, Any]:
        """llama.cpp's own quantization of a float file; `type` is a value of its `llama_ftype`."""
        params = self.lib.llama_model_quantize_default_params()
        params.ftype = type
        params.nthread = threads
        if self.lib.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)):
            raise self.refused("llama.cpp did not quantize the file")
        return {}


def end_with_the_parent() -> None:
    """Let the kernel end this process when the command that started it ends, even if that was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until the input ends."""

    def reply(header: dict[str, Any], payload: bytes = b"") -> None:
        replies.write(json.dumps({**header, "bytes": len(payload)}).encode() + b"\n" + payload)
        replies.flush()

    try:
        session = Session()
    except (ImportError, OSError, AttributeError, RuntimeError) as e:
        reply({"unusable": f"{type(e).__name__}: {e}"})
        return
    reply({"version": str(getattr(sys.modules.get("llama_cpp"), "__version__", ""))})
    for line in requests:
        request = json.loads(line)
        session.errors.clear()
        try:
            answer = getattr(session, request.pop("do"))(**request)
        except RefusedError as e:
            reply({"refused": str(e)})
            continue
        except Exception as e:  # of llama-cpp-python or of memory: the file is not to blame
            reply({"failed": f"{type(e).__name__}: {e}"})
            continue
        header, payload = answer if isinstance(answer, tuple) else (answer, b"")
        reply(header, payload)


def main() -> None:
    end_with_the_parent()
    with os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)  # what llama.cpp prints goes to standard error, which the parent reads after an abort
        serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
