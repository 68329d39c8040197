"""`vit serve`: models behind a page and an API of this machine."""

from typing import Annotated

import typer

from vitcli.cli.options import DeviceOpt, EngineOpt, EnginePrecisionOpt
from vitcli.errors import VitError
from vitcli.text import safe

ServedArg = Annotated[
    list[str] | None,
    typer.Argument(help="A bundled name, a timm or Hub name, a folder, a file; several are shown side by side."),
]
PortOpt = Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")]
HostOpt = Annotated[
    str, typer.Option("--host", help="Address to listen at; others than this machine's own need --token.")
]
TokenOpt = Annotated[
    str | None,
    typer.Option("--token", envvar="VIT_TOKEN", help="Answer only who sends this: 16 characters or more."),
]
NameOpt = Annotated[
    list[str] | None,
    typer.Option("--name", help="A name by which browsers reach this machine, such as a proxy's; may be repeated."),
]
QueueOpt = Annotated[
    int, typer.Option("--queue", min=1, help="Requests that may wait; those beyond are told to come again.")
]
UploadOpt = Annotated[int, typer.Option("--max-upload", min=1, max=1024, help="MiB that one request may bring.")]
TimeoutOpt = Annotated[
    float, typer.Option("--timeout", min=1, help="Seconds that a request may take to arrive, and to be answered.")
]


def serve(
    models: ServedArg = None,
    port: PortOpt = 8000,
    host: HostOpt = "127.0.0.1",
    token: TokenOpt = None,
    name: NameOpt = None,
    queue: QueueOpt = 128,
    max_upload: UploadOpt = 64,
    timeout: TimeoutOpt = 60,
    engine: EngineOpt = "auto",
    device: DeviceOpt = None,
    precision: EnginePrecisionOpt = "auto",
) -> None:
    """Try models in a browser on this machine, and ask them by HTTP.

    A page at /, POST /predict with images, GET /models, /health and /openapi.json. Ctrl-C ends it.
    """
    from vitcli.cli.console import note, resolved
    from vitcli.inference.predict import load

    try:
        from vitcli.serve.run import serve as answer
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "vitcli":
            raise
        raise VitError(f"vit serve needs {safe(error.name)}: pip install 'vitcli[serve]'") from error
    from vitcli.serve.uploads import Limits

    loaded = []
    named: list[str | None] = [*models] if models else [None]
    for one in named:
        checkpoint = resolved(one)
        for line in checkpoint.notes:
            note(line)
        if one is None:
            note(checkpoint.why)
        loaded.append(load(checkpoint, engine=engine, precision=precision, device=device))
    limits = Limits(
        waiting=queue,
        request_bytes=max_upload << 20,
        held_bytes=max(max_upload << 20, Limits.held_bytes),
        seconds=timeout,
    )

    def ready(address: str) -> None:
        note(f"{address} answers{'' if token is None else ' who has the token'}; Ctrl-C ends it")

    answer(loaded, host=host, port=port, token=token, names=name or (), limits=limits, ready=ready)
