"""The cluster file: what Ray's launcher of the installed version makes of it, without a cloud."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent
COMMANDS = ("setup_commands", "head_setup_commands", "worker_setup_commands")
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
PREPARE = """
import json, sys
from ray.autoscaler._private.util import prepare_config, validate_config
config = prepare_config(json.load(sys.stdin))
validate_config(config)
print(json.dumps(config))
"""


def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


def schema() -> dict[str, Any]:
    files = metadata.files("ray") or []
    (path,) = [file for file in files if str(file) == "ray/autoscaler/ray-schema.json"]
    loaded: dict[str, Any] = json.loads(Path(str(path.locate())).read_text())
    return loaded


def prepared(given: dict[str, Any]) -> dict[str, Any]:
    """Return what `ray up` would start from: Ray's defaults filled in, checked by Ray."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE], input=json.dumps(given), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    merged: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return merged


def pins(given: dict[str, Any]) -> list[str]:
    """Return every version of Ray that is asked for; `` where none is."""
    lines = [line for name in COMMANDS for line in given.get(name, []) if "install" in line]
    found = [re.search(r"\bray(?:\[[\w,]+\])?(?:==([\w.]+))?(?=[\"'\s]|$)", line) for line in lines]
    return [match[1] or "" for match in found if match]


def tokens(given: dict[str, Any]) -> list[str]:
    """Return what would keep drivers, workers and head from sharing one token."""
    starts = [line for name in STARTS for line in given[name] if "ray start" in line]
    missing = [line for line in starts if "RAY_AUTH_MODE=token" not in line]
    mounts = given.get("file_mounts", {})
    return missing + ([] if any(m.endswith(".ray/auth_token") for m in mounts) else ["token file"])


def test_the_file_is_valid_by_the_installed_schema() -> None:
    validator = jsonschema.validators.validator_for(schema())(schema())
    assert [error.message for error in validator.iter_errors(config())] == []


@pytest.mark.parametrize("change", [{"cluster_name": 3}, {"max_workers": -1}, {"workers": 2}])
def test_the_schema_sees_planted_faults(change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config(), **change}, schema())


def test_ray_accepts_it_with_its_defaults_filled_in() -> None:
    merged = prepared(config())
    text = json.dumps([merged[name] for name in (*COMMANDS, *STARTS)])
    assert "nightly" not in text and "ray-wheels" not in text and "dev0" not in text
    workers = merged["available_node_types"]["gpu_worker"]
    assert workers["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert workers["min_workers"] == 0 and workers["max_workers"] == merged["max_workers"]
    assert merged["available_node_types"][merged["head_node_type"]]["resources"] == {"CPU": 0}
    assert merged["idle_timeout_minutes"] <= 30


def test_without_our_lines_ray_would_install_a_nightly() -> None:
    given = {k: v for k, v in config().items() if k not in COMMANDS}
    assert "ray-wheels" in json.dumps(prepared(given)["setup_commands"])


def test_the_pinned_ray_is_the_installed_one() -> None:
    installed = metadata.version("ray")
    assert pins(config()) == [installed], (
        f"cluster.yaml must install ray=={installed}, the version of the driver; change it there"
    )


def test_an_unpinned_ray_is_seen() -> None:
    given = copy.deepcopy(config())
    given["setup_commands"].append("pip install ray")
    given["setup_commands"].append("pip install 'ray[default]==2.0.0'")
    assert pins(given)[1:] == ["", "2.0.0"]


def test_one_token_reaches_every_machine() -> None:
    assert tokens(config()) == []
    faulty = {**config(), "file_mounts": {}, "worker_start_ray_commands": ["ray start"]}
    assert tokens(faulty) == ["ray start", "token file"]


def test_dashboard_and_jobs_server_listen_on_loopback() -> None:
    """`ray start` itself takes any host, so that the option is looked at as it is written."""
    (start,) = [line for line in config()["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start.split()
    assert not any("0.0.0.0" in line for name in STARTS for line in config()[name])
    assert "AWS_" not in json.dumps(config()), "no key of the storage stands in the file"


def test_a_head_without_a_token_would_not_start(tmp_path: Path) -> None:
    """Why the token is mounted: `ray start` makes none."""
    code = (
        "from ray._private.authentication.authentication_token_setup import "
        "ensure_token_if_auth_enabled as f; f(None, create_token_if_missing=False)"
    )
    base = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    environment = {**base, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    call = [sys.executable, "-c", code]
    bare = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert bare.returncode != 0 and "no authentication token was found" in bare.stderr
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef0123456789abcdef")
    mounted = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert mounted.returncode == 0, mounted.stderr


def test_commands_are_valid_shell() -> None:
    lines = [line for name in (*COMMANDS, *STARTS) for line in config().get(name, [])]
    assert lines
    for line in lines:
        parsed = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True)
        assert parsed.returncode == 0, parsed.stderr


def test_mounted_folders_hold_the_package_and_not_the_store() -> None:
    given = config()
    assert given["file_mounts"]["/home/ubuntu/raysweep"] == "."
    assert (ROOT / "pyproject.toml").is_file()
    assert {".git", ".venv", "raysweep-store"} <= set(given["rsync_exclude"])
