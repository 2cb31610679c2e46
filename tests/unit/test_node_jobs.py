"""Would the launchers of several machines take the job files of `configs/nodes`?"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from selfaug.cli.launch import LaunchFlags
from selfaug.cli.parsing import parse
from selfaug.common.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "configs" / "nodes"
# https://slurm.schedmd.com/sbatch.html
SBATCH = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal"}


def text_of(name: str) -> str:
    """The command of a job file on one line, with a number or host for each variable."""
    text = (FOLDER / name).read_text("utf-8")
    if name.endswith(".yaml"):
        job = next(each for each in yaml.safe_load_all(text) if each["kind"] == "Job")
        text = job["spec"]["template"]["spec"]["containers"][0]["args"][0]
    text = text.replace("\\\n", " ").replace("$resume", "--resume_from_checkpoint true")
    return re.sub(r"\\?\$(SLURM_NODEID|JOB_COMPLETION_INDEX)", "1", text).replace("$HOST", "first")


def words_after(name: str, command: str) -> list[str]:
    (line,) = (line for line in text_of(name).splitlines() if command in line and not line.startswith("#"))
    return shlex.split(line.split(command, 1)[1].rstrip('"'))


@pytest.mark.parametrize("name", ["slurm.sh", "torchrun.sh", "kubernetes.yaml"])
def test_the_training_and_accelerate_take_every_flag(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    words = words_after(name, "selfaug train")
    arguments = parse(words)
    assert arguments.values["output_dir"] == "/data/runs/qwen2.5-7b"
    parsed = LaunchFlags().check(arguments.launch)
    if name != "torchrun.sh":
        assert (parsed.machine_rank, parsed.main_process_ip) != (None, None)
        file = yaml.safe_load(Path(parsed.config_file).read_text("utf-8"))
        assert (file["num_machines"], file["num_processes"]) == (2, 16)
    with pytest.raises(ConfigError):
        parse([*words, "--machine_rnk", "1"])


def test_accelerate_takes_every_key_of_its_configuration() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(FOLDER / "accelerate.yaml"))
    assert (config.num_machines, config.num_processes, config.main_process_port) == (2, 16, 29500)


def test_torchrun_takes_every_flag() -> None:
    parsed = get_args_parser().parse_args(words_after("torchrun.sh", "torchrun"))
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_endpoint) == ("2", "8", "first:29500")
    assert (parsed.module, parsed.training_script, parsed.training_script_args[0]) == (True, "selfaug", "train")


@pytest.mark.parametrize("name", ["slurm.sh", "torchrun.sh"])
def test_bash_parses_the_script(name: str) -> None:
    subprocess.run(["bash", "-n", str(FOLDER / name)], check=True)
    flags = re.findall(r"^#SBATCH --([a-z-]+)=", (FOLDER / name).read_text("utf-8"), re.MULTILINE)
    assert set(flags) == (SBATCH if name == "slurm.sh" else set())


def test_the_pods_of_the_job_find_each_other() -> None:
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text("utf-8"))
    pods = job["spec"]["template"]["spec"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    # A pod's name is the job's with its index, below the service of the pods' subdomain.
    assert f"{job['metadata']['name']}-0.{service['metadata']['name']}" in pods["containers"][0]["args"][0]
    assert pods["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    mounted = {mount["name"] for mount in pods["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pods["volumes"]}
