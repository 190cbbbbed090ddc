"""What pipelines/scheduling holds is checked by the programs that would read it, or by parsers of their formats."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from cronsim import CronSim

from tests.conftest import ROOT

FOLDER = ROOT / "pipelines/scheduling"
FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())
AIRFLOW = ROOT / ".venv-airflow/bin/python"
"""Airflow's dependencies and landseg's do not go together: it has an environment of its own, made by `make airflow`."""


def commands(path: Path) -> list[list[str]]:
    """Find the command in a file, however its format spells it."""
    if path.suffix == ".yaml":
        (container,) = yaml.safe_load(path.read_text())["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        return [container["command"]]
    found = re.findall(r"[^\s\"]*landseg batch [^\"\n]*", path.read_text())
    return [shlex.split(command) for command in found]


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix != ".timer"], ids=lambda path: path.name)
def test_all_call_the_same_command(path: Path) -> None:
    ((program, command, pipeline, option),) = commands(path)
    assert (Path(program).name, command, pipeline) == ("landseg", "batch", "/opt/landseg/pipelines/monthly.yaml")
    assert option in ("--log-json", "--quiet")
    assert (ROOT / "pipelines/monthly.yaml").exists()


def test_the_readme_names_each() -> None:
    readme = (ROOT / "pipelines/README.md").read_text()
    assert [path.name for path in FILES if path.name not in readme] == []


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    for path in FOLDER.glob("landseg-batch.*"):
        text = path.read_text().replace(
            "/opt/landseg/.venv/bin/landseg", str(Path(sys.executable).with_name("landseg"))
        )
        (tmp_path / path.name).write_text(text.replace("User=landseg", f"User={Path.home().owner()}"))
    units = [tmp_path / "landseg-batch.service", tmp_path / "landseg-batch.timer"]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "landseg" in line]
    assert (done.returncode, ours) == (0, [])
    (calendar,) = re.findall(r"OnCalendar=(.*)", units[1].read_text())
    subprocess.run(["systemd-analyze", "calendar", calendar], capture_output=True, check=True)


def test_cron_runs_it_once_a_month() -> None:
    (line,) = [line for line in (FOLDER / "crontab").read_text().splitlines() if not line.startswith("#")]
    schedules = [" ".join(line.split()[:5])]
    schedules.append(yaml.safe_load((FOLDER / "cronjob.yaml").read_text())["spec"]["schedule"])
    schedules += re.findall(r'schedule="([^"]+)"', (FOLDER / "landseg_dag.py").read_text())
    for schedule in schedules:
        times = CronSim(schedule, datetime(2026, 1, 15, tzinfo=UTC))
        assert [next(times).month for _ in range(3)] == [2, 3, 4]


def test_kubernetes_takes_the_cron_job() -> None:
    job = yaml.safe_load((FOLDER / "cronjob.yaml").read_text())
    kubernetes_validate.validate(job, "1.31", strict=True)
    job["spec"]["schedules"] = job["spec"].pop("schedule")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.31", strict=True)


def test_the_shell_takes_the_slurm_script() -> None:
    subprocess.run(["bash", "-n", FOLDER / "landseg.slurm"], check=True)


def test_airflow_takes_the_dag(tmp_path: Path) -> None:
    ast.parse((FOLDER / "landseg_dag.py").read_text())
    if not AIRFLOW.exists():
        pytest.skip("Airflow is not installed: make airflow")
    program = (
        "from airflow.dag_processing.dagbag import DagBag\n"
        f"bag = DagBag({str(FOLDER)!r})\n"
        "print(bag.import_errors, {name: [task.task_id for task in dag.tasks] for name, dag in bag.dags.items()})\n"
    )
    environment = {"AIRFLOW_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([AIRFLOW, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["{} {'landseg_batch': ['map_what_is_new']}"], done.stderr
