import json
import os
import socket

import pytest

from flows import doctor, doctor_servers
from flows.cli import run

GOOD = {
    "torch": "2.13.0+cpu",
    "dask": "2026.8.0",
    "distributed": "2026.8.0",
    "prefect": "3.8.8",
    "fastapi": "0.150.0",
    "xarray": "2026.9.0",
    "zarr": "3.1.6",
    "numpy": "2.4.6",
    "pydantic": "2.14.3",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def failures(checks):
    return [check for check in checks if check.verdict == "fail"]


def test_versions__a_good_set_passes():
    assert failures(doctor.check_versions(GOOD)) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fastapi": "0.151.0"}, "422"),
        ({"fastapi": "0.165.0"}, "does not start"),
        ({"zarr": "2.18.3"}, "zarr 2.18.3"),
        ({"distributed": "2026.7.1"}, "distributed 2026.7.1"),
        ({"torch": None}, "torch"),
    ],
)
def test_versions__known_bad_combinations_fail_with_advice(changed, said):
    failed = failures(doctor.check_versions({**GOOD, **changed}))
    assert len(failed) == 1
    assert said in failed[0].found + failed[0].advice
    assert failed[0].advice


def test_requirements__bounds_are_compared_with_what_is_installed():
    assert doctor.check_requirements(["numpy>=2", "zarr>=3,<4"]).verdict == "ok"
    bad = doctor.check_requirements(["numpy<1", "no-such-package-here>=1"])
    assert bad.verdict == "fail"
    assert "numpy<1 (found" in bad.found
    assert "(found nothing)" in bad.found
    assert doctor.check_requirements([]).verdict == "warn"


@pytest.mark.parametrize(
    ("running", "verdict"),
    [
        ((3, 11, 7), "ok"),
        ((3, 12, 0), "ok"),
        ((3, 10, 1), "fail"),
        ((3, 13, 0), "fail"),
    ],
)
def test_python__range(running, verdict):
    assert doctor.check_python(running).verdict == verdict


def test_folder__writable_missing_and_blocked(tmp_path):
    assert doctor.check_folder("home", tmp_path).verdict == "ok"
    deep = doctor.check_folder("home", tmp_path / "a" / "b")
    assert (deep.verdict, (tmp_path / "a").exists()) == ("ok", False)
    (tmp_path / "file").touch()
    assert doctor.check_folder("home", tmp_path / "file" / "b").verdict == "fail"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder__read_only_fails(tmp_path):
    tmp_path.chmod(0o500)
    assert doctor.check_folder("home", tmp_path).verdict == "fail"


@pytest.mark.parametrize(
    ("free", "verdict"), [(1e7, "fail"), (1e9, "warn"), (1e11, "ok")]
)
def test_disk__levels(free, verdict):
    assert doctor.check_disk(int(free)).verdict == verdict


def test_devices__counts_cores():
    check = doctor.check_devices()
    assert check.verdict in {"ok", "warn"}
    assert "cores" in check.found


def test_prefect__unset_unreachable_and_malformed(monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert doctor_servers.check_prefect(1.0).verdict == "note"
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    assert doctor_servers.check_prefect(1.0).verdict == "fail"
    monkeypatch.setenv("PREFECT_API_URL", "file:///etc")
    assert doctor_servers.check_prefect(1.0).verdict == "fail"


def test_cluster__unreachable_is_found_within_the_time_limit():
    import time

    start = time.perf_counter()
    address = f"tcp://127.0.0.1:{free_port()}"
    check = doctor_servers.check_cluster(address, None, 1.0)
    assert check.verdict == "fail"
    assert "1 s" in check.advice
    assert time.perf_counter() - start < 10


def test_cluster__missing_scheduler_file_says_how_to_start_one(tmp_path):
    check = doctor_servers.check_cluster(None, tmp_path / "s.json", 1.0)
    assert check.verdict == "fail"
    assert "dask scheduler" in check.advice


@pytest.mark.cluster
def test_cluster__a_running_one_is_described():
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address=None,
        protocol="tcp",
        host="127.0.0.1",
        resources={"GPU": 1},
    ) as cluster:
        check = doctor_servers.check_cluster(cluster.scheduler_address, None, 10.0)
    assert check.verdict == "ok"
    assert "1 workers" in check.found
    assert "resources GPU" in check.found


def test_command__table_and_json_agree_on_the_exit_code(capsys, home, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert run(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    names = [check["name"] for check in answer["checks"]]
    assert {"python", "packages", "devices", "disk", "cluster"} <= set(names)
    assert run(["doctor"]) == 0
    assert "verdict" in capsys.readouterr().out
    address = f"tcp://127.0.0.1:{free_port()}"
    assert run(["doctor", "--address", address, "--timeout", "0.5", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["ok"] is False
    assert "cluster" in captured.err
