"""Containers that lack what a system usually has: what stock ONNX Runtime loads is loaded, with one warning at most."""

import logging
from pathlib import Path

import pytest

from conformance.platforms.contained import CONTAINERS, WAYS, Container, Scene
from conformance.platforms.containers import in_container, scene_in, why_not
from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.system.platform import host
from tests.support import CPU, made_report, quiet, result, save, stack, stock

QUICK = ("read-only root", "no /proc")
# How sessions are made in each, in the order of `WAYS`; in all others as here.
AS_EVERYWHERE = [
    "stock",
    "borrowed",
    "borrowed",
    "by path",
    *["borrowed, made", "borrowed, used"],
    *["shared, made", "shared, used"],
]
WITHOUT_PLACE = ["stock", "borrowed", "borrowed", "stock", *["borrowed"] * 4]
ROUTES = {
    "read-only root": WITHOUT_PLACE,
    "tiny /dev/shm": WITHOUT_PLACE,
    "all of these": WITHOUT_PLACE,
    "no /proc": ["stock", "borrowed", "borrowed", "stock", *["borrowed, made", "borrowed, used"] * 2],
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("containers").resolve()
    for path in (folder, *folder.parents[:2]):
        path.chmod(path.stat().st_mode | 0o005)  # the unknown user, too
    return scene_in(folder)


@pytest.mark.parametrize(
    "container",
    [pytest.param(one, id=one.name, marks=() if one.name in QUICK else pytest.mark.slow) for one in CONTAINERS],
)
def test_what_stock_loads_in_a_container(scene: Scene, container: Container) -> None:
    reason = why_not(container)
    if reason:
        pytest.skip(reason)
    told = in_container(container, scene, *WAYS)
    assert [problem for one in told if (problem := one.problem(scene.digest))] == []
    routes = [one.route for one in told]
    expected = ROUTES.get(container.name, AS_EVERYWHERE)
    if container.name == "little memory":
        # The helper that pre-packs weights takes some of its own: how much depends on the number of cores.
        assert routes[:-2] == expected[:-2]
        return
    assert routes == expected
    if expected is AS_EVERYWHERE:
        assert not any(one.warnings for one in told)
    if container.name == "read-only root":
        assert not told[WAYS.index("plain load")].warnings, "no directory was named, and there is none"
    assert all(len(one.warnings) == 1 for one in told[1:] if one.route == "stock"), "why nothing is fused"


def test_weights_are_not_shared_where_nothing_is_opened_by_path(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(stack(2, 128), tmp_path, "external")
    monkeypatch.setattr(host, "opens_by_path", lambda: False)
    for use in ("made", "used"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
            session = create_session(path, quiet(), CPU, options=Options(cache_dir=cache, share_weights=True))
        report = made_report(session)
        assert (report.route, report.cache, report.shared_bytes) == ("borrowed", use, 0)
        assert len(caplog.records) == 1
        assert "without /proc" in caplog.text
        assert (result(session) == result(stock(str(path)))).all()
