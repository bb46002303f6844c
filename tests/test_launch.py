"""The launch scripts, driven whole: against a cloud whose hosts are folders here, and as far as they print commands."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tomllib

import pytest
import yaml
from conftest import REPOSITORY

LAUNCH = REPOSITORY / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), REPOSITORY / ".ci" / "run"])

# What launch/tpu_vm.sh asks of gcloud, done with folders: the state of the request is a file, a host is a folder with
# an environment, whose python writes down what it is asked and ends as the file `ends` says, line by line.
GCLOUD = """#!/usr/bin/env bash
set -eu
here=$(dirname "$(dirname "$0")")
echo "$*" >> "$here/asked"
shift 2  # compute tpus
zone=
for word in "$@"; do
    case $word in
        --worker=*) worker=${word#*=} ;; --command=*) command=${word#*=} ;; --zone=*) zone=${word#*=} ;;
    esac
done
[ "$zone" = mars ]
case "$1 $2" in
    'queued-resources create') echo ACTIVE > "$here/state" ;;
    'queued-resources describe') cat "$here/state" ;;
    'queued-resources delete') rm "$here/state" ;;
    'tpu-vm scp') for host in "$here"/hosts/*; do cp "$3" "$host"; done ;;
    'tpu-vm ssh')
        for host in "$here"/hosts/*; do
            if [ "$worker" = all ] || [ "$worker" = "${host##*/}" ]; then (cd "$host" && bash -c "$command"); fi
        done ;;
esac
"""
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> ../../../ran
status=$(head -n 1 ../../../ends)
sed -i 1d ../../../ends
case $status in
    wait) trap 'exit 143' TERM; while :; do sleep 0.05; done ;;
    gone) echo SUSPENDED > ../../../state && exit 1 ;;
esac
exit "$status"
"""


class Cloud:
    """A cloud with so many hosts, and the script that speaks to it."""

    def __init__(self, folder: pathlib.Path, hosts: int = 1):
        self.folder = folder
        self.ends("0")
        (folder / "bin").mkdir()
        self._program(folder / "bin" / "gcloud", GCLOUD)
        for number in range(hosts):
            bin = folder / "hosts" / str(number) / "slpojax" / ".venv" / "bin"
            bin.mkdir(parents=True)
            self._program(bin / "python", PYTHON)
            installed = bin.parent / ".installed"
            installed.touch()
            os.utime(installed, (time.time() + 10**6,) * 2)  # newer than the pyproject.toml that is sent

    def ends(self, *statuses: str) -> None:
        """Say how the program ends, start by start."""
        (self.folder / "ends").write_text("".join(f"{status}\n" for status in statuses))

    def __call__(self, *arguments: str, status: int = 0, **more: str) -> str:
        """Run the script; return what it says."""
        env = os.environ | {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "TPU": "slice", "ZONE": "mars"}
        env |= {"EVERY": "0.1", "PAUSE": "0", **more}
        done = subprocess.run(["bash", str(LAUNCH / "tpu_vm.sh"), *arguments], env=env, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def read(self, name: str) -> list[str]:
        """Return the lines of a file of the cloud, none where there is no such file."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def until(self, name: str, text: str) -> None:
        """Wait until a file has a line with this text."""
        for _ in range(600):
            if any(text in line for line in self.read(name)):
                return
            time.sleep(0.05)
        raise AssertionError(f"{name}: {self.read(name)}")

    @staticmethod
    def _program(path: pathlib.Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_nothing_that_shellcheck_objects_to(script):
    program = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    done = subprocess.run([program, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_slice_from_nothing_to_a_run_and_back(tmp_path):
    cloud = Cloud(tmp_path, hosts=2)
    cloud.ends("0", "0")
    cloud("create", TYPE="v5litepod-16", SPOT="1")
    assert cloud.read("asked")[0] == (
        "compute tpus queued-resources create slice --node-id=slice --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot --zone=mars"
    )
    cloud("run", "--config=configs/slpo_hh.py", "--config.data.path=a b")
    for number in range(2):
        cloud.until(f"hosts/{number}/slpojax/run.status", "0")
        assert (tmp_path / "hosts" / str(number) / "slpojax" / "configs" / "slpo_hh.py").exists()
    asked = "-m slpojax.train --config=configs/slpo_hh.py --config.data.path=a b --config.mesh.distributed=true"
    assert cloud.read("ran") == [asked] * 2
    cloud("delete")
    assert not (tmp_path / "state").exists()


def test_a_run_that_is_stopped_ends_once_and_goes_on_when_it_is_asked_again(tmp_path):
    cloud = Cloud(tmp_path)
    cloud.ends("wait", "0")
    cloud("run", "--config=a.py")
    cloud.until("ran", "a.py")
    assert "a run is under way on this host" in cloud("run", "--config=a.py", status=1)
    cloud("stop")
    cloud.until("hosts/0/slpojax/run.status", "143")
    cloud("run", "--config=a.py", PROGRAM="slpojax.online")
    cloud.until("hosts/0/slpojax/run.status", "0")
    assert [line.split()[1] for line in cloud.read("ran")] == ["slpojax.train", "slpojax.online"]


def test_a_host_that_fails_is_tried_five_times(tmp_path):
    cloud = Cloud(tmp_path)
    cloud.ends(*"12345")
    cloud("run", "--config=a.py")
    cloud.until("hosts/0/slpojax/run.status", "5")
    assert len(cloud.read("ran")) == 5
    said = cloud("keep", "--config=a.py", status=1, TYPE="v6e-256")
    assert "the run ended with status 5" in said


def test_a_slice_that_is_taken_away_is_asked_for_again_until_the_run_ends(tmp_path):
    cloud = Cloud(tmp_path)
    cloud.ends("gone", "1", "0")
    said = cloud("keep", "--config=a.py", TYPE="v6e-256")
    assert "taken away" in said and "the run has ended" in said
    created = [line for line in cloud.read("asked") if "create" in line]
    assert len(created) == 2 and "--runtime-version=v2-alpha-tpuv6e --zone=mars" in created[0]


@pytest.mark.parametrize("verb", ["create", "run", "logs", "stop", "keep", "delete"])
def test_a_dry_run_prints_the_commands_and_runs_none(tmp_path, verb):
    cloud = Cloud(tmp_path)
    said = cloud("--dry-run", verb, "--config=configs/slpo_hh.py", TYPE="v5p-8")
    assert "gcloud compute tpus " in said and not cloud.read("asked")
    if verb in ("run", "keep"):
        assert "-m slpojax.train --config=configs/slpo_hh.py --config.mesh.distributed=true" in said


def test_it_says_what_is_missing(tmp_path):
    cloud = Cloud(tmp_path)
    assert "launch/tpu_vm.sh create" in cloud("begin", status=2)
    assert "set VERSION" in cloud("create", status=1, TYPE="v99-8")
    assert "the type of the slice" in cloud("create", status=1)


@pytest.mark.parametrize(
    ("script", "variables", "expected"),
    [
        ("slurm.sh", {}, "srun .venv/bin/python -m slpojax.train --config=a.py --config.mesh.distributed=true"),
        (
            "gke_xpk.sh",
            {"CLUSTER": "c", "ZONE": "z", "TPU_TYPE": "v5litepod-64", "IMAGE": "i", "WORKLOAD": "w"},
            "xpk workload create --cluster=c --zone=z --tpu-type=v5litepod-64 --num-slices=1 --docker-image=i "
            r"--workload=w --max-restarts=10 --command=python\ -m\ slpojax.train\ --config=a.py"
            r"\ --config.mesh.distributed=true",
        ),
    ],
)
def test_the_others_print_theirs(script, variables, expected):
    command = ["bash", str(LAUNCH / script), "--dry-run", "--config=a.py"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    assert done.stdout.strip() == expected and not done.returncode, done.stderr


@pytest.mark.check
@pytest.mark.parametrize(
    ("variables", "asks"),
    [
        ({"GPUS": "8"}, {"nvidia.com/gpu": 8}),
        ({"TPU": "tpu-v5-lite-podslice", "TOPOLOGY": "4x4", "CHIPS": "4", "ACCOUNT": "mine"}, {"google.com/tpu": 4}),
    ],
    ids=["gpus", "tpus"],
)
def test_the_manifest_is_one_that_kubernetes_takes(variables, asks):
    """By the schemas of Kubernetes itself, which refuse a field that they do not know."""
    schemas = pytest.importorskip("kubernetes_validate")
    command = ["bash", str(LAUNCH / "kubernetes.sh"), "--dry-run", "--config=a b.py", '--config.objective.name="x\\y"']
    variables = {"HOSTS": "4", "IMAGE": "registry/slpojax", "NAME": "mine", **variables}
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    service, job = yaml.safe_load_all(done.stdout)
    for part in (service, job):
        schemas.validate(part, schemas.latest_version(), strict=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "slpojax.train"]
    assert container["args"] == [*command[3:], "--config.mesh.distributed=true"]
    assert container["resources"]["limits"] == asks and job["spec"]["completions"] == 4
    # The names of the pods are those under which they look for the first one.
    assert pod["subdomain"] == service["metadata"]["name"] == service["spec"]["selector"]["job-name"] == "mine"
    known = {one["name"]: one.get("value") for one in container["env"]}
    if "GPUS" in variables:
        assert known == {
            "JAX_COORDINATOR_ADDRESS": "mine-0.mine:8476",
            "JAX_NUM_PROCESSES": "4",
            "JAX_PROCESS_ID": None,
        }
    else:
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"


@pytest.mark.check
def test_the_image_holds_what_its_installation_and_a_run_need(tmp_path):
    """Its steps, as far as they need no base image: what is copied, the extras, and a start from there."""
    text = (LAUNCH / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", text, flags=re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            path = REPOSITORY / source
            if path.is_dir():
                shutil.copytree(path, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, tmp_path)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    extras = re.search(r'"\.\[([\w,$]+)\]"', text)[1].replace("$EXTRA", "tpu,cuda13").split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    assert all((tmp_path / name).exists() for name in (project["readme"], *project["license-files"]))
    command = [sys.executable, "-m", "slpojax.train", "--config=configs/quickstart.py", "--config.steps=-1"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True)
    assert b"steps" in done.stderr and b"Traceback" not in done.stderr, done.stderr
