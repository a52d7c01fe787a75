"""What Prometheus gets to see, and that everything that is made of it names what is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import libvirt
import pytest
import yaml
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from enabler.api.problems import _PAGES
from enabler.checks import Status
from enabler.checks.listeners import check_metrics
from enabler.config import load
from enabler.errors import ConfigurationError
from enabler.listen import HttpAddress
from enabler.residency import Place
from tests.api.running import DEFAULT_VM, Enabler, eventually, free_port
from tests.api.test_events import restart, streaming

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
IDENTITY = f"/v1/vms/{DEFAULT_VM}/identity"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def ports(hypervisor: libvirt.virConnect, tmp_path: Path) -> Iterator[tuple[Enabler, str, str]]:
    """An enabler, its guest listener's URL, its metrics listener's URL."""
    guests, metrics = free_port(), free_port()
    running = Enabler(tmp_path, f"http://127.0.0.1:{guests}", metrics=f"127.0.0.1:{metrics}")
    with running.running():
        yield running, f"http://127.0.0.1:{guests}", f"http://127.0.0.1:{metrics}"


def scrape(enabler: Enabler) -> str:
    answer = enabler.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return answer.text


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def grown(before: Samples, after: Samples, name: str, **labels: str) -> float:
    key = (name, frozenset(labels.items()))
    return after.get(key, 0) - before.get(key, 0)


def promtool(*arguments: str, given: str | None = None) -> str:
    command = [shutil.which("promtool") or "promtool", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=MONITORING)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_has_nothing_to_say(enabler: Enabler) -> None:
    enabler.get("/v1/nothing")
    assert promtool("check", "metrics", given=scrape(enabler)) == ""


def test_openmetrics_to_who_asks_so(enabler: Enabler) -> None:
    answer = enabler.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics_families(answer.text)}
    assert {"enabler_requests", "enabler_build", "process_resident_memory_bytes"} <= names


def test_what_is_counted(enabler: Enabler, hypervisor: libvirt.virConnect) -> None:
    before = samples(scrape(enabler))
    assert value(before, "enabler_vms", residency="resident") == 1
    assert value(before, "enabler_libvirt_connected") == 1
    assert value(before, "enabler_libvirt_confirmed") == 1
    assert 0 <= value(before, "enabler_libvirt_confirmation_age_seconds") < 3
    assert value(before, "enabler_inventory_age_seconds") >= 0
    etag = enabler.get(IDENTITY).headers["ETag"]
    enabler.get("/v1/nothing")
    enabler.get(IDENTITY, **{"If-None-Match": etag, "Prefer": "wait=1"})
    with streaming(enabler) as stream:
        stream.next()
        assert value(samples(scrape(enabler)), "enabler_event_streams") == 1
        restart(hypervisor)
        stream.until("arrival")
    after = samples(scrape(enabler))
    assert grown(before, after, "enabler_requests_total", listener="admin", status="404") == 1
    assert grown(before, after, "enabler_requests_total", listener="admin", status="304") == 1
    assert (
        grown(before, after, "enabler_refusals_total", listener="admin", problem="not-found") == 1
    )
    assert grown(before, after, "enabler_waits_ended_total", outcome="unchanged") == 1
    assert grown(before, after, "enabler_events_total", kind="arrival") == 1
    assert grown(before, after, "enabler_events_total", kind="departure") == 1
    assert grown(before, after, "enabler_event_lag_seconds_count") >= 2
    assert value(after, "enabler_waits") == 0
    # A start is no migration.
    assert all(
        count == 0 for (name, _), count in after.items() if name == "enabler_migrations_total"
    )
    eventually(lambda: value(samples(scrape(enabler)), "enabler_event_streams") == 0)


def test_a_listener_of_its_own_which_is_not_the_guests(ports: tuple[Enabler, str, str]) -> None:
    enabler, guests, metrics = ports
    with httpx.Client() as client:
        assert client.get(f"{guests}/metrics").status_code == 404
        answer = client.get(f"{metrics}/metrics")
        found = samples(answer.text)
        assert value(found, "enabler_requests_total", listener="guest", status="404") == 1
        assert client.head(f"{metrics}/metrics").status_code == 200
        for method, path, status in (
            ("GET", "/v1/vms", 404),
            ("GET", "/", 404),
            ("POST", "/metrics", 405),
        ):
            refused = client.request(method, metrics + path)
            assert refused.status_code == status
            assert refused.headers["content-type"] == "application/problem+json"
    found = samples(scrape(enabler))
    assert value(found, "enabler_requests_total", listener="metrics", status="404") == 2
    port = httpx.URL(metrics).port
    assert port is not None
    checked = check_metrics(HttpAddress("127.0.0.1", port))
    assert (checked.status, "an enabler" in checked.found) == (Status.OK, True)


def test_what_the_door_turns_away_is_counted(ports: tuple[Enabler, str, str]) -> None:
    enabler, guests, _ = ports
    with httpx.Client() as client:
        answer = client.get(f"{guests}/v1/identity", headers={"X-Long": "x" * 20_000})
        assert answer.status_code == 431
    found = samples(scrape(enabler))
    assert value(found, "enabler_requests_total", listener="guest", status="431") == 1
    problem = "header-fields-too-large"
    assert value(found, "enabler_refusals_total", listener="guest", problem=problem) == 1


@pytest.mark.parametrize(
    "address", ["9177", "localhost:9177", "0.0.0.0:9177", "[::]:9177", "169.254.77.1:9177"]
)
def test_what_is_no_address_for_metrics(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"write 127\.0\.0\.1:9177"):
        load(None, {}, {"metrics": address})


def test_an_address_on_another_network() -> None:
    assert load(None, {}, {"metrics": "10.1.2.3:9177"}).metrics_address is not None


# What is made of it ------------------------------------------------------------------------------


def alerts() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def expressions() -> list[str]:
    board = json.loads((MONITORING / "dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert asked
    return asked + [rule["expr"] for rule in alerts()]


def test_every_metric_that_is_asked_for_is_there(enabler: Enabler) -> None:
    enabler.get("/v1/nothing")  # a counter with labels begins with its first count
    there = {name for name, _ in samples(scrape(enabler))}
    asked = set(re.findall(r"\b(?:enabler|process)_[a-z_]+", " ".join(expressions())))
    of_the_fleet = {name for name in asked if name.startswith("enabler_fleet_")}
    assert asked - of_the_fleet <= there
    assert not of_the_fleet & there, "without --fleet"


def test_every_label_value_that_is_asked_for_can_be() -> None:
    known = {"residency": {place.value for place in Place}, "problem": set(_PAGES)}
    for label, values in known.items():
        matched = re.findall(rf'\b{label}=~?"([^"]+)"', " ".join(expressions()))
        assert matched
        for pattern in "|".join(matched).split("|"):
            assert any(re.fullmatch(pattern, each) for each in values), pattern


def test_every_panel_and_expression_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"x:{number}", "expr": each.replace("$__rate_interval", "5m")}
        for number, each in enumerate(expressions())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    promtool("check", "rules", str(file))


def test_the_alerts() -> None:
    promtool("check", "rules", "alerts.yaml")
    promtool("test", "rules", "alerts_test.yaml")
    # Each is tested, and each has a runbook.
    assert {rule["alert"] for rule in alerts()} == set(
        re.findall(r'alertname="(\w+)"', (MONITORING / "alerts_test.yaml").read_text())
    )
    headings = re.findall(r"^## (\w+)$", (MONITORING / "runbooks.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        assert rule["annotations"]["runbook_url"] == f"runbooks.md#{rule['alert'].lower()}"
