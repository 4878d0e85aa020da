"""Serves the page."""

import socket
from typing import Any

from easyedit_dualedit.app.extra import gradio
from easyedit_dualedit.app.page import STYLE, Page
from easyedit_dualedit.errors import ConfigError

LARGEST_UPLOAD = "64mb"

_AT_ONCE = 8


def check_address(host: str, port: int | None) -> None:
    """Raise unless this machine can be listened to there.

    Args:
        host: name or address.
        port: None for whichever is free.

    Raises:
        ConfigError: if the host is not this machine, or the port is taken or none.
    """
    try:
        # Gradio asks a host that is not there for each of a hundred ports, for minutes.
        family, kind, _, _, address = socket.getaddrinfo(
            host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            # As servers do: a port whose last connections are just ending is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address[0], port or 0, *address[2:]))
    except (OSError, OverflowError) as error:
        where = host if port is None else f"{host}, port {port}"
        raise ConfigError(
            f"nothing can listen at {where} ({error}); give an address of this machine as --host,"
            " and a free --port of at most 65535"
        ) from error


def served(
    page: Page, *, host: str, port: int | None, share: bool = False, waits: bool = True
) -> Any:
    """Serve a page until it is interrupted; or in the background.

    Args:
        page: to serve.
        host: address to listen at.
        port: None takes the first free one from 7860 on.
        share: whether to ask Gradio's servers for a public address.
        waits: whether to return only when it is interrupted.

    Returns:
        Gradio's blocks, with `local_url` and `close`.

    Raises:
        OSError: if the port is taken.
    """
    gr = gradio()
    sans, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    # Fonts of the system: the page fetches nothing from elsewhere.
    theme = gr.themes.Soft(primary_hue="indigo", font=sans, font_mono=mono)
    page.blocks.queue(default_concurrency_limit=_AT_ONCE, api_open=False)
    page.blocks.launch(
        server_name=host,
        server_port=port,
        share=share,
        theme=theme,
        css_paths=[STYLE],
        footer_links=["settings"],
        run_history=False,
        enable_monitoring=False,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    if waits:
        page.blocks.block_thread()
    return page.blocks
