"""What is in deploy/, by its own linters and schemas, and against what the server really has."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cellar_client import credentials
from cellar_server.config import Config, from_args
from cellar_server.front.metrics import MODEL_METERS, SERVER_METERS
from cellar_server.runtime.base import StartupError

from benchmarks.serving import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
YAMLS = sorted(path for path in DEPLOY.rglob("*") if path.suffix in (".yaml", ".yml"))
NO_RESOURCES = ("kustomization.yaml", "prometheus-adapter.yaml")
METERS = (*MODEL_METERS, *SERVER_METERS)
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


def program(name: str) -> str:
    """A linter that came from PyPI."""
    return str(Path(sys.executable).parent / name)


def passes(*command: str, cwd: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def documents(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def series(expression: str) -> set[str]:
    return set(re.findall(r"\bcellar_\w+", expression)) - {"cellar_busy"}


def known_series() -> set[str]:
    names = set()
    for meter in METERS:
        endings = ("_bucket", "_count", "_sum") if meter.kind == "histogram" else ("",)
        names |= {meter.name + ending for ending in endings}
    return names


def alerts() -> list[dict[str, Any]]:
    (rules,) = documents(DEPLOY / "prometheus" / "alerts.yml")
    return [rule for group in rules["groups"] for rule in group["rules"]]


def board_expressions() -> list[str]:
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "cellar.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


# -- linters and schemas ---------------------------------------------------------------------------------------------


def test_yaml_is_tidy() -> None:
    rules = "{extends: default, rules: {document-start: disable, line-length: {max: 120}}}"
    passes(program("yamllint"), "--strict", "-d", rules, *map(str, YAMLS))


def test_the_dockerfile_passes_its_linter() -> None:
    passes(program("hadolint"), str(DEPLOY / "Dockerfile"))


def test_the_compose_file_is_one() -> None:
    schema = "vendor.compose-spec"
    passes(program("check-jsonschema"), "--builtin-schema", schema, str(DEPLOY / "compose.yaml"))


@pytest.mark.parametrize("path", [path for path in KUBERNETES.glob("*.yaml") if path.name not in NO_RESOURCES], ids=str)
def test_manifests_are_what_kubernetes_takes(path: Path) -> None:
    found = documents(path)
    assert found
    for document in found:
        kubernetes_validate.validate(document, "1.31", strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_they_are_built_as_one() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(KUBERNETES)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    built = [document for document in yaml.safe_load_all(done.stdout) if document]
    for document in built:
        kubernetes_validate.validate(document, "1.31", strict=True)
    kinds = {"Namespace", "ConfigMap", "Service", "StatefulSet", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    assert {document["kind"] for document in built} == kinds
    assert {document["metadata"].get("namespace", "cellar") for document in built} == {"cellar"}


@needs_promtool
def test_prometheus_takes_its_configuration_and_rules() -> None:
    folder = DEPLOY / "prometheus"
    assert PROMTOOL is not None
    passes(PROMTOOL, "check", "config", "prometheus.yml", cwd=folder)
    passes(PROMTOOL, "check", "rules", "alerts.yml", cwd=folder)


@needs_promtool
def test_alerts_fire_when_they_should_and_not_before() -> None:
    assert PROMTOOL is not None
    passes(PROMTOOL, "test", "rules", "alerts_test.yml", cwd=DEPLOY / "prometheus")


@needs_promtool
def test_prometheus_can_read_what_the_board_and_the_autoscaler_ask(tmp_path: Path) -> None:
    (adapter,) = documents(KUBERNETES / "prometheus-adapter.yaml")
    (rule,) = adapter["rules"]["custom"]
    asked = rule["metricsQuery"].replace("<<.Series>>", "cellar_run_seconds_sum").replace("<<.GroupBy>>", "pod")
    asked = asked.replace("<<.LabelMatchers>>", 'namespace="cellar",pod=~"cellar-0|cellar-1"')
    expressions = [*board_expressions(), asked, rule["seriesQuery"]]
    rules = [
        {"record": f"asked:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(expressions)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}))
    assert PROMTOOL is not None
    passes(PROMTOOL, "check", "rules", str(path))


# -- against the server ----------------------------------------------------------------------------------------------


def test_alerts_and_board_ask_for_series_that_there_are() -> None:
    known = known_series()
    for rule in alerts():
        assert series(rule["expr"]) <= known, rule["alert"]
    for expression in board_expressions():
        assert series(expression) <= known, expression
    tested = (DEPLOY / "prometheus" / "alerts_test.yml").read_text()
    assert series(tested) <= known


def test_the_board_shows_every_metric_but_the_build() -> None:
    shown = set().union(*map(series, board_expressions()))
    for meter in METERS:
        if meter.name not in ("cellar_build_info", "cellar_sessions_limit", "cellar_streams_opened_total"):
            assert any(name.startswith(meter.name) for name in shown) or meter.name in UNSHOWN, meter.name


# told by others already
UNSHOWN = ("cellar_twin_steps_total", "cellar_sessions_unstored", "cellar_generations_total")


def test_every_variable_is_an_option_of_the_server() -> None:
    options = {f"CELLAR_{each.name.upper()}" for each in dataclasses.fields(Config)}
    said = set()
    for path in (DEPLOY / "Dockerfile", DEPLOY / "compose.yaml", KUBERNETES / "configuration.yaml"):
        said |= set(re.findall(r"\bCELLAR_[A-Z_]+", path.read_text()))
    assert said <= options, said - options


def image_environment() -> dict[str, str]:
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    return dict(re.findall(r"(CELLAR_\w+)=(\S+)", block))


def test_the_image_alone_refuses_to_be_open_to_everybody() -> None:
    image = image_environment()
    assert image["CELLAR_LISTEN"] == "0.0.0.0:50051"
    with pytest.raises(StartupError, match=r"beyond the loopback.*tls_cert and tls_key.*or set insecure_listen"):
        from_args([], image)
    asked = {"CELLAR_TLS_CERT": "/tls/tls.crt", "CELLAR_TLS_KEY": "/tls/tls.key", "CELLAR_TOKENS": "/tls/tokens"}
    assert not from_args([], image | asked).insecure_listen
    with pytest.raises(StartupError, match="everybody who reaches it could call"):
        from_args([], image | {name: asked[name] for name in ("CELLAR_TLS_CERT", "CELLAR_TLS_KEY")})


def test_compose_and_kubernetes_say_that_they_are_open() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    (configuration,) = documents(KUBERNETES / "configuration.yaml")
    for said in (compose["services"]["cellar-1"]["environment"], configuration["data"]):
        config = from_args([], image_environment() | said)
        assert config.insecure_listen
        assert config.is_storing


def seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)s", text)
    assert match is not None, text
    return float(match[1])


def test_servers_get_longer_than_they_drain() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    service = compose["services"]["cellar-1"]
    assert seconds(service["stop_grace_period"]) > float(service["environment"]["CELLAR_DRAIN_S"]) + 5
    (configuration,) = documents(KUBERNETES / "configuration.yaml")
    drain_s = float(configuration["data"]["CELLAR_DRAIN_S"])
    (stateful,) = documents(KUBERNETES / "statefulset.yaml")
    pod = stateful["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    waits_s = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    grace_s = pod["terminationGracePeriodSeconds"]
    assert grace_s > waits_s + drain_s + 5
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > grace_s


def test_the_autoscaler_reads_the_metric_that_the_adapter_makes() -> None:
    (adapter,) = documents(KUBERNETES / "prometheus-adapter.yaml")
    (scaler,) = documents(KUBERNETES / "autoscaling.yaml")
    (rule,) = adapter["rules"]["custom"]
    assert scaler["spec"]["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]
    assert series(rule["seriesQuery"]) <= known_series()
    (stateful,) = documents(KUBERNETES / "statefulset.yaml")
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (stateful["kind"], stateful["metadata"]["name"])


def test_selectors_find_the_pods() -> None:
    (stateful,) = documents(KUBERNETES / "statefulset.yaml")
    labels = stateful["spec"]["template"]["metadata"]["labels"].items()
    (service,) = documents(KUBERNETES / "services.yaml")
    (budget,) = documents(KUBERNETES / "disruption.yaml")
    assert service["spec"]["selector"].items() <= labels
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels
    assert service["spec"]["clusterIP"] == "None"
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    assert {port["targetPort"] for port in service["spec"]["ports"]} == {port["name"] for port in container["ports"]}


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE):
        copied |= set(line.split()[:-1])
    assert copied == kept
    for name in copied:
        assert (ROOT / name).exists(), name


def test_the_image_has_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"pip install .*--no-deps '\.\[([\w,]+)\]'", (DEPLOY / "Dockerfile").read_text())
    waiting, wanted = [*extras.split(",")], [*project["dependencies"]]
    while waiting:
        for requirement in project["optional-dependencies"][waiting.pop()]:
            match = re.match(r"cellar-serving\[([\w,]+)\]", requirement)
            waiting += match[1].split(",") if match else []
            wanted += [] if match else [requirement]
    names = {re.split(r"[\s<>=!\[;]", requirement)[0] for requirement in wanted}
    assert {"onnxruntime", "prometheus-client", "redis", "rich"} <= names
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {name.lower() for name in names} - {"cellar-serving"} <= pinned
    for no_part in (names, pinned):
        assert not no_part & {"torch", "onnx", "onnxscript"}


# -- documents -------------------------------------------------------------------------------------------------------


def metrics_table() -> str:
    """Of docs/operations.md: each metric, what it is, and the alerts that use it."""
    lines = ["| metric | kind | labels | meaning | alerts |", "|---|---|---|---|---|"]
    for meter in METERS:
        kind = "counter" if meter.kind == "reasons" else meter.kind
        users = [
            rule["alert"] for rule in alerts() if any(name.startswith(meter.name) for name in series(rule["expr"]))
        ]
        labels = ", ".join(meter.labels) if meter.name != "cellar_build_info" else "of each version"
        lines.append(f"| `{meter.name}` | {kind} | {labels} | {meter.help} | {', '.join(users)} |")
    return "\n".join(lines)


def test_the_table_of_metrics_is_the_servers() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    match = re.search(r"<!-- metrics -->\n(.*?)\n<!-- /metrics -->", text, re.DOTALL)
    assert match is not None
    assert match[1] == metrics_table(), "in docs/operations.md, between the marks:\n" + metrics_table()


def test_every_alert_is_explained() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    for rule in alerts():
        assert f"**{rule['alert']}**" in text, rule["alert"]


@pytest.mark.parametrize("name", ["operations.md", "deploy.md"])
def test_links_lead_to_files(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "docs" / link).exists(), link


@pytest.mark.parametrize("name", ["operations.md", "deploy.md"])
def test_flags_are_options_of_the_server_or_the_client(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    options = {each.name for each in dataclasses.fields(Config)}
    known = argparse.ArgumentParser()
    credentials.add_arguments(known)
    options |= set(vars(known.parse_args([])))
    for flag in re.findall(r"`--([a-z-]+)", text):
        assert flag.replace("-", "_") in options | {"once", "interval", "server", "build_arg"}, flag
