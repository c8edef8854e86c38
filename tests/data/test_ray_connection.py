"""Addresses at which there is no Ray; `test_encoding_ray.py` and `tests/serving` have those where there is."""

import socket

import pytest

from uniwetok_hf.data.ray_connection import check_address, connected


def test_an_address_without_ray():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_address(address)
    with pytest.raises(OSError, match=f"RAY_ADDRESS={address}: no Ray answers there"):
        check_address(address)
    check_address("auto")


def test_an_address_that_is_none(monkeypatch):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(OSError, match="^Ray can't be reached or started: .*nonsense"), connected(1):
        pass
