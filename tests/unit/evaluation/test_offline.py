"""Is a hub that does not answer asked once, and not five times a file?"""

from __future__ import annotations

import socket

import datasets
import pytest
from huggingface_hub import constants

from selfaug.evaluation import harness_faults


@pytest.mark.parametrize("answers", [False, True])
def test_the_hub_is_switched_off_only_where_it_does_not_answer(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    if not answers:
        server.close()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(harness_faults, "getproxies", dict)
    harness_faults.offline_where_unreachable.cache_clear()
    try:
        harness_faults.offline_where_unreachable()
        assert (not answers, not answers) == (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    finally:
        server.close()
        harness_faults.offline_where_unreachable.cache_clear()
