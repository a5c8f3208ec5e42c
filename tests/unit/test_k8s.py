"""The manifests and the image fit the program, its settings and each other."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from replay_app.settings import Settings
from replay_app.worker import STOP_SECONDS, THREADS_SECONDS

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((ROOT / "k8s").rglob("*.yaml"))
DOCKERFILE = ROOT / "Dockerfile"
PORT = Settings.model_fields["web_port"].default
LABELS = {"app.kubernetes.io/name": "event-replay"}


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the YAML documents of a file."""
    return list(yaml.safe_load_all(path.read_text()))


def resource(kind: str, name: str = "event-replay") -> dict[str, Any]:
    """Return one resource of the base."""
    (found,) = (
        document
        for path in (ROOT / "k8s" / "base").glob("*.yaml")
        for document in documents(path)
        if document["kind"] == kind and document.get("metadata", {}).get("name") == name
    )
    return found


def pod() -> dict[str, Any]:
    """Return the pod's spec."""
    spec: dict[str, Any] = resource("StatefulSet")["spec"]["template"]["spec"]
    return spec


def worker() -> dict[str, Any]:
    """Return the pod's only container."""
    (container,) = pod()["containers"]
    found: dict[str, Any] = container
    return found


def instructions(name: str) -> list[str]:
    """Return the arguments of each Dockerfile instruction of one name, continued lines joined."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return re.findall(rf"^\s*{name}\s+(.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("path", [*MANIFESTS, DOCKERFILE], ids=lambda path: path.name)
def test_every_setting_that_is_set_exists(path: Path) -> None:
    known = {f"REPLAY_{name.upper()}" for name in Settings.model_fields}
    # "REPLAY_*" in a comment is not the name of a setting.
    used = set(re.findall(r"\bREPLAY_[A-Z_]*[A-Z]", path.read_text()))
    assert used <= known


def test_every_resource_that_is_listed_is_there_and_every_file_is_listed() -> None:
    kustomizations = sorted((ROOT / "k8s").rglob("kustomization.yaml"))
    assert len(kustomizations) == 2
    for kustomization in kustomizations:
        folder = kustomization.parent
        (document,) = documents(kustomization)
        listed = {(folder / name).resolve() for name in document["resources"]}
        assert all(path.exists() for path in listed)
        assert set(folder.glob("*.yaml")) - {kustomization} <= listed


def test_every_place_names_the_port_of_the_settings() -> None:
    values = {one["name"]: one.get("value") for one in worker()["env"]}
    assert values["REPLAY_WEB_PORT"] == str(PORT)
    assert values["REPLAY_CANONICAL_URL"] == f"http://$(REPLAY_WORKER_ID).event-replay:{PORT}"
    assert worker()["ports"] == [{"name": "http", "containerPort": PORT}]
    (headless,) = resource("Service")["spec"]["ports"]
    assert (headless["port"], headless["targetPort"]) == (PORT, "http")
    (api,) = resource("Service", "event-replay-api")["spec"]["ports"]
    assert api["targetPort"] == "http"
    assert instructions("EXPOSE") == [str(PORT)]
    (check,) = instructions("HEALTHCHECK")
    assert f"int(os.environ.get('REPLAY_WEB_PORT', '{PORT}'))" in check


@pytest.mark.parametrize(
    ("probe", "path"),
    [
        ("startupProbe", "/healthz"),
        ("livenessProbe", "/healthz"),
        ("readinessProbe", "/readyz?exclude=store"),
    ],
)
def test_every_probe_asks_the_path_that_is_meant_for_it(probe: str, path: str) -> None:
    assert worker()[probe]["httpGet"] == {"path": path, "port": "http"}


def test_services_add_no_variables_to_the_pods() -> None:
    assert pod()["enableServiceLinks"] is False


def test_the_pod_runs_as_the_user_of_the_image() -> None:
    (user,) = instructions("USER")
    context = pod()["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
    assert context["fsGroup"] == context["runAsGroup"]
    assert context["runAsNonRoot"] is True


def test_a_worker_is_found_by_the_name_that_the_headless_service_gives_it() -> None:
    # Kubernetes replaces $(NAME) only by a variable that stands before.
    names = [one["name"] for one in worker()["env"]]
    assert names.index("REPLAY_WORKER_ID") < names.index("REPLAY_CANONICAL_URL")
    service = resource("Service")
    assert resource("StatefulSet")["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_every_selector_takes_the_workers_and_no_other_pod() -> None:
    template = resource("StatefulSet")["spec"]["template"]
    assert template["metadata"]["labels"] == LABELS
    assert resource("StatefulSet")["spec"]["selector"] == {"matchLabels": LABELS}
    assert resource("PodDisruptionBudget")["spec"]["selector"] == {"matchLabels": LABELS}
    assert resource("NetworkPolicy")["spec"]["podSelector"] == {"matchLabels": LABELS}
    for name in ("event-replay", "event-replay-api"):
        assert resource("Service", name)["spec"]["selector"] == LABELS
    (rule,) = resource("NetworkPolicy")["spec"]["ingress"]
    assert rule["ports"] == [{"port": "http"}]
    for path in MANIFESTS:
        selectors = [one for document in documents(path) for one in _selectors(document)]
        assert all(selectors), f"{path} has an empty selector, which takes every pod"


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


def _selectors(part: Any) -> Iterator[dict[str, Any]]:
    """Yield every selector in a document, at any depth."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name.lower().endswith("selector"):
                yield value
            yield from _selectors(value)
    elif isinstance(part, list):
        for value in part:
            yield from _selectors(value)


def test_kubernetes_waits_longer_for_the_end_than_a_worker_needs() -> None:
    assert pod()["terminationGracePeriodSeconds"] > STOP_SECONDS + THREADS_SECONDS + 10
