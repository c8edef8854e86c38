# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Pictures that clients send: as uploads, as `data:` addresses, and, from hosts on a list, as addresses on the web."""

import asyncio
import base64
from collections.abc import Collection
from urllib.parse import urlsplit

from PIL import Image

from ..data.images import ImageReadError, read_strange_image


LARGEST_SIDE = 1024  # pixels; larger pictures are scaled down, so that those that wait take little memory
FETCH_SECONDS = 10


def read_upload(content: bytes, argument: str) -> Image.Image:
    """The picture of a file's `content`, as RGB of at most `LARGEST_SIDE`.

    Raises:
        ValueError: when it is none, or too large; the message names `argument`.
    """
    try:
        picture = read_strange_image(content)
    except ImageReadError as error:
        raise ValueError(f"`{argument}` can't be read as a picture: {str(error).split(': ', 1)[-1]}.") from None
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return picture


async def read_address(address: str, argument: str, allowed_hosts: Collection[str], max_bytes: int) -> bytes:
    """The file behind an address.

    Args:
        address: `data:image/...;base64,...`, or http(s) of one of `allowed_hosts`.
        argument: what errors call it.
        allowed_hosts: "host", or "host:port" for a port that is not the protocol's.
        max_bytes: size of the largest file that is fetched.

    Raises:
        ValueError: when it is neither, can't be fetched, or is too large; the message names `argument`.
    """
    if address.startswith("data:"):
        head, _, encoded = address.partition(",")
        if not head.startswith("data:image/") or not head.endswith(";base64"):
            raise ValueError(f"`{argument}` must begin with data:image/...;base64, got {head[:60]!r}.")
        try:
            return base64.b64decode(encoded, validate=True)
        except ValueError as error:
            raise ValueError(f"`{argument}` holds no base64: {error}.") from None
    try:
        parts = urlsplit(address)
        host = parts.netloc.lower()
    except ValueError:
        host, parts = "", None
    if parts is None or parts.scheme not in ("http", "https"):
        raise ValueError(f"`{argument}` must be a data: address of a picture, got {address[:60]!r}.")
    if host not in allowed_hosts:
        listed = f" but those of {', '.join(sorted(allowed_hosts))}" if allowed_hosts else ""
        raise ValueError(
            f"`{argument}`: this server fetches no addresses{listed}, got one of {host!r}; send the picture as "
            "data:image/png;base64,..."
        )
    return await _fetch(address, argument, max_bytes)


async def _fetch(address: str, argument: str, max_bytes: int) -> bytes:
    """Redirects are not followed: they may lead to hosts that are not on the list."""
    import httpx2

    content = bytearray()
    try:
        async with (
            asyncio.timeout(FETCH_SECONDS),
            httpx2.AsyncClient(timeout=FETCH_SECONDS, follow_redirects=False, trust_env=False) as client,
            client.stream("GET", address, headers={"Accept-Encoding": "identity"}) as response,
        ):
            if response.status_code != 200:
                raise ValueError(f"`{argument}`: {address[:200]} answers with the status {response.status_code}.")
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > max_bytes:
                    raise ValueError(f"`{argument}`: the file at {address[:200]} has more than {max_bytes} bytes.")
    except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
        raise ValueError(f"`{argument}`: {address[:200]} can't be fetched ({type(error).__name__}).") from None
    return bytes(content)


__all__ = ["read_address", "read_upload"]
