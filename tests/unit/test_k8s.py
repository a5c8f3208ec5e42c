import re
import tomllib
from pathlib import Path

import pytest

from replay_app.settings import Settings

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((ROOT / "k8s").rglob("*.yaml"))
DOCKERFILE = ROOT / "Dockerfile"
PORT = Settings.model_fields["web_port"].default


def text_of(name: str) -> str:
    return (ROOT / "k8s" / "base" / name).read_text()


@pytest.mark.parametrize("path", [*MANIFESTS, DOCKERFILE], ids=lambda path: path.name)
def test_every_setting_that_is_set_exists(path: Path) -> None:
    known = {f"REPLAY_{name.upper()}" for name in Settings.model_fields}
    # Not the stars and dashes of prose: "REPLAY_* settings".
    used = set(re.findall(r"\bREPLAY_[A-Z_]*[A-Z]", path.read_text()))
    assert used <= known


def test_every_resource_that_is_listed_is_there_and_every_file_is_listed() -> None:
    for kustomization in (ROOT / "k8s").rglob("kustomization.yaml"):
        listed = re.search(r"^resources:\n((?:  - .*\n)+)", kustomization.read_text(), re.MULTILINE)
        assert listed, kustomization
        paths = {kustomization.parent / line for line in re.findall(r"- (.*)", listed[1])}
        assert all(path.exists() for path in paths)
        assert set(kustomization.parent.glob("*.yaml")) - {kustomization} <= paths


def test_every_place_names_the_port_of_the_settings() -> None:
    workload = text_of("statefulset.yaml")
    assert f"http://$(REPLAY_WORKER_ID).event-replay:{PORT}" in workload
    assert f"containerPort: {PORT}" in workload
    assert f'value: "{PORT}"' in workload
    assert f"port: {PORT}" in text_of("service.yaml")
    assert f"EXPOSE {PORT}" in DOCKERFILE.read_text()
    assert f"'REPLAY_WEB_PORT', '{PORT}'" in DOCKERFILE.read_text()


def test_the_pod_runs_as_the_user_of_the_image() -> None:
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert user
    workload = text_of("statefulset.yaml")
    assert f"runAsUser: {user[1]}\n" in workload
    assert f"runAsGroup: {user[2]}\n" in workload
    assert f"fsGroup: {user[2]}\n" in workload


def test_a_worker_is_found_by_the_name_that_the_headless_service_gives_it() -> None:
    workload = text_of("statefulset.yaml")
    assert workload.index("name: REPLAY_WORKER_ID") < workload.index("$(REPLAY_WORKER_ID)")
    assert "serviceName: event-replay\n" in workload
    assert "publishNotReadyAddresses: true" in text_of("service.yaml")


def test_no_selector_takes_in_every_pod() -> None:
    for path in MANIFESTS:
        assert not re.search(r"[sS]elector: *\{\}", path.read_text()), path


def test_the_image_installs_the_tested_versions_and_all_that_is_declared() -> None:
    tested = pins("requirements.lock")
    shipped = pins("requirements-runtime.lock")
    assert shipped.items() <= tested.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", text)[0] for text in project["dependencies"]}
    assert declared <= shipped.keys()


@pytest.mark.parametrize(
    "lock", ["requirements.lock", "requirements-runtime.lock", "requirements-native.lock"]
)
def test_a_lock_names_no_index(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert not re.search(r"^ *--(?!hash=)", text, re.MULTILINE)


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))
