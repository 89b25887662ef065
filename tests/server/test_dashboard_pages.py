"""The dashboard's files, as the service gives them out."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from kvflow.server import ServiceSettings, create_app
from kvflow.server.dashboard_pages import DASHBOARD_PATHS

MARKUP_THAT_RUNS = re.compile(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:", re.I)


def test_the_page_and_all_it_loads(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    wanted = set(re.findall(r'(?:src|href)="(/[^"]+)"', page.text))
    assert wanted
    assert wanted <= DASHBOARD_PATHS
    for path in DASHBOARD_PATHS - {"/"}:
        asset = client.get(path)
        assert asset.status_code == 200, path
        for name in re.findall(r'from "\./([\w.]+)"', asset.text):
            assert f"/dashboard/{name}" in DASHBOARD_PATHS


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(client: TestClient) -> None:
    assert not MARKUP_THAT_RUNS.search(client.get("/").text)
    for path in DASHBOARD_PATHS:
        addresses = set(re.findall(r"https?://[\w./-]+", client.get(path).text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path


def test_the_content_policy_lets_nothing_else_in(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


def test_it_is_open_where_the_data_are_not() -> None:
    with TestClient(create_app(ServiceSettings(api_key="secret"))) as client:
        assert client.get("/").status_code == 200
        assert client.get("/dashboard/main.js").status_code == 200
        assert client.get("/v1/overview").status_code == 401
        assert client.get("/dashboard/other.js").status_code == 401


def test_browsers_may_keep_what_has_not_changed(client: TestClient) -> None:
    etag = client.get("/dashboard/style.css").headers["etag"]
    again = client.get("/dashboard/style.css", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/dashboard/", "/dashboard/../app.py", "/dashboard/main.py"])
def test_nothing_else_of_the_package(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_it_is_no_part_of_the_api(client: TestClient) -> None:
    assert "/" not in client.get("/openapi.json").json()["paths"]
