"""The command: it reserves the port, loads the model, and answers until it is interrupted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.api import ConfigError

if TYPE_CHECKING:
    from smollm3_finetune.api import CommandTools


@click.command(short_help="Serve a model over HTTP, as the chat completions of OpenAI's API.")
@click.argument("model", metavar="RUN|MODEL")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all networks.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free port.")
@click.option("--quant", metavar="NAME", help="Quantizer of the model; that of a run is decided by the run.")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda, …")
@click.option("--dtype", metavar="NAME", help="auto, float32, bfloat16, …")
@click.pass_obj
def serve(tools: CommandTools, /, model: str, host: str, port: int, **settings: Any) -> None:
    """Serve the model of a run, or any other model, on this machine. One request is answered at a time.

    \b
    Examples:
      smollm3 serve runs/20261122-101500-tiny-lora
      smollm3 serve HuggingFaceTB/SmolLM3-3B --quant bnb-4bit --port 8080
    """
    from smollm3_serve.server import Server

    try:
        server = Server((host, port), os.path.basename(os.path.normpath(model)), tools.say)
    except OSError as e:
        raise ConfigError(f"cannot listen on {host}:{port}: {e.strerror or e}", hint="--port 0, for a free one") from e
    with server:
        server.model = tools.model(model, **settings)
        tools.print(f"http://{host}:{server.server_port}/v1")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            tools.say("stopped")
