"""What the documents say can be done: commands, options, links and names in them are those of the project."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import monai.bundle.__main__ as command_line
import pytest
from fire.inspectutils import GetFullArgSpec
from monai.bundle import ConfigParser
from torch.distributed.run import get_args_parser

from scripts.bundle import parsed
from scripts.command import _options, _own_options, check_command, check_option
from scripts.judging.evaluation import Evaluation
from scripts.prepare.__main__ import COMMANDS, check_options
from scripts.prepare.splitting import SECTIONS
from scripts.running.predictor import Prediction, Predictor
from small_bundle import write_small_bundle
from synthetic import write_head
from test_second_model import OVERLAY

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / name
    for name in (
        *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "AGENTS.md", "SECURITY.md"),
        *("docs/notebook.md", "docs/own_data.md", "docs/training.md", "docs/method.md", "docs/deployment.md"),
        *("docs/trust.md", "docs/advisories.md", "docs/claim.md", "docs/scaling.md"),
        *(
            "apps/anomaly_detection/README.md",
            "benchmarks/README.md",
            "bundle/docs/README.md",
            "bundle/docs/brats.md",
            "bundle/docs/chest.md",
            "bundle/sample/ATTRIBUTION.md",
        ),
    )
]
CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
"""Those that speak of the project as it is."""
PYTHON = re.compile(r"(PYTHONPATH=bundle )?(\.venv/bin/)?python(?= )")
SIGNING = ("openssl ", ".tools/bin/model_signing ")
"""See tests/test_signing.py."""
HOST = ("sudo ", "git ", "docker ")
"""Of the machine that a server runs on, see tests/test_deployment.py."""
TORCHRUN = set(get_args_parser()._option_string_actions)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def blocks(path: Path, language: str) -> Iterator[str]:
    """The contents of the fenced blocks of a document that name this language, without their indentation."""
    for indent, name, body in re.findall(
        r"^( *)```(\w*)\n(.*?)^ *```$", path.read_text("utf-8"), re.DOTALL | re.MULTILINE
    ):
        if name == language:
            yield "\n".join(line.removeprefix(indent) for line in body.splitlines())


def commands(path: Path, launched: bool = False) -> Iterator[str]:
    """The lines of a document's commands, with the values of the shell's variables; as python's, unless `launched`."""
    values: dict[str, str] = {}
    for block in blocks(path, ""):
        for line in block.replace("\\\n", " ").splitlines():
            if assigned := re.fullmatch(r"(\w+)=(\S+)", line):
                values[assigned[1]] = assigned[2]
                continue
            line = re.sub(r"\$(\w+)", lambda m: values.get(m[1], m[0]), line)
            yield line if launched else re.sub(r"^(\.venv/bin/)torchrun .*?(?=-m )", r"\1python ", line)


def of(documents: list[Path], prefix: str) -> list[Any]:
    """A parameter for each command that Python runs and that begins so."""
    found = []
    for path in documents:
        for line in commands(path):
            python = PYTHON.match(line)
            if python and line[python.end() + 1 :].startswith(prefix):
                rest = line[python.end() + 1 :].removeprefix(prefix)
                found.append(pytest.param(path, shlex.split(rest), id=f"{path.relative_to(ROOT)}: {rest.strip()}"))
    return found


@pytest.mark.parametrize("path", CURRENT, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_is_of_a_kind_that_is_checked(path: Path) -> None:
    kinds = (
        "-m monai.bundle run",
        "-m scripts.",
        "-m monailabel.main",
        "-m pytest",
        "-m pip download",
        "-m release.hub",
        "benchmarks/",
    )
    for line in commands(path):
        python = PYTHON.match(line)
        if python:
            assert line[python.end() + 1 :].startswith(kinds), line
        elif line.startswith("make"):
            assert re.split(r"\s+", re.sub(r" *#.*", "", line))[-1] in TARGETS, line
        else:
            assert line.startswith(("curl ", ".venv/bin/pre-commit ", *SIGNING, *HOST)), line


@pytest.mark.parametrize(("path", "argv"), of(CURRENT, "-m monai.bundle run"))
def test_config_files_ids_and_options_exist(path: Path, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.excepthook", None)
    monkeypatch.chdir(ROOT / "bundle" if path.parent.parent.name == "bundle" else ROOT)
    run_id = [] if argv[0].startswith("--") else [argv[0]]
    line = [command_line.__file__, "run", *argv]
    check_command(line)
    config = ConfigParser.load_config_files(_options(line)[1]["config_file"])
    assert {*run_id, "run"} <= config.keys()
    assert missing_references(config, *(run_id or ["run"])) == set()


def missing_references(config: dict[str, Any], start: str) -> set[str]:
    """What a run needs by reference, directly or not, and no config of the list declares."""
    parser = ConfigParser(config)
    waiting, seen = {start}, set[str]()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        if name in parser:
            waiting |= set(re.findall(r"[@%]([\w#]*\w)", json.dumps(parser[name]))) - seen
    return {name for name in seen if name not in parser}


def test_a_reference_without_a_config_that_declares_it_is_found() -> None:
    assert missing_references({"run": "$@a#b.run()", "a": {"b": "@c", "d": "@e"}}, "run") == {"c"}


@pytest.mark.parametrize(("path", "argv"), of(CURRENT, "-m scripts.prepare"))
def test_data_sets_are_prepared_so(path: Path, argv: list[str]) -> None:
    check_options(argv)
    if argv != ["--help"]:
        spec: Any = GetFullArgSpec(COMMANDS[argv[0]])
        needed = {name for name in spec.kwonlyargs if name not in spec.kwonlydefaults}
        assert needed <= {option.removeprefix("--") for option in argv[1::2]}


@pytest.mark.parametrize(("path", "argv"), of(CURRENT, "-m scripts."))
def test_scripts_take_their_arguments(path: Path, argv: list[str]) -> None:
    """Such as ``-m scripts.manifest check FOLDER``: the script says so itself, or it is one that is checked above."""
    script = ROOT / "bundle" / "scripts" / argv[0]
    assert script.with_suffix(".py").is_file() or (script / "__main__.py").is_file()
    assert argv[0] in ("prepare", "explain") or (argv[0], *argv[1:2]) in (
        ("manifest", "check"),
        ("manifest", "write"),
        ("reach", "FOLDER"),
    )


@pytest.mark.parametrize(("path", "argv"), [*of(CURRENT, "-m pytest"), *of(CURRENT, "-m monailabel.main start_server")])
def test_files_and_folders_are_there(path: Path, argv: list[str]) -> None:
    for name in argv:
        assert "/" not in name or (ROOT / name).exists(), name


def in_prose(path: Path, pattern: str) -> Iterator[str]:
    """What stands between back ticks and matches, outside of blocks."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`\n]+)`", text):
        yield from re.findall(pattern, code)


@cache
def own_options() -> frozenset[str]:
    """Of MONAI's command itself, of the commands that prepare data, of the app and of the benchmarks."""
    names = {*_own_options(), "conf", "app", "host", "help"}
    for command in COMMANDS.values():
        names |= set(inspect.signature(command).parameters)
    for script in (ROOT / "benchmarks").glob("*.py"):
        names |= set(main_of(script))
    return frozenset(names)


def is_option(name: str) -> bool:
    """Whether a config that is complete with the overlays before it has an option, or another command."""
    for overlays in ("", "preview", "evaluate", "calibrate", "train", "train train_classifier", "train train_student"):
        files = [str(ROOT / "bundle" / "configs" / f"{n}.json") for n in ("inference", *overlays.split())]
        try:
            check_option(name, "@", ConfigParser.load_config_files(files))
        except ValueError:
            continue
        return True
    return name in own_options() or f"--{name}" in TORCHRUN


def main_of(script: Path) -> list[str]:
    """The options of a benchmark: the arguments of the function that fire runs."""
    tree = ast.parse(script.read_text("utf-8"))
    called = [n.args[0] for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "fire.Fire"]
    names = {ast.unparse(n) for n in called}
    return [
        a.arg
        for n in tree.body
        if isinstance(n, ast.FunctionDef) and n.name in names
        for a in (*n.args.args, *n.args.kwonlyargs)
    ]


@pytest.mark.parametrize("path", CURRENT, ids=lambda p: str(p.relative_to(ROOT)))
def test_options_in_the_text_exist(path: Path) -> None:
    for option in in_prose(path, r"(?<!\S)--([A-Za-z][\w#-]*)"):
        assert is_option(option), option


@pytest.mark.parametrize("path", CURRENT, ids=lambda p: str(p.relative_to(ROOT)))
def test_benchmarks_take_their_options(path: Path) -> None:
    lines = [*in_prose(path, r"^python (benchmarks/.*)$"), *(p.values[1] for p in of([path], "benchmarks/"))]
    for line in lines:
        script, *options = line.split() if isinstance(line, str) else [f"benchmarks/{line[0]}", *line[1:]]
        allowed = main_of(ROOT / script)
        for option in options:
            assert not option.startswith("--") or option.removeprefix("--") in allowed, (line, option)


@pytest.mark.parametrize("path", CURRENT, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_runs_as_written(path: Path) -> None:
    """What is imported is there, and a result has the fields that are named."""
    known = {f.name for f in fields(Prediction)}
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "result":
                assert node.attr in known
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Predictor":
                inspect.signature(Predictor).bind(
                    *(ast.literal_eval(a) for a in node.args), **{k.arg: None for k in node.keywords if k.arg}
                )
                assert all((ROOT / f"bundle/configs/{ast.literal_eval(a)}.json").is_file() for a in node.args)


@pytest.mark.parametrize("path", CURRENT, ids=lambda p: str(p.relative_to(ROOT)))
def test_json_is_json(path: Path) -> None:
    for block in blocks(path, "json"):
        json.loads(block)


def test_the_model_to_add_is_the_one_that_is_tested() -> None:
    """But for the settings that make it fast."""
    [example] = (json.loads(block) for block in blocks(ROOT / "CONTRIBUTING.md", "json"))
    assert example == {name: value for name, value in OVERLAY.items() if not name.startswith("displayable_configs")}


def test_the_files_of_an_evaluation_are_those_that_it_writes() -> None:
    named = set(in_prose(ROOT / "docs" / "training.md", r"^(?:test|validation)_\w+$"))
    assert named == set(re.findall(r"``((?:test|validation)_\w+)``", str(Evaluation.__doc__)))


def test_the_defaults_that_are_told_are_those_of_the_config() -> None:
    """Numbers in the table of options."""
    rows = re.findall(r"^\| `--([\w#]+)` \| (\d+)", (ROOT / "docs" / "own_data.md").read_text("utf-8"), re.MULTILINE)
    config = parsed()
    assert len(rows) == 3 and [(name, float(value)) for name, value in rows] == [
        (name, config[name]) for name, _ in rows
    ]


def test_the_first_result_is_a_screen_away() -> None:
    """The whole page has two, and on the first stand a picture and two commands that CI runs."""
    text = (ROOT / "README.md").read_text("utf-8")
    assert len([line for line in text.splitlines() if not line.startswith("<!--")]) <= 110  # those that are seen
    screen = text.split("\n## ")[0]
    assert len(screen.splitlines()) <= 40 and "![" in screen
    [block] = re.findall(r"^```\n(.*?)^```$", screen, re.DOTALL | re.MULTILINE)
    run = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert len(block.splitlines()) == 2 and set(block.splitlines()) <= set(run)


def test_batch_scripts_start_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of SLURM, run with others in the place of its commands and of torchrun, which prints its arguments."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, body in (
        ("srun", 'shift; "$@"'),
        ("scontrol", "echo n1; echo n2"),
        (".venv/bin/torchrun", 'printf "%s\\n" "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"ARRAY_TASK_ID": "7", "CPUS_PER_TASK": "64", "JOB_ID": "1", "JOB_NODELIST": "n[1-2]", "NNODES": "2"}
    environment = {f"SLURM_{name}": value for name, value in slurm.items()} | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}"
    }
    scripts = list(blocks(ROOT / "docs" / "scaling.md", "bash"))
    assert ["--array" in script for script in scripts] == [True, False]
    said = [subprocess.check_output(["bash", "-euc", s], cwd=tmp_path, env=environment, text=True) for s in scripts]
    inference, training = (get_args_parser().parse_args(lines.splitlines()) for lines in said)
    assert inference.training_script_args[-4:] == ["--datalist", "part7.json", "--output_dir", "results/part7"]
    assert inference.standalone and inference.max_restarts == 0
    assert (training.nnodes, training.rdzv_endpoint, training.max_restarts) == ("2", "n1:29500", 3)
    assert int(training.training_script_args[-1]) % (2 * int(training.nproc_per_node)) == 0  # the batch
    monkeypatch.setattr("sys.excepthook", None)
    monkeypatch.chdir(ROOT)
    for torchrun in (inference, training):
        assert torchrun.module and torchrun.training_script == "monai.bundle"
        check_command([command_line.__file__, *torchrun.training_script_args])


def write_repository(folder: Path) -> None:
    """The small bundle and the environment as they lie in a repository, and small images of both classes."""
    write_small_bundle(folder)
    (folder / ".venv").symlink_to(sys.prefix)
    for label in ("healthy", "diseased"):
        for n in range(6):
            images = folder / "images" / label / f"{label}{n}"
            images.mkdir(parents=True)
            write_head(images)
            (images / "flair_brain.nii.gz").unlink()


def run_as_written(line: str, folder: Path) -> str:
    """A command in the shell, from the repository's folder, with nothing in the environment that a reader has not."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_commands_of_training_run_as_written(tmp_path: Path) -> None:
    """From a folder of images to evaluated networks, then several processes; trainings are shorter than they are told."""
    write_repository(tmp_path)
    lines = [line for line in commands(ROOT / "docs" / "training.md") if PYTHON.match(line)][:9]
    assert "scripts.prepare folder" in lines[0] and lines[-1].split("'")[3].endswith("evaluate.json")
    several = [line for line in commands(ROOT / "docs" / "scaling.md", launched=True) if "torchrun" in line]
    assert len(several) == 2
    # a folder of its own, as the training before has filled the one by default
    for line in (*lines, several[0] + " --run_dir runs/several", several[1]):
        if "train.json" in line and " publish " not in line:
            line += " --max_images 8 --epoch_images 8 --batch_size 4 --val_interval 1 --compile False"
        line = re.sub(r"\bDIR\b|\bdata(?=/datalist)", "images", line).replace(
            "--nproc_per_node=8", "--nproc_per_node=2"
        )
        run_as_written(line, tmp_path)
    assert (tmp_path / "runs" / "several" / "model.pt").is_file()
    assert (tmp_path / "evaluation" / "test_scores.csv").is_file()
    manifest = json.loads((tmp_path / "bundle" / "models" / "weights.json").read_text())
    assert manifest["calibration"]["student"] == manifest["student"]["student"]


def test_commands_run_as_written(tmp_path: Path) -> None:
    """Those of the README that name the reader's own PATH and DIR, on the small bundle and small images."""
    write_repository(tmp_path)
    lines = [line for line in commands(ROOT / "README.md") if PYTHON.match(line)]
    assert len(lines) == 4
    for line, folder in zip(lines, ("results", "preview", "images", "images"), strict=True):
        line = re.sub(r"\bPATH\b", "images/diseased/diseased0/flair.nii.gz", re.sub(r"\bDIR\b", folder, line))
        said = run_as_written(line, tmp_path)
    for name in ("results", "preview"):
        assert (tmp_path / name / "flair" / "pred.nii.gz").is_file()
        assert (tmp_path / name / "flair" / "counterfactual.nii.gz").is_file()
    found = json.loads((tmp_path / "images" / "datalist.json").read_text())
    assert [len(found[section]) for section in SECTIONS] == [8, 2, 2]
    # what the dry run, the last of them, would train on: four slices of each volume
    assert '"slices": 32' in said and not (tmp_path / "runs" / "diffusion").exists()


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_no_document_is_forgotten() -> None:
    left = {".venv", ".tools", ".git", "build", "dist", "output", "cache", "runs", "data", "node_modules"}
    found = {p for p in ROOT.rglob("*.md") if not left & set(p.relative_to(ROOT).parts)}
    assert found - set(DOCUMENTS) <= {p for p in found if p.parts[-2].startswith(".")}
